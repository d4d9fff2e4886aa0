// What table.cpp puts into the table; math.h says what each does.
#pragma once
#include "math.h"

namespace dfo::math {

void GroupNorm(Type type, const void* x, const void* weight, const void* bias, void* y, int64_t n, int64_t positions,
               int64_t channels, int64_t groups, double eps, Act act, bool channels_last);
void LayerNorm(Type type, const void* x, const void* weight, const void* bias, void* y, int64_t rows, int64_t columns,
               double eps);
void RmsNorm(Type type, const void* x, const void* weight, void* y, int64_t rows, int64_t columns, double eps);
void Softmax(Type type, const void* x, void* y, int64_t rows, int64_t columns);
void Gated(Type type, const void* x, void* y, int64_t rows, int64_t columns, Act act, bool gate_first);
void Copy(int64_t item, const void* x, void* y, int32_t ndim, const int64_t* sizes, const int64_t* strides);
void Concat(const void* const* parts, const int64_t* bytes, int32_t count, int64_t rows, void* y);
void UpsampleNearest(int64_t pixel_bytes, const void* x, void* y, int64_t n, int64_t h, int64_t w, int64_t oh, int64_t ow);
bool Embedding(const void* table, const int64_t* ids, void* y, int64_t count, int64_t row_bytes, int64_t rows);
void Cast(Type from, Type to, const void* x, void* y, int64_t count);
void RunChain(const Chain& chain);

}  // namespace dfo::math
