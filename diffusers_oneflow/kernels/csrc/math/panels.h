// How a packed filter lies in memory.
#pragma once
#include <algorithm>
#include <cstdint>

#include "product.h"

namespace dfo::math {

// The packed filter consists of panels of kColumns columns; a panel of blocks of at most kDepth numbers per column, in
// the order (channels of the block, a few at a time), tap, channel; a row of a block has one number for each column.
constexpr int64_t kColumns = 32;
// A block holds at least the MOST_TAPS of passes/channels_last.py, and where there are enough channels a multiple of kStep.
#if defined(__AMX_BF16__)
constexpr int64_t kDepth = 288, kStep = 32;
#else
constexpr int64_t kDepth = 144, kStep = 4;
#endif

inline int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Whether the numbers of a column lie side by side, as (channel, tap).
inline bool InTorchOrder(const Filter& f) {
  const int64_t taps = f.kh * f.kw;
  return f.strides[1] == taps && (taps == 1 || (f.strides[3] == 1 && f.strides[2] == f.kw));
}

// How the c channels and the taps of a filter fall into blocks.
struct Blocks {
  explicit Blocks(const Filter& f) : taps(f.kh * f.kw), c(f.c) {
    // Even parts, of a multiple of kStep channels where there are more.
    channels = std::max<int64_t>(1, kDepth / taps);
    const int64_t step = channels >= kStep ? kStep : 4;
    if (channels >= step) {
      channels = std::min(channels / step * step, CeilDiv(CeilDiv(c, CeilDiv(c, channels / step * step)), step) * step);
    }
    count = CeilDiv(c, channels);
  }
  int64_t Channels(int64_t block) const { return std::min(channels, c - block * channels); }
  int64_t Depth(int64_t block) const { return taps * Channels(block); }
  int64_t Offset(int64_t block) const { return block * channels * taps * kColumns; }
  int64_t PanelSize() const { return c * taps * kColumns; }

  int64_t taps, c, channels, count;
};

// The block of a panel, from the filter as it lies in memory.
void PackBlock(const Filter& f, const Blocks& blocks, int64_t panel, int64_t block, float* out);

// See Products.
int64_t PackedBytes(const Filter& f);
void Pack(const Filter& f, float* packed);

// Of unpack.cpp: see Products.
void Unpack(const Filter& f, const float* packed, float* data);
bool Ordered(const Filter& f);
void UnpackRange(const Filter& f, const float* packed, int64_t first, int64_t count, float* out);
bool SameRange(const Filter& f, const float* packed, int64_t first, int64_t count, const float* data);

}  // namespace dfo::math
