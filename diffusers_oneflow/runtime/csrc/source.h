// Where the content of dropped memory comes from; the kernel pack has one for each way of packing.
#pragma once

#include <cstddef>

namespace dfo {

struct Source {
  // Writes `bytes` bytes of the memory's content, from byte `at` on. Called on a thread that others wait for in a page
  // fault: it must neither allocate nor lock nor read memory that may be dropped.
  void (*read)(const Source* self, size_t at, size_t bytes, char* out);
  // Whether that content is `data`, to the bit. Called on ordinary threads.
  bool (*same)(const Source* self, size_t at, size_t bytes, const char* data);
  void (*destroy)(Source* self);
};

// The name of the Python capsules that hold one.
constexpr const char* kSourceName = "diffusers_oneflow.Source";

}  // namespace dfo
