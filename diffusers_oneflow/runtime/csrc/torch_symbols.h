// Finds functions of torch's stable C interface in the libtorch_cpu that Python has loaded; nothing is linked.
#pragma once

#include <dlfcn.h>

#include <initializer_list>
#include <string>

namespace dfo {

struct TorchSymbol {
  const char* name;
  void** function;
};

// Sets every function; returns the name of one that this torch lacks, or "".
inline std::string FindInTorch(std::initializer_list<TorchSymbol> wanted) {
  void* library = dlopen("libtorch_cpu.so", RTLD_NOW | RTLD_NOLOAD);
  if (library == nullptr) { return "libtorch_cpu.so"; }
  for (const TorchSymbol& item : wanted) {
    *item.function = dlsym(library, item.name);
    if (*item.function == nullptr) { return item.name; }
  }
  return "";
}

}  // namespace dfo
