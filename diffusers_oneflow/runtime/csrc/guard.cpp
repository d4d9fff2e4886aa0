#include "guard.h"

#include <cstdint>
#include <vector>

namespace dfo {
namespace {

// DictWatch(dicts): changed() is true once any of the dictionaries was written to since the watch was
// made. It compares the version tags of PEP 509, which Python 3.6 to 3.11 give every dictionary: a
// process-wide counter, new at each change. Keeps the dictionaries alive, so no address is used twice.
struct DictWatch {
  PyObject_HEAD
  PyObject* owner;
  std::vector<uint64_t>* tags;
};

uint64_t Tag(PyObject* dict) { return reinterpret_cast<PyDictObject*>(dict)->ma_version_tag; }

PyObject* New(PyTypeObject* type, PyObject* args, PyObject*) {
  PyObject* dicts = nullptr;
  if (!PyArg_ParseTuple(args, "O", &dicts)) { return nullptr; }
  PyObject* tuple = PySequence_Tuple(dicts);
  if (tuple == nullptr) { return nullptr; }
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(tuple); ++i) {
    if (!PyDict_Check(PyTuple_GET_ITEM(tuple, i))) {
      Py_DECREF(tuple);
      PyErr_SetString(PyExc_TypeError, "DictWatch takes a sequence of dictionaries");
      return nullptr;
    }
  }
  auto* self = reinterpret_cast<DictWatch*>(type->tp_alloc(type, 0));
  if (self == nullptr) {
    Py_DECREF(tuple);
    return nullptr;
  }
  self->owner = tuple;
  self->tags = new std::vector<uint64_t>();
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(tuple); ++i) { self->tags->push_back(Tag(PyTuple_GET_ITEM(tuple, i))); }
  return reinterpret_cast<PyObject*>(self);
}

int Traverse(PyObject* object, visitproc visit, void* arg) {
  Py_VISIT(reinterpret_cast<DictWatch*>(object)->owner);
#if PY_VERSION_HEX >= 0x03090000
  Py_VISIT(Py_TYPE(object));
#endif
  return 0;
}

int Clear(PyObject* object) {
  Py_CLEAR(reinterpret_cast<DictWatch*>(object)->owner);
  return 0;
}

void Dealloc(PyObject* object) {
  PyObject_GC_UnTrack(object);
  Clear(object);
  delete reinterpret_cast<DictWatch*>(object)->tags;
  PyTypeObject* type = Py_TYPE(object);
  type->tp_free(object);
  Py_DECREF(type);
}

PyObject* Changed(PyObject* object, PyObject*) {
  auto* self = reinterpret_cast<DictWatch*>(object);
  if (self->owner == nullptr) { Py_RETURN_TRUE; }
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(self->owner); ++i) {
    if (Tag(PyTuple_GET_ITEM(self->owner, i)) != (*self->tags)[i]) { Py_RETURN_TRUE; }
  }
  Py_RETURN_FALSE;
}

PyMethodDef methods[] = {
    {"changed", Changed, METH_NOARGS, "True once any of the dictionaries was written to."},
    {nullptr, nullptr, 0, nullptr},
};

PyType_Slot slots[] = {
    {Py_tp_new, reinterpret_cast<void*>(New)},
    {Py_tp_dealloc, reinterpret_cast<void*>(Dealloc)},
    {Py_tp_traverse, reinterpret_cast<void*>(Traverse)},
    {Py_tp_clear, reinterpret_cast<void*>(Clear)},
    {Py_tp_methods, methods},
    {Py_tp_doc, const_cast<char*>("DictWatch(dicts): notices any write to the dictionaries.")},
    {0, nullptr},
};

PyType_Spec spec = {"diffusers_oneflow.runtime._native.DictWatch", sizeof(DictWatch), 0,
                    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, slots};

}  // namespace

PyObject* MakeDictWatchType() { return PyType_FromSpec(&spec); }

}  // namespace dfo
