// The memory-bound kernels, as plain functions on plain pointers: nothing here knows of OneFlow or torch.
//
// The same sources are compiled once per instruction set, each time into a library of its own that exports
// dfo_math(); the pack loads the one that the processor runs. Every function works on all threads of the
// calling thread's OpenMP team, whose library is the one that torch has loaded: no second thread pool.
// Half types are read and written as they are and computed in float32.
#pragma once
#include <cstdint>

namespace dfo::math {

enum class Type : int32_t { kFloat = 0, kBFloat16 = 1, kHalf = 2 };

// What is applied to a result before it is stored. kGelu is the exact one (erf).
enum class Act : int32_t { kNone = 0, kSilu = 1, kGelu = 2, kGeluTanh = 3, kQuickGelu = 4, kRelu = 5, kSigmoid = 6, kTanh = 7 };

// One elementwise operation of a chain. `a` and `b` name values: operands first (0 ... operands-1), then the
// results of the instructions before, in order. Comparisons and selections are left to OneFlow.
// clang-format off
enum class Code : int32_t {
  kAdd = 0, kSub = 1, kMul = 2, kDiv = 3, kMax = 4, kMin = 5,              // a, b
  kAddScalar = 6, kMulScalar = 7, kRsubScalar = 8, kRdivScalar = 9,         // a, value: a + v, a * v, v - a, v / a
  kMaxScalar = 10, kMinScalar = 11, kPowScalar = 12,                        // a, value
  kAct = 13,                                                               // a, value = an Act
  kExp = 14, kLog = 15, kSqrt = 16, kRsqrt = 17, kSin = 18, kCos = 19, kNeg = 20, kAbs = 21, kSquare = 22, kErf = 23,
};
// clang-format on

struct Instruction {
  Code code;
  int32_t a, b;
  float value;
};

// A tensor that a chain reads, by strides in elements (0 where it is broadcast).
struct Operand {
  const void* data;
  Type type;
  int64_t strides[6];
};

struct Chain {
  const Operand* operands;
  int32_t operand_count;
  const Instruction* instructions;
  int32_t instruction_count;  // the last one's value is the result
  int32_t ndim;               // 1 to 6
  int64_t sizes[6];
  void* y;  // dense
  Type y_type;
};

struct Table {
  // Over groups of channels and all positions; x and y (n, positions, channels) if channels_last, else
  // (n, channels, positions). weight and bias (channels) may be null. eps as in torch; biased variance, two passes.
  void (*group_norm)(Type type, const void* x, const void* weight, const void* bias, void* y, int64_t n, int64_t positions,
                     int64_t channels, int64_t groups, double eps, Act act, bool channels_last);
  // Rows of a dense (rows, columns) tensor; weight and bias (columns) may be null.
  void (*layer_norm)(Type type, const void* x, const void* weight, const void* bias, void* y, int64_t rows, int64_t columns,
                     double eps);
  void (*rms_norm)(Type type, const void* x, const void* weight, void* y, int64_t rows, int64_t columns, double eps);
  void (*softmax)(Type type, const void* x, void* y, int64_t rows, int64_t columns);
  // x (rows, 2 * columns) -> y (rows, columns): first half * act(second half), the halves swapped if gate_first.
  void (*gated)(Type type, const void* x, void* y, int64_t rows, int64_t columns, Act act, bool gate_first);
  // Any permutation, slice or broadcast: y dense in `sizes`, x read by `strides` in elements of `item` bytes (1, 2, 4, 8).
  void (*copy)(int64_t item, const void* x, void* y, int32_t ndim, const int64_t* sizes, const int64_t* strides);
  // y (rows, sum of parts) from parts of `bytes[i]` bytes a row.
  void (*concat)(const void* const* parts, const int64_t* bytes, int32_t count, int64_t rows, void* y);
  // Nearest neighbour on (n, h, w, pixel_bytes) -> (n, oh, ow, pixel_bytes): source index floor(i * h / oh), as torch.
  void (*upsample_nearest)(int64_t pixel_bytes, const void* x, void* y, int64_t n, int64_t h, int64_t w, int64_t oh, int64_t ow);
  // Rows of a table by int64 ids; false if an id is outside of it (nothing is read there).
  bool (*embedding)(const void* table, const int64_t* ids, void* y, int64_t count, int64_t row_bytes, int64_t rows);
  void (*cast)(Type from, Type to, const void* x, void* y, int64_t count);
  void (*chain)(const Chain& chain);
};

}  // namespace dfo::math

extern "C" const dfo::math::Table* dfo_math();
