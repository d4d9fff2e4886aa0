#include "watch.h"

#include <vector>

#include "tracker.h"

namespace dfo {
namespace {

// The Python type. Never waits for the GIL with the mutex held.
struct WriteWatch {
  PyObject_HEAD
  Watch* watch;
};

bool ParseRanges(PyObject* object, std::vector<Range>* ranges) {
  PyObject* items = PySequence_Fast(object, "WriteWatch takes a sequence of (address, bytes)");
  if (items == nullptr) { return false; }
  for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(items); ++i) {
    Py_ssize_t address = 0, bytes = 0;
    PyObject* pair = PySequence_Tuple(PySequence_Fast_GET_ITEM(items, i));
    const bool parsed = pair != nullptr && PyArg_ParseTuple(pair, "nn;WriteWatch takes (address, bytes)", &address, &bytes);
    Py_XDECREF(pair);
    if (parsed && (address < 0 || bytes < 0 || address > PY_SSIZE_T_MAX - bytes)) {
      PyErr_SetString(PyExc_ValueError, "WriteWatch takes addresses and sizes that are not negative");
    }
    if (PyErr_Occurred()) {
      Py_DECREF(items);
      return false;
    }
    ranges->push_back({static_cast<uintptr_t>(address), static_cast<uintptr_t>(address + bytes)});
  }
  Py_DECREF(items);
  return true;
}

PyObject* New(PyTypeObject* type, PyObject* args, PyObject* kwargs) {
  static const char* names[] = {"ranges", "track", nullptr};
  PyObject* object = nullptr;
  int track = 1;
  if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|p", const_cast<char**>(names), &object, &track)) { return nullptr; }
  std::vector<Range> ranges;
  if (!ParseRanges(object, &ranges)) { return nullptr; }
  auto* self = reinterpret_cast<WriteWatch*>(type->tp_alloc(type, 0));
  if (self == nullptr) { return nullptr; }
  self->watch = NewWatch();
  int bad = -1;
  Py_BEGIN_ALLOW_THREADS
  bad = Make(self->watch, ranges, track != 0);
  Py_END_ALLOW_THREADS
  if (bad >= 0) {
    Py_DECREF(self);
    return PyErr_Format(PyExc_ValueError, "WriteWatch: range %d is not readable memory", bad);
  }
  return reinterpret_cast<PyObject*>(self);
}

void Dealloc(PyObject* object) {
  Watch* watch = reinterpret_cast<WriteWatch*>(object)->watch;
  if (watch != nullptr) { Drop(watch); }
  PyTypeObject* type = Py_TYPE(object);
  type->tp_free(object);
  Py_DECREF(type);
}

PyObject* Changed(PyObject* object, PyObject*) {
  Watch* watch = reinterpret_cast<WriteWatch*>(object)->watch;
  std::vector<int> changed;
  Py_BEGIN_ALLOW_THREADS
  changed = ChangedRanges(watch);
  Py_END_ALLOW_THREADS
  PyObject* list = PyList_New(static_cast<Py_ssize_t>(changed.size()));
  for (size_t i = 0; list != nullptr && i < changed.size(); ++i) {
    PyList_SET_ITEM(list, static_cast<Py_ssize_t>(i), PyLong_FromLong(changed[i]));
  }
  return list;
}

PyObject* Tracked(PyObject* object, void*) {
  return PyBool_FromLong(Hashed(reinterpret_cast<WriteWatch*>(object)->watch).second);
}

PyObject* HashedBytes(PyObject* object, void*) {
  return PyLong_FromSize_t(Hashed(reinterpret_cast<WriteWatch*>(object)->watch).first);
}

PyMethodDef methods[] = {
    {"changed", Changed, METH_NOARGS,
     "The indices of the ranges whose content is not what it was when last asked, or when the watch was made."},
    {nullptr, nullptr, 0, nullptr},
};

PyGetSetDef attributes[] = {
    {"tracked", Tracked, nullptr, "False where whole pages have to be hashed in each call.", nullptr},
    {"hashed_bytes", HashedBytes, nullptr, "How many bytes are hashed in each call.", nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr},
};

PyType_Slot slots[] = {
    {Py_tp_new, reinterpret_cast<void*>(New)},
    {Py_tp_dealloc, reinterpret_cast<void*>(Dealloc)},
    {Py_tp_methods, methods},
    {Py_tp_getset, attributes},
    {Py_tp_doc, const_cast<char*>("WriteWatch(ranges, track=True): notices any write to the (address, bytes) ranges.\n"
                                  "The caller keeps them alive.")},
    {0, nullptr},
};

PyType_Spec spec = {"diffusers_oneflow.runtime._native.WriteWatch", sizeof(WriteWatch), 0, Py_TPFLAGS_DEFAULT, slots};

}  // namespace

PyObject* MakeWriteWatchType() { return PyType_FromSpec(&spec); }

}  // namespace dfo
