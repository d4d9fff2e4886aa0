#include "release.h"

#include <utility>

#include "dropped.h"

namespace dfo {
namespace {

// The Python type. Never waits for the GIL while others wait for memory.
struct Released {
  PyObject_HEAD
  Dropped* dropped;
  PyObject* source;  // the capsule
  unsigned long long address, bytes;
};

Dropped* Of(PyObject* object) { return reinterpret_cast<Released*>(object)->dropped; }

PyObject* New(PyTypeObject* type, PyObject* args, PyObject*) {
  unsigned long long address = 0, bytes = 0;
  PyObject* capsule = nullptr;
  if (!PyArg_ParseTuple(args, "KKO", &address, &bytes, &capsule)) { return nullptr; }
  const auto* source = static_cast<const Source*>(PyCapsule_GetPointer(capsule, kSourceName));
  if (source == nullptr) { return nullptr; }
  auto* self = reinterpret_cast<Released*>(type->tp_alloc(type, 0));
  if (self == nullptr) { return nullptr; }
  Py_INCREF(capsule);
  self->source = capsule;
  self->address = address;
  self->bytes = bytes;
  self->dropped = NewDropped(address, address + bytes, source);
  return reinterpret_cast<PyObject*>(self);
}

void Dealloc(PyObject* object) {
  Dropped* dropped = Of(object);
  // When Python ends, the packed copies stay, and so do those who may still read what they stand for.
  if (_Py_IsFinalizing()) { return; }
  if (dropped != nullptr) {
    Py_BEGIN_ALLOW_THREADS
    DeleteDropped(dropped);
    Py_END_ALLOW_THREADS
  }
  Py_XDECREF(reinterpret_cast<Released*>(object)->source);
  PyTypeObject* type = Py_TYPE(object);
  type->tp_free(object);
  Py_DECREF(type);
}

PyObject* DropIt(PyObject* object, PyObject*) {
  Outcome outcome = Outcome::kRefused;
  Py_BEGIN_ALLOW_THREADS
  outcome = Drop(Of(object));
  Py_END_ALLOW_THREADS
  const char* names[] = {"dropped", "changed", "refused"};
  return PyUnicode_FromString(names[static_cast<int>(outcome)]);
}

PyObject* GiveItBack(PyObject* object, PyObject*) {
  Py_BEGIN_ALLOW_THREADS
  GiveBack(Of(object));
  Py_END_ALLOW_THREADS
  Py_RETURN_NONE;
}

PyObject* IsTouched(PyObject* object, void*) { return PyBool_FromLong(Touched(Of(object))); }

PyObject* WhyRefused(PyObject* object, void*) {
  const char* why = Refusal(Of(object));
  return PyUnicode_FromString(why == nullptr ? "" : why);
}

PyObject* Bytes(PyObject* object, void*) {
  size_t bytes = 0;
  Py_BEGIN_ALLOW_THREADS
  bytes = DroppedBytes(Of(object));
  Py_END_ALLOW_THREADS
  return PyLong_FromSize_t(bytes);
}

PyObject* Edges(PyObject* object, void*) {
  const auto* self = reinterpret_cast<Released*>(object);
  const std::pair<uintptr_t, uintptr_t> whole = Extent(self->dropped);
  const unsigned long long end = self->address + self->bytes;
  if (whole.first >= whole.second) { return Py_BuildValue("((KK))", self->address, self->bytes); }
  return Py_BuildValue("((KK)(KK))", self->address, whole.first - self->address, static_cast<unsigned long long>(whole.second),
                       end - whole.second);
}

PyMethodDef methods[] = {
    {"drop", DropIt, METH_NOARGS,
     "Drop what is in memory: \"dropped\"; \"changed\" if its content is not the source's, or \"refused\": then all of it is\n"
     "in memory again."},
    {"give_back", GiveItBack, METH_NOARGS, "Ordinary memory, all of it, until the next drop()."},
    {nullptr, nullptr, 0, nullptr},
};

PyGetSetDef attributes[] = {
    {"touched", IsTouched, nullptr, "Whether anybody read or wrote any of it since drop().", nullptr},
    {"refusal", WhyRefused, nullptr, "Why the last drop() was \"refused\", in a few words; empty if it was not.", nullptr},
    {"bytes", Bytes, nullptr, "How many bytes are dropped now.", nullptr},
    {"edges", Edges, nullptr, "((address, bytes), ...) of what is never dropped: it shares pages with its neighbours.", nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr},
};

PyType_Slot slots[] = {
    {Py_tp_new, reinterpret_cast<void*>(New)},
    {Py_tp_dealloc, reinterpret_cast<void*>(Dealloc)},
    {Py_tp_methods, methods},
    {Py_tp_getset, attributes},
    {Py_tp_doc, const_cast<char*>("Released(address, bytes, source): memory that can be dropped, and comes back when anybody\n"
                                  "touches it. The caller keeps it, and what the source reads, alive.")},
    {0, nullptr},
};

PyType_Spec spec = {"diffusers_oneflow.runtime._native.Released", sizeof(Released), 0, Py_TPFLAGS_DEFAULT, slots};

}  // namespace

PyObject* MakeReleasedType() { return PyType_FromSpec(&spec); }

}  // namespace dfo
