// The numbers of x that a row of a product's result is made of.
#pragma once
#include <algorithm>

#include "ahead.h"
#include "panels.h"
#include "vec.h"

namespace dfo::math {

// kKernel x kKernel pixels of kCount numbers each; `line` and `step` lead to the next row and the next pixel.
template <int kKernel, int kCount>
inline void CopyPixels(const float* __restrict from, int64_t line, int64_t step, float* __restrict to) {
#pragma GCC unroll 3
  for (int ky = 0; ky < kKernel; ++ky) {
#pragma GCC unroll 3
    for (int kx = 0; kx < kKernel; ++kx) {
      const float* pixel = from + ky * line + kx * step;
#pragma GCC unroll 2
      for (int i = 0; i < kCount; i += kWidth) { Store(to + (ky * kKernel + kx) * kCount + i, Load(pixel + i, All{}), All{}); }
    }
    // The same pixels are wanted for the next block.
    _mm_prefetch(reinterpret_cast<const char*>(from + ky * line + kCount), _MM_HINT_T1);
  }
}

// What of the pixels from (top, left) on is inside the image, and zeros.
inline void CopyInside(const Product& p, const float* from, int64_t top, int64_t left, int64_t channels, float* to) {
  const int64_t line = p.dilation[0] * p.w * p.filter.c, step = p.dilation[1] * p.filter.c;
  for (int64_t ky = 0; ky < p.filter.kh; ++ky) {
    const int64_t y = top + ky * p.dilation[0];
    for (int64_t kx = 0; kx < p.filter.kw; ++kx, to += channels) {
      const int64_t at = left + kx * p.dilation[1];
      const bool inside = y >= 0 && y < p.h && at >= 0 && at < p.w;
      const float* pixel = from + ky * line + kx * step;
      ForVectors(channels, [&](int64_t i, auto lanes) { Store(to + i, inside ? Load(pixel + i, lanes) : Set(0), lanes); });
    }
  }
}

// For each of `count` rows of the result from `row` on: what the channels [first, first + channels) of the filter meet, as
// (tap, channel), is written to place(r), r = 0, 1, ..., zeros for what lies outside of the image; then done(r, that).
template <class Place, class Done>
inline void GatherRows(const Product& p, int64_t first, int64_t channels, int64_t row, int64_t count, const Place& place,
                       const Done& done) {
  constexpr int kCommon = kDepth / 9;
  const Filter& f = p.filter;
  const int64_t line = p.dilation[0] * p.w * f.c, step = p.dilation[1] * f.c;
  const bool common = f.kh == 3 && f.kw == 3 && channels == kCommon;
  int64_t ox = row % p.ow, oy = row / p.ow % p.oh, image = row / p.ow / p.oh;
  for (int64_t r = 0; r < count; ++r) {
    float* to = place(r);
    const int64_t top = oy * p.stride[0] - p.padding[0], left = ox * p.stride[1] - p.padding[1];
    const float* from = p.x + first + ((image * p.h + top) * p.w + left) * f.c;
    if (common && top >= 0 && left >= 0 && top + 2 * p.dilation[0] < p.h && left + 2 * p.dilation[1] < p.w) {
      CopyPixels<3, kCommon>(from, line, step, to);
    } else {
      CopyInside(p, from, top, left, channels, to);
    }
    done(r, to);
    if (++ox == p.ow) {
      ox = 0;
      if (++oy == p.oh) { oy = 0, ++image; }
    }
  }
}

// Rows of a product, gathered one by one as Tiles multiplies them.
template <class Tiles>
class Gathered {
 public:
  Gathered(const Product& p, const Blocks& blocks) : p_(p), blocks_(blocks) {}

  // `rows` rows take RowBytes() each and ExtraBytes(rows) more.
  int64_t RowBytes() const { return Tiles::RowBytes(blocks_.Depth(0)); }
  int64_t ExtraBytes(int64_t) const { return Tiles::kRows * RowBytes(); }
  // What part of a row is gathered of its own.
  double Share() const { return 1; }

  // The numbers that a block of the filter meets, of `count` rows from `row` on. False where one is not finite, and Tiles
  // needs it to be.
  bool Fill(int64_t block, int64_t row, int64_t count, char* memory) {
    memory_ = memory;
    const int64_t depth = blocks_.Depth(block);
    bool fine = true;
    GatherRows(
        p_, block * blocks_.channels, blocks_.Channels(block), row, count, [&](int64_t r) { return Tiles::Row(memory, r); },
        [&](int64_t r, const float* to) { fine &= Tiles::Put(to, depth, memory, r); });
    for (int64_t r = count; r % Tiles::kRows != 0; ++r) {
      float* to = Tiles::Row(memory, r);
      std::fill(to, to + depth, 0.0f);
      Tiles::Put(to, depth, memory, r);
    }
    return fine;
  }

  // out = or += `rows` of them, from the `first` on, times a part of the block: see Tiles::Multiply.
  void Multiply(int64_t first, int rows, const char* block, int64_t begin, int64_t depth, bool add, float* out, Ahead* next,
                typename Tiles::Sums* sums) const {
    Tiles::Multiply(memory_, first, rows, block, begin, depth, add, out, next, sums);
  }

 private:
  const Product& p_;
  const Blocks& blocks_;
  char* memory_ = nullptr;
};

}  // namespace dfo::math
