// Softmax over the rows of a matrix.
#include <limits>
#include <memory>
#include <type_traits>

#include "functions.h"
#include "kernels.h"
#include "parallel.h"

namespace dfo::math {
namespace {

// `e`, of `columns` floats, may be x or y. A row that holds NaN or +inf, or -inf alone, becomes NaN: its sum is.
template <class T>
void SoftmaxRow(const T* x, float* e, T* y, int64_t columns) {
  const F lowest = Set(-std::numeric_limits<float>::infinity());
  F largest = lowest;
  ForVectors(columns, [&](int64_t i, auto lanes) { largest = MaxOrB(Choose(Load(x + i, lanes), lowest, lanes), largest); });
  const F m = Set(Largest(largest));
  const double sum = SumOf(columns, [&](int64_t i, auto lanes) {
    const F v = Exp(Load(x + i, lanes) - m);
    Store(e + i, v, lanes);
    return v;
  });
  const F scale = Set(static_cast<float>(1 / sum));
  ForVectors(columns, [&](int64_t i, auto lanes) { Store(y + i, Load(e + i, lanes) * scale, lanes); });
}

}  // namespace

void Softmax(Type type, const void* x, void* y, int64_t rows, int64_t columns) {
  WithType(type, [&](auto tag) {
    using T = decltype(tag);
    constexpr bool kInPlace = std::is_same_v<T, float>;
    ForRanges(rows, rows * columns, [&](int64_t begin, int64_t end) {
      const std::unique_ptr<float[]> buffer(kInPlace ? nullptr : new float[columns]);
      for (int64_t r = begin; r < end; ++r) {
        const T* row = static_cast<const T*>(x) + r * columns;
        T* out = static_cast<T*>(y) + r * columns;
        if constexpr (kInPlace) {
          SoftmaxRow(row, out, out, columns);
        } else {
          SoftmaxRow(row, buffer.get(), out, columns);
        }
      }
    });
  });
}

}  // namespace dfo::math
