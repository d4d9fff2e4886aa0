// Watches what a module's structure is made of, at the price of reading a few numbers each.
#pragma once
#define PY_SSIZE_T_CLEAN
#include <Python.h>

namespace dfo {

// Creates the type `StructureWatch`; nullptr with a Python error set on failure.
PyObject* MakeStructureWatchType();

}  // namespace dfo
