// The pixels of a 3 x 3 convolution, split once for the nine taps that they meet.
#pragma once
#if defined(__AMX_BF16__)
#include <algorithm>

#include "tile_amx.h"

namespace dfo::math {

// What gather.h says of Gathered, where 16 neighbours of the result meet 16 neighbours of x in every tap: a tile of rows is
// then 16 pixels side by side, and the tile of the next tap begins one pixel, or one line, further. Lines lie in memory as
// (line, part, pixel), with their padding; a pixel of a part is the kStep channels of a block.
class Lines {
 public:
  static bool Fit(const Product& p) {
    const Filter& f = p.filter;
    const auto ones = [](const int64_t* pair) { return pair[0] == 1 && pair[1] == 1; };
    return f.kh == kTaps && f.kw == kTaps && ones(p.stride) && ones(p.dilation) && p.ow % 16 == 0 && f.c % kStep == 0
           && Blocks(f).channels == kStep && kTaps * LineBytes(p) <= kLargest;
  }

  Lines(const Product& p, const Blocks&) : p_(p), part_((p.ow + kTaps - 1) * 64), line_(LineBytes(p)) {}

  int64_t RowBytes() const { return CeilDiv(line_, p_.ow); }
  // Lines above and below, and a line begun; for every image that a run of rows may reach.
  int64_t ExtraBytes(int64_t rows) const { return (kTaps + (kTaps - 1) * (rows / (p_.oh * p_.ow) + 1)) * line_; }
  double Share() const { return 2.0 / (kTaps * kTaps); }

  bool Fill(int64_t block, int64_t row, int64_t count, char* memory) {
    memory_ = memory, row_ = row, first_line_ = Line(row);
    const int64_t last_line = Line(row + count - 1) + kTaps - 1;
    const bool inside = first_line_ + kTaps - 1 == last_line;
    const int64_t begin = inside ? row % p_.ow : 0, end = (inside ? begin + count : p_.ow) + kTaps - 1;
    amx::Finite finite;
    for (int64_t line = first_line_; line <= last_line; ++line, memory += line_) {
      const int64_t image = line / (p_.oh + kTaps - 1), y = line % (p_.oh + kTaps - 1) - p_.padding[0];
      const float* from = p_.x + ((image * p_.h + y) * p_.w - p_.padding[1]) * p_.filter.c + block * kStep;
      for (int64_t i = begin; i < end; ++i) {
        const bool padding = y < 0 || y >= p_.h || i < p_.padding[1] || i >= p_.w + p_.padding[1];
        const float* pixel = from + i * p_.filter.c;
        const amx::Parts a(padding ? Set(0) : Load(pixel, All{})), b(padding ? Set(0) : Load(pixel + 16, All{}));
        finite.See(a), finite.See(b);
        amx::StorePairs(a, b, memory + i * 64, part_);
      }
    }
    return finite.all();
  }

  void Multiply(int64_t first, int rows, const char* block, int64_t begin, int64_t depth, bool add, float* out, Ahead* next,
                amx::Sums* sums) const {
    // A part of the block is the three taps of a line.
    static_assert(AmxTiles::kPart == kTaps * kStep);
    const int64_t line = begin / AmxTiles::kPart * line_;
    const char *a = Pixel(row_ + first) + line, *b = rows > 16 ? Pixel(row_ + first + 16) + line : nullptr;
    AmxTiles::Multiply(a, b, {64, part_}, block, begin, depth, add, out, next, sums);
  }

 private:
  static constexpr int64_t kTaps = 3, kLargest = 640 << 10;

  static int64_t LineBytes(const Product& p) { return amx::kParts * (p.ow + kTaps - 1) * 64; }

  // Images lie one below the other, each with its padding: the line of x that a row's first tap meets.
  int64_t Line(int64_t row) const { return row / p_.ow + row / (p_.oh * p_.ow) * (kTaps - 1); }
  const char* Pixel(int64_t row) const { return memory_ + (Line(row) - first_line_) * line_ + row % p_.ow * 64; }

  const Product& p_;
  int64_t part_, line_;
  const char* memory_ = nullptr;
  int64_t row_ = 0, first_line_ = 0;
};

}  // namespace dfo::math
#endif
