// Drops memory whose content can be computed, for Python.
#pragma once
#define PY_SSIZE_T_CLEAN
#include <Python.h>

namespace dfo {

// Creates the type `Released`; nullptr with a Python error set on failure.
PyObject* MakeReleasedType();

}  // namespace dfo
