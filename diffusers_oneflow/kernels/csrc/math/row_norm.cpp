// Layer norm and RMS norm: a row stays in the first-level cache, so reading it again costs little.
#include <cmath>

#include "kernels.h"
#include "moments.h"
#include "parallel.h"
#include "vec.h"

namespace dfo::math {
namespace {

// y = (x - mean) * scale * weight + bias
template <class T>
void ScaleRow(const T* x, const T* weight, const T* bias, T* y, int64_t columns, double mean, double scale) {
  const F m = Set(static_cast<float>(mean)), s = Set(static_cast<float>(scale));
  ForVectors(columns, [&](int64_t i, auto lanes) {
    F v = (Load(x + i, lanes) - m) * s;
    if (weight != nullptr) { v = v * Load(weight + i, lanes); }
    if (bias != nullptr) { v = v + Load(bias + i, lanes); }
    Store(y + i, v, lanes);
  });
}

}  // namespace

void LayerNorm(Type type, const void* x, const void* weight, const void* bias, void* y, int64_t rows, int64_t columns,
               double eps) {
  WithType(type, [&](auto tag) {
    using T = decltype(tag);
    ForRanges(rows, rows * columns, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        const T* row = static_cast<const T*>(x) + r * columns;
        const Moments moments = Measure(row, columns);
        ScaleRow(row, static_cast<const T*>(weight), static_cast<const T*>(bias), static_cast<T*>(y) + r * columns, columns,
                 moments.mean, 1 / std::sqrt(moments.squares / columns + eps));
      }
    });
  });
}

void RmsNorm(Type type, const void* x, const void* weight, void* y, int64_t rows, int64_t columns, double eps) {
  WithType(type, [&](auto tag) {
    using T = decltype(tag);
    ForRanges(rows, rows * columns, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        const T* row = static_cast<const T*>(x) + r * columns;
        const double squares = SumOf(columns, [&](int64_t i, auto lanes) {
          const F v = Load(row + i, lanes);
          return v * v;
        });
        ScaleRow<T>(row, static_cast<const T*>(weight), nullptr, static_cast<T*>(y) + r * columns, columns, 0,
                    1 / std::sqrt(squares / columns + eps));
      }
    });
  });
}

}  // namespace dfo::math
