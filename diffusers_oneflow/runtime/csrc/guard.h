// Watches dictionaries for changes at the price of reading one number each.
#pragma once
#define PY_SSIZE_T_CLEAN
#include <Python.h>

namespace dfo {

// Creates the type `DictWatch`; nullptr with a Python error set on failure.
PyObject* MakeDictWatchType();

}  // namespace dfo
