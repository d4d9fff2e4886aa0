// How a packed filter lies in memory.
#pragma once
#include <algorithm>
#include <cstdint>

#include "product.h"

namespace dfo::math {

// The packed filter consists of panels of kColumns columns; a panel of blocks of at most kDepth numbers per column, in
// the order (channels of the block, a few at a time), tap, channel; a row of a block has one number for each column.
constexpr int64_t kColumns = 32;
constexpr int64_t kDepth = 144;  // MOST_TAPS of passes/channels_last.py

inline int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// How the c channels and the taps of a filter fall into blocks.
struct Blocks {
  explicit Blocks(const Filter& f) : taps(f.kh * f.kw), c(f.c) {
    // Even parts, of a multiple of 4 channels where there are more.
    channels = std::max<int64_t>(1, kDepth / taps);
    if (channels >= 4) { channels = std::min(channels / 4 * 4, CeilDiv(CeilDiv(c, CeilDiv(c, channels / 4 * 4)), 4) * 4); }
    count = CeilDiv(c, channels);
  }
  int64_t Channels(int64_t block) const { return std::min(channels, c - block * channels); }
  int64_t Depth(int64_t block) const { return taps * Channels(block); }
  int64_t Offset(int64_t block) const { return block * channels * taps * kColumns; }
  int64_t PanelSize() const { return c * taps * kColumns; }

  int64_t taps, c, channels, count;
};

// Of product.cpp: the block of a panel, from the filter as it lies in memory.
void PackBlock(const Filter& f, const Blocks& blocks, int64_t panel, int64_t block, float* out);

// Of unpack.cpp: see Products.
void Unpack(const Filter& f, const float* packed, float* data);
bool Ordered(const Filter& f);
void UnpackRange(const Filter& f, const float* packed, int64_t first, int64_t count, float* out);
bool SameRange(const Filter& f, const float* packed, int64_t first, int64_t count, const float* data);

}  // namespace dfo::math
