// Mean and variance, to about the precision of double: what is far from the mean of its neighbours is summed in float32,
// the means themselves are not.
#pragma once
#include <algorithm>

#include "vec.h"

namespace dfo::math {

struct Moments {
  double mean = 0;
  double squares = 0;  // of the deviations from the mean, summed
  int64_t count = 0;

  // Chan's formula.
  void Add(const Moments& other) {
    const double delta = other.mean - mean, share = static_cast<double>(other.count) / (count + other.count);
    mean += delta * share;
    squares += other.squares + delta * delta * share * count;
    count += other.count;
  }
};

// Reads x once from memory, and each block of it twice from the first-level cache: for a mean to begin with, and for the
// deviations from that, whose own mean corrects it. A constant row thus has no variance at all.
template <class T>
inline Moments Measure(const T* x, int64_t count) {
  constexpr int64_t kBlock = 4096;
  Moments all;
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const T* block = x + begin;
    const int64_t size = std::min(kBlock, count - begin);
    const float mean = static_cast<float>(SumOf(size, [=](int64_t i, auto lanes) { return Load(block + i, lanes); }) / size);
    F d0 = Set(0), d1 = d0, s0 = d0, s1 = d0;
    const auto add = [&](F& d, F& s, int64_t i, auto lanes) {
      const F v = Choose(Load(block + i, lanes) - mean, Set(0), lanes);
      d += v;
      s = Fma(v, v, s);
    };
    int64_t i = 0;
    for (; i + 2 * kWidth <= size; i += 2 * kWidth) {
      add(d0, s0, i, All{});
      add(d1, s1, i + kWidth, All{});
    }
    ForVectors(size - i, [&](int64_t k, auto lanes) { add(d0, s0, i + k, lanes); });
    const double off = static_cast<double>(Sum(d0 + d1)) / size;
    all.Add({mean + off, std::max(Sum(s0 + s1) - off * off * size, 0.0), size});
  }
  return all;
}

}  // namespace dfo::math
