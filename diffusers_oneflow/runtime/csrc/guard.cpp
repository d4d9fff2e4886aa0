#include "guard.h"

#include <cstdint>
#include <vector>

#include "layouts.h"

namespace dfo {
namespace {

// What a watch compares: addresses of objects, version tags, lengths.
using Numbers = std::vector<uint64_t>;

// StructureWatch(dicts, lists, objects, types, tensors): changed() is true once any of the dictionaries or lists was
// written to, any of the objects got another type, any of the types another `forward`, or any of the tensors another
// address, shape or strides. Keeps all of them alive, so that no address is used twice.
struct StructureWatch {
  PyObject_HEAD
  PyObject *dicts, *lists, *objects, *types;  // tuples
  PyObject* forward;                          // the name
  PyObject* kept;                             // what the lists held and the types of the objects
  Numbers* known;
  Layouts* layouts;
};

uint64_t Address(const void* object) { return reinterpret_cast<uint64_t>(object); }

// The version tag of PEP 509, which Python 3.6 to 3.11 have: a process-wide counter, new at each change.
const uint64_t& Tag(PyObject* dict) { return reinterpret_cast<PyDictObject*>(dict)->ma_version_tag; }

template <typename Visit>
void ForEach(PyObject* tuple, const Visit& visit) {
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(tuple); ++i) { visit(PyTuple_GET_ITEM(tuple, i)); }
}

// Calls visit(number) for all that is compared, tensors aside.
template <typename Visit>
void Read(const StructureWatch* self, const Visit& visit) {
  ForEach(self->dicts, [&](PyObject* dict) { visit(Tag(dict)); });
  ForEach(self->objects, [&](PyObject* object) { visit(Address(Py_TYPE(object))); });
  ForEach(self->lists, [&](PyObject* list) {
    visit(PyList_GET_SIZE(list));
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(list); ++i) { visit(Address(PyList_GET_ITEM(list, i))); }
  });
  ForEach(self->types,
          [&](PyObject* type) { visit(Address(_PyType_Lookup(reinterpret_cast<PyTypeObject*>(type), self->forward))); });
}

// Takes over the handles in a sequence of capsules, as torch makes them.
bool TakeTensors(PyObject* sequence, Layouts* layouts) {
  PyObject* items = PySequence_Fast(sequence, "StructureWatch takes a sequence of capsules");
  if (items == nullptr) { return false; }
  for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(items); ++i) {
    void* handle = PyCapsule_GetPointer(PySequence_Fast_GET_ITEM(items, i), nullptr);
    if (handle != nullptr) { layouts->Add(handle); }
  }
  Py_DECREF(items);
  return PyErr_Occurred() == nullptr;
}

// Copies a sequence of objects of one kind into a tuple; nullptr with an error set otherwise.
PyObject* TupleOf(PyObject* sequence, bool (*is)(PyObject*), const char* kind) {
  PyObject* tuple = PySequence_Tuple(sequence);
  if (tuple == nullptr) { return nullptr; }
  bool right = true;
  ForEach(tuple, [&](PyObject* item) { right = right && is(item); });
  if (right) { return tuple; }
  Py_DECREF(tuple);
  PyErr_Format(PyExc_TypeError, "StructureWatch takes a sequence of %s", kind);
  return nullptr;
}

// Addresses are compared, so what had them must live.
PyObject* Kept(const StructureWatch* self) {
  PyObject* kept = PyList_New(0);
  bool right = kept != nullptr;
  ForEach(self->lists, [&](PyObject* list) {
    PyObject* copy = right ? PyList_AsTuple(list) : nullptr;
    right = copy != nullptr && PyList_Append(kept, copy) == 0;
    Py_XDECREF(copy);
  });
  ForEach(self->objects,
          [&](PyObject* object) { right = right && PyList_Append(kept, reinterpret_cast<PyObject*>(Py_TYPE(object))) == 0; });
  ForEach(self->types, [&](PyObject* type) {
    PyObject* found = _PyType_Lookup(reinterpret_cast<PyTypeObject*>(type), self->forward);
    right = right && (found == nullptr || PyList_Append(kept, found) == 0);
  });
  if (!right) { Py_CLEAR(kept); }
  return kept;
}

bool Fill(StructureWatch* self, PyObject* dicts, PyObject* lists, PyObject* objects, PyObject* types, PyObject* tensors) {
  const std::string missing = Layouts::Load();
  if (!missing.empty()) {
    PyErr_Format(PyExc_ImportError, "this build of torch has no %s", missing.c_str());
    return false;
  }
  self->known = new Numbers();
  self->layouts = new Layouts();
  if (!TakeTensors(tensors, self->layouts)) { return false; }
  const auto any = [](PyObject*) { return true; };
  // clang-format off
  if ((self->forward = PyUnicode_InternFromString("forward")) == nullptr ||
      (self->dicts = TupleOf(dicts, [](PyObject* o) { return PyDict_Check(o) != 0; }, "dictionaries")) == nullptr ||
      (self->lists = TupleOf(lists, [](PyObject* o) { return PyList_Check(o) != 0; }, "lists")) == nullptr ||
      (self->objects = TupleOf(objects, any, "objects")) == nullptr ||
      (self->types = TupleOf(types, [](PyObject* o) { return PyType_Check(o) != 0; }, "types")) == nullptr ||
      (self->kept = Kept(self)) == nullptr) {
    // clang-format on
    return false;
  }
  Read(self, [self](uint64_t number) { self->known->push_back(number); });
  self->layouts->Remember();
  return true;
}

PyObject* New(PyTypeObject* type, PyObject* args, PyObject*) {
  PyObject *dicts = nullptr, *lists = nullptr, *objects = nullptr, *types = nullptr, *tensors = nullptr;
  if (!PyArg_ParseTuple(args, "OOOOO", &dicts, &lists, &objects, &types, &tensors)) { return nullptr; }
  auto* self = reinterpret_cast<StructureWatch*>(type->tp_alloc(type, 0));
  if (self != nullptr && !Fill(self, dicts, lists, objects, types, tensors)) { Py_CLEAR(self); }
  return reinterpret_cast<PyObject*>(self);
}

int Traverse(PyObject* object, visitproc visit, void* arg) {
  auto* self = reinterpret_cast<StructureWatch*>(object);
  for (PyObject* held : {self->dicts, self->lists, self->objects, self->types, self->kept}) { Py_VISIT(held); }
#if PY_VERSION_HEX >= 0x03090000
  Py_VISIT(Py_TYPE(object));
#endif
  return 0;
}

int Clear(PyObject* object) {
  auto* self = reinterpret_cast<StructureWatch*>(object);
  for (PyObject** held : {&self->dicts, &self->lists, &self->objects, &self->types, &self->kept, &self->forward}) {
    Py_CLEAR(*held);
  }
  return 0;
}

void Dealloc(PyObject* object) {
  PyObject_GC_UnTrack(object);
  Clear(object);
  auto* self = reinterpret_cast<StructureWatch*>(object);
  delete self->known;
  delete self->layouts;
  PyTypeObject* type = Py_TYPE(object);
  type->tp_free(object);
  Py_DECREF(type);
}

PyObject* Changed(PyObject* object, PyObject*) {
  auto* self = reinterpret_cast<StructureWatch*>(object);
  if (self->kept == nullptr) { Py_RETURN_TRUE; }
  // Thousands of places all over the memory: after a graph has run, none is in the caches.
  self->layouts->Prefetch();
  ForEach(self->dicts, [](PyObject* dict) { __builtin_prefetch(&Tag(dict)); });
  ForEach(self->objects, [](PyObject* item) { __builtin_prefetch(&item->ob_type); });
  const Numbers& known = *self->known;
  size_t next = 0;
  bool same = true;
  Read(self, [&](uint64_t number) { same = same && next < known.size() && known[next++] == number; });
  return PyBool_FromLong(!same || next != known.size() || self->layouts->Changed());
}

PyMethodDef methods[] = {
    {"changed", Changed, METH_NOARGS, "True once any of what is watched is not what it was."},
    {nullptr, nullptr, 0, nullptr},
};

PyType_Slot slots[] = {
    {Py_tp_new, reinterpret_cast<void*>(New)},
    {Py_tp_dealloc, reinterpret_cast<void*>(Dealloc)},
    {Py_tp_traverse, reinterpret_cast<void*>(Traverse)},
    {Py_tp_clear, reinterpret_cast<void*>(Clear)},
    {Py_tp_methods, methods},
    {Py_tp_doc,
     const_cast<char*>("StructureWatch(dicts, lists, objects, types, tensors): notices writes to the dictionaries and\n"
                       "lists, other types of the objects, another `forward` of the types, other layouts of the\n"
                       "tensors (capsules of at::Tensor*, which are taken over).")},
    {0, nullptr},
};

PyType_Spec spec = {"diffusers_oneflow.runtime._native.StructureWatch", sizeof(StructureWatch), 0,
                    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, slots};

}  // namespace

PyObject* MakeStructureWatchType() { return PyType_FromSpec(&spec); }

}  // namespace dfo
