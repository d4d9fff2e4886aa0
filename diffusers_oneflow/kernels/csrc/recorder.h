// The op `dfo_recorded`, of devices whose kernels are launched from Python: what it computes is known there by its number.
//
// Running it only writes down where its inputs and its output lie. OneFlow keeps the buffers of a graph where they are, so what
// was written down once can be captured, as a CUDA graph say, and replayed without OneFlow's scheduler.
#pragma once

#include <cstdint>
#include <vector>

namespace dfo {

constexpr const char* kRecordedOp = "dfo_recorded";

struct Record {
  int64_t number;  // the op's first parameter
  std::vector<const void*> in;
  void* out;
};

// Registers the op and its kernels for the CPU and for CUDA with OneFlow; false if OneFlow refused.
bool RegisterRecorded();

// What was run since the last call, in order.
std::vector<Record> TakeRecords();

}  // namespace dfo
