// A filter, packed: see panels.h.
#include "panels.h"

#include "parallel.h"
#include "transpose.h"

namespace dfo::math {

void PackBlock(const Filter& f, const Blocks& blocks, int64_t panel, int64_t block, float* out) {
  const int64_t channels = blocks.Channels(block), taps = blocks.taps, depth = taps * channels;
  const int64_t first = panel * kColumns, columns = std::min(kColumns, f.n - first);
  const float* in = f.data + first * f.strides[0] + block * blocks.channels * f.strides[1];
  int64_t i = 0;
  if (InTorchOrder(f) && columns == kColumns && depth <= kDepth) {
    // Where the numbers of a column, in torch's order (channel, tap), go: to find out takes a division for each.
    int64_t places[kDepth];
    for (int64_t c = 0, at = 0; c < channels; ++c) {
      for (int64_t tap = 0; tap < taps; ++tap, ++at) { places[at] = (tap * channels + c) * kColumns; }
    }
    for (; i + kWidth <= depth; i += kWidth) {
      for (int64_t j = 0; j < kColumns; j += kWidth) {
        Transpose(in + j * f.strides[0] + i, f.strides[0], [&](int k) { return out + places[i + k] + j; });
      }
    }
  }
  for (; i < depth; ++i) {
    const int64_t c = i / taps, tap = i % taps;
    const float* from = in + c * f.strides[1] + tap / f.kw * f.strides[2] + tap % f.kw * f.strides[3];
    float* to = out + (tap * channels + c) * kColumns;
    for (int64_t j = 0; j < kColumns; ++j) { to[j] = j < columns ? from[j * f.strides[0]] : 0.0f; }
  }
}

int64_t PackedBytes(const Filter& f) { return CeilDiv(f.n, kColumns) * Blocks(f).PanelSize() * sizeof(float); }

void Pack(const Filter& f, float* packed) {
  const Blocks blocks(f);
  ForRanges(CeilDiv(f.n, kColumns), kEnough, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) {
      float* to = packed + panel * blocks.PanelSize();
      for (int64_t block = 0; block < blocks.count; ++block) { PackBlock(f, blocks, panel, block, to + blocks.Offset(block)); }
    }
  });
}

}  // namespace dfo::math
