// The Python module diffusers_oneflow.runtime._native. Import it after oneflow.
#include <cstring>
#include <utility>

#include "arena.h"
#include "dropped.h"
#include "guard.h"
#include "huge.h"
#include "leftovers.h"
#include "race.h"
#include "release.h"
#include "watch.h"

namespace {

PyObject* Install(PyObject*, PyObject*) {
  const bool race = dfo::InstallRaceCure();
  const bool arena = dfo::InstallArena();
  const bool leftovers = dfo::InstallLeftovers();
  return Py_BuildValue("(OOO)", race ? Py_True : Py_False, arena ? Py_True : Py_False, leftovers ? Py_True : Py_False);
}

PyObject* BeginGraph(PyObject*, PyObject* arg) {
  const long long graph = PyLong_AsLongLong(arg);
  if (graph == -1 && PyErr_Occurred()) { return nullptr; }
  dfo::BeginGraph(graph);
  Py_RETURN_NONE;
}

PyObject* EndGraph(PyObject*, PyObject*) {
  const dfo::GraphMemory m = dfo::EndGraph();
  return Py_BuildValue("{s:n,s:n,s:n,s:O}", "planned", m.planned, "unplanned", m.unplanned, "owned", m.owned, "linear",
                       m.linear ? Py_True : Py_False);
}

PyObject* DropLeftovers(PyObject*, PyObject* arg) {
  const char* job_name = PyUnicode_AsUTF8(arg);
  if (job_name == nullptr) { return nullptr; }
  dfo::DropLeftovers(job_name);
  Py_RETURN_NONE;
}

PyObject* DropRegisters(PyObject*, PyObject* arg) {
  const char* job_name = PyUnicode_AsUTF8(arg);
  if (job_name == nullptr) { return nullptr; }
  dfo::DropRegisters(job_name);
  Py_RETURN_NONE;
}

PyObject* ReleaseGraph(PyObject*, PyObject* arg) {
  const long long graph = PyLong_AsLongLong(arg);
  if (graph == -1 && PyErr_Occurred()) { return nullptr; }
  dfo::ReleaseGraph(graph);
  Py_RETURN_NONE;
}

PyObject* ArenaBytes(PyObject*, PyObject*) { return PyLong_FromSize_t(dfo::ArenaBytes()); }

PyObject* RaceWaits(PyObject*, PyObject*) { return PyLong_FromLong(dfo::RaceWaits()); }

PyObject* CopyBytes(PyObject*, PyObject* args) {
  unsigned long long to = 0, from = 0, bytes = 0;
  if (!PyArg_ParseTuple(args, "KKK", &to, &from, &bytes)) { return nullptr; }
  std::memcpy(reinterpret_cast<void*>(to), reinterpret_cast<const void*>(from), bytes);
  Py_RETURN_NONE;
}

PyObject* ReleaseRefusal(PyObject*, PyObject*) {
  std::string reason;
  Py_BEGIN_ALLOW_THREADS
  reason = dfo::DroppingRefusal();
  Py_END_ALLOW_THREADS
  return PyUnicode_FromString(reason.c_str());
}

PyObject* CollapsePages(PyObject*, PyObject* args) {
  PyObject* list = nullptr;
  int wait = 0;
  if (!PyArg_ParseTuple(args, "O!p", &PyList_Type, &list, &wait)) { return nullptr; }
  dfo::Ranges ranges;
  for (Py_ssize_t i = 0; i < PyList_Size(list); ++i) {
    unsigned long long address = 0, bytes = 0;
    if (!PyArg_ParseTuple(PyList_GetItem(list, i), "KK", &address, &bytes)) { return nullptr; }
    ranges.emplace_back(address, address + bytes);
  }
  size_t done = 0;
  Py_BEGIN_ALLOW_THREADS
  if (wait) {
    done = dfo::CollapsePages(std::move(ranges));
  } else {
    dfo::CollapsePagesLater(std::move(ranges));
  }
  Py_END_ALLOW_THREADS
  return PyLong_FromSize_t(done);
}

PyObject* Fills(PyObject*, PyObject*) { return PyLong_FromUnsignedLongLong(dfo::Fills()); }

// Takes the type, which may be nullptr.
bool AddType(PyObject* self, const char* name, PyObject* type) {
  if (type != nullptr && PyModule_AddObject(self, name, type) == 0) { return true; }
  Py_XDECREF(type);
  return false;
}

PyMethodDef methods[] = {
    {"install", Install, METH_NOARGS, "Redirect OneFlow's calls: (race cure, arena, leftovers) are installed."},
    {"begin_graph", BeginGraph, METH_O, "begin_graph(id): this thread compiles that graph until end_graph()."},
    {"end_graph", EndGraph, METH_NOARGS, "end_graph() -> dict of the graph's bytes."},
    {"drop_leftovers", DropLeftovers, METH_O, "drop_leftovers(job name): free what only the build of that graph needed."},
    {"drop_registers", DropRegisters, METH_O,
     "drop_registers(job name): free the registers of a graph whose C++ object is gone."},
    {"release_graph", ReleaseGraph, METH_O, "release_graph(id): free the memory of a graph whose C++ object is gone."},
    {"arena_bytes", ArenaBytes, METH_NOARGS, "Bytes of the shared arena that graphs need now."},
    {"copy_bytes", CopyBytes, METH_VARARGS, "copy_bytes(to, from, bytes): addresses of memory that must not overlap."},
    {"release_refusal", ReleaseRefusal, METH_NOARGS, "Why memory cannot be released here, and what to do; empty if it can."},
    {"collapse_pages", CollapsePages, METH_VARARGS,
     "collapse_pages([(address, bytes), ...], wait) -> bytes: move memory into huge pages; on a thread of its own, and 0, unless\n"
     "it is to wait."},
    {"fills", Fills, METH_NOARGS, "How often released memory was filled again."},
    {"race_waits", RaceWaits, METH_NOARGS, "How often the race of nn.Graph was seen and waited out."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_native", "What makes the stock OneFlow 0.9.0 wheel safe to run.", -1, methods};

}  // namespace

PyMODINIT_FUNC PyInit__native() {
  PyObject* self = PyModule_Create(&module);
  if (self == nullptr) { return nullptr; }
  if (!AddType(self, "StructureWatch", dfo::MakeStructureWatchType()) || !AddType(self, "WriteWatch", dfo::MakeWriteWatchType())
      || !AddType(self, "Released", dfo::MakeReleasedType())) {
    Py_DECREF(self);
    return nullptr;
  }
  return self;
}
