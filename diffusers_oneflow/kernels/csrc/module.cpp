// The Python module diffusers_oneflow.kernels._pack. Import it after torch and oneflow.
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <dlfcn.h>

#include "kernel.h"
#include "node.h"
#include "op.h"
#include "queue.h"
#include "recorder.h"
#include "sources.h"
#include "torch_c.h"

namespace {

bool Numbers(PyObject* sequence, std::vector<int64_t>* numbers) {
  PyObject* fast = PySequence_Fast(sequence, "a sequence of integers is wanted");
  if (fast == nullptr) { return false; }
  for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(fast); ++i) {
    numbers->push_back(PyLong_AsLongLong(PySequence_Fast_GET_ITEM(fast, i)));
  }
  Py_DECREF(fast);
  return PyErr_Occurred() == nullptr;
}

PyObject* Load(PyObject*, PyObject* arg) {
  const char* path = PyUnicode_AsUTF8(arg);
  if (path == nullptr) { return nullptr; }
  const std::string missing = dfo::torch_c::Load();
  if (!missing.empty()) {
    PyErr_Format(PyExc_ImportError, "this build of torch has no %s", missing.c_str());
    return nullptr;
  }
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  void* math = library == nullptr ? nullptr : dlsym(library, "dfo_math");
  void* products = math == nullptr ? nullptr : dlsym(library, "dfo_products");
  if (products == nullptr) {
    PyErr_SetString(PyExc_ImportError, dlerror());
    return nullptr;
  }
  dfo::SetMath(reinterpret_cast<const dfo::math::Table* (*)()>(math)(),
               reinterpret_cast<const dfo::math::Products* (*)()>(products)());
  dfo::InstallYield();  // without it everything is right, but slower
  PyObject* names = PyList_New(0);
  for (const std::string& name : dfo::RegisterKernels()) {
    PyObject* item = PyUnicode_FromString(name.c_str());
    PyList_Append(names, item);
    Py_DECREF(item);
  }
  return names;
}

// pybind11 keeps the address of a simple object's C++ value right behind the object's header.
void* Value(PyObject* object) { return *reinterpret_cast<void**>(reinterpret_cast<char*>(object) + sizeof(PyObject)); }

PyObject* AddNode(PyObject*, PyObject* args) {
  const char* kind = nullptr;
  PyObject *tuple = nullptr, *shape = nullptr, *params = nullptr;
  long long dtype = 0;
  if (!PyArg_ParseTuple(args, "sOOLO", &kind, &tuple, &shape, &dtype, &params)) { return nullptr; }
  std::vector<int64_t> sizes, numbers;
  if (!Numbers(shape, &sizes) || !Numbers(params, &numbers)) { return nullptr; }
  const std::string error = dfo::AddNode(kind, Value(tuple), sizes, dtype, numbers);
  if (!error.empty()) {
    PyErr_SetString(PyExc_RuntimeError, error.c_str());
    return nullptr;
  }
  Py_RETURN_NONE;
}

PyObject* SetSlot(PyObject*, PyObject* args) {
  long long slot = 0;
  PyObject* capsule = nullptr;
  if (!PyArg_ParseTuple(args, "LO", &slot, &capsule)) { return nullptr; }
  void* handle = capsule == Py_None ? nullptr : PyCapsule_GetPointer(capsule, nullptr);
  if (PyErr_Occurred()) { return nullptr; }
  dfo::torch_c::SetSlot(slot, handle);
  Py_RETURN_NONE;
}

// Arguments of the functions on filters: address, sizes (n, c, kh, kw), strides, and the address of the packed one.
bool ParseFilter(PyObject* args, dfo::math::Filter* filter, float** packed) {
  unsigned long long data = 0, to = 0;
  PyObject *sizes = nullptr, *strides = nullptr;
  std::vector<int64_t> numbers;
  if (!PyArg_ParseTuple(args, "KOOK", &data, &sizes, &strides, &to)) { return false; }
  if (!Numbers(sizes, &numbers) || !Numbers(strides, &numbers)) { return false; }
  if (numbers.size() != 8) {
    PyErr_SetString(PyExc_ValueError, "a filter has 4 sizes and 4 strides");
    return false;
  }
  *filter = {reinterpret_cast<const float*>(data),
             numbers[0],
             numbers[1],
             numbers[2],
             numbers[3],
             {numbers[4], numbers[5], numbers[6], numbers[7]}};
  *packed = reinterpret_cast<float*>(to);
  return true;
}

PyObject* PackedBytes(PyObject*, PyObject* args) {
  dfo::math::Filter filter;
  float* packed = nullptr;
  if (!ParseFilter(args, &filter, &packed)) { return nullptr; }
  return PyLong_FromLongLong(dfo::ProductsMath().packed_bytes(filter));
}

PyObject* Pack(PyObject*, PyObject* args) {
  dfo::math::Filter filter;
  float* packed = nullptr;
  if (!ParseFilter(args, &filter, &packed)) { return nullptr; }
  Py_BEGIN_ALLOW_THREADS;
  dfo::ProductsMath().pack(filter, packed);
  Py_END_ALLOW_THREADS;
  Py_RETURN_NONE;
}

void DestroySource(PyObject* capsule) {
  auto* source = static_cast<dfo::Source*>(PyCapsule_GetPointer(capsule, dfo::kSourceName));
  source->destroy(source);
}

PyObject* FilterSource(PyObject*, PyObject* args) {
  dfo::math::Filter filter;
  float* packed = nullptr;
  if (!ParseFilter(args, &filter, &packed)) { return nullptr; }
  dfo::Source* source = dfo::FilterSource(filter, packed);
  if (source == nullptr) { Py_RETURN_NONE; }
  return PyCapsule_New(source, dfo::kSourceName, DestroySource);
}

PyObject* HasAttention(PyObject*, PyObject*) { return PyBool_FromLong(dfo::ProductsMath().attention != nullptr); }

PyObject* Open(PyObject*, PyObject*) {
  dfo::Open();
  Py_RETURN_NONE;
}

PyObject* Serve(PyObject*, PyObject*) {
  std::string failure;
  Py_BEGIN_ALLOW_THREADS;
  failure = dfo::Serve();
  Py_END_ALLOW_THREADS;
  if (failure.empty()) { Py_RETURN_NONE; }
  PyErr_SetString(PyExc_RuntimeError, failure.c_str());
  return nullptr;
}

PyObject* Profile(PyObject*, PyObject* arg) {
  const int on = PyObject_IsTrue(arg);
  if (on < 0) { return nullptr; }
  dfo::SetProfiling(on != 0);
  Py_RETURN_NONE;
}

PyObject* Measured(PyObject*, PyObject*) {
  PyObject* list = PyList_New(0);
  dfo::TakeMeasured([list](const dfo::Measured& item) {
    PyObject* pair = Py_BuildValue("(sL)", item.name.c_str(), static_cast<long long>(item.nanoseconds));
    PyList_Append(list, pair);
    Py_DECREF(pair);
  });
  return list;
}

PyObject* TakeRecords(PyObject*, PyObject*) {
  PyObject* list = PyList_New(0);
  for (const dfo::Record& record : dfo::TakeRecords()) {
    PyObject* in = PyTuple_New(static_cast<Py_ssize_t>(record.in.size()));
    for (size_t i = 0; i < record.in.size(); ++i) {
      PyTuple_SET_ITEM(in, static_cast<Py_ssize_t>(i), PyLong_FromVoidPtr(const_cast<void*>(record.in[i])));
    }
    PyObject* item = Py_BuildValue("(LNN)", static_cast<long long>(record.number), in, PyLong_FromVoidPtr(record.out));
    PyList_Append(list, item);
    Py_DECREF(item);
  }
  return list;
}

PyMethodDef methods[] = {
    {"load", Load, METH_O, "load(path of the math library) -> names of the ops that are registered with OneFlow now."},
    {"add_node", AddNode, METH_VARARGS,
     "add_node(kind, TensorTuple, shape, dtype, params): an op for the graph that is being built; its output goes into the tuple."},
    {"set_slot", SetSlot, METH_VARARGS, "set_slot(number, capsule of an at::Tensor* or None): a weight for the kernels."},
    {"packed_bytes", PackedBytes, METH_VARARGS, "packed_bytes(0, sizes, strides, 0) of a float32 filter."},
    {"pack", Pack, METH_VARARGS, "pack(address, sizes, strides, address of the packed filter)."},
    {"filter_source", FilterSource, METH_VARARGS,
     "filter_source(address, sizes, strides, address of the packed filter): a source for `Released`, or None where the filter\n"
     "does not lie in memory in order."},
    {"has_attention", HasAttention, METH_NOARGS, "Whether the loaded library has an attention of its own."},
    {"open", Open, METH_NOARGS, "From now on kernels wait for serve(); call it before a graph is started."},
    {"serve", Serve, METH_NOARGS, "Do the started graph's work on this thread."},
    {"profile", Profile, METH_O, "Start or end measuring each kernel."},
    {"measured", Measured, METH_NOARGS, "[(op name, nanoseconds)] since the last call, in order of execution."},
    {"take_records", TakeRecords, METH_NOARGS,
     "[(number, (address of each input), address of the output)]: the ops `dfo_recorded` that ran since the last call."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_pack", "CPU kernels for OneFlow 0.9.0.", -1, methods};

}  // namespace

PyMODINIT_FUNC PyInit__pack() { return PyModule_Create(&module); }
