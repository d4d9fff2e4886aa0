// GEGLU and its relatives: one half of a row times an activation of the other.
#include "functions.h"
#include "kernels.h"
#include "parallel.h"

namespace dfo::math {

void Gated(Type type, const void* x, void* y, int64_t rows, int64_t columns, Act act, bool gate_first) {
  WithType(type, [&](auto tag) {
    using T = decltype(tag);
    WithAct(act, [&](auto function) {
      ForRanges(rows, rows * columns, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
          const T* row = static_cast<const T*>(x) + r * 2 * columns;
          const T* value = gate_first ? row + columns : row;
          const T* gate = gate_first ? row : row + columns;
          T* out = static_cast<T*>(y) + r * columns;
          ForVectors(columns, [&](int64_t i, auto lanes) {
            Store(out + i, Load(value + i, lanes) * function(Load(gate + i, lanes)), lanes);
          });
        }
      });
    });
  });
}

}  // namespace dfo::math
