// Notices writes to memory, whoever makes them, at the price of a few system calls.
#pragma once
#define PY_SSIZE_T_CLEAN
#include <Python.h>

namespace dfo {

// Creates the type `WriteWatch`; nullptr with a Python error set on failure.
PyObject* MakeWriteWatchType();

}  // namespace dfo
