// What follows a product before its result is stored.
#pragma once
#include <algorithm>

#include "functions.h"
#include "panels.h"

namespace dfo::math {

// kColumns columns of a row of the result, from `first` on: `act` is the product's activation, or that of its gate, whose
// columns are `gate`.
template <class Activate>
inline void FinishColumns(const Product& p, const Activate& act, int64_t row, int64_t first, const float* c, const float* gate) {
  const int64_t columns = gate != nullptr ? p.filter.n / 2 : p.filter.n;
  float* y = p.y + row * columns + first;
  const float* bias = p.bias == nullptr ? nullptr : p.bias + first;
  const float* residual = p.residual == nullptr ? nullptr : p.residual + row * columns + first;
  ForVectors(std::min(kColumns, columns - first), [&](int64_t j, auto lanes) {
    F value = Load(c + j, lanes);
    if (bias != nullptr) { value += Load(bias + j, lanes); }
    if (gate != nullptr) {
      F other = Load(gate + j, lanes);
      if (bias != nullptr) { other += Load(bias + columns + j, lanes); }
      value *= act(other);
    } else {
      if (p.act_first) { value = act(value); }
      if (residual != nullptr) { value += Load(residual + j, lanes); }
      if (!p.act_first) { value = act(value); }
    }
    Store(y + j, value, lanes);
  });
}

}  // namespace dfo::math
