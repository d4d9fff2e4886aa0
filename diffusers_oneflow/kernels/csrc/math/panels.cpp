// A filter, packed: see panels.h.
#include "panels.h"

#include "parallel.h"
#include "vec.h"

namespace dfo::math {
namespace {

// 16 or 8 rows of as many numbers, `stride` apart, as columns; column i goes to out(i).
#if defined(__AVX512F__)
template <class Out>
inline void Transpose(const float* in, int64_t stride, const Out& out) {
  __m512 a[16], b[16];
  for (int i = 0; i < 16; ++i) { a[i] = _mm512_loadu_ps(in + i * stride); }
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    const auto d = [](__m512 v) { return _mm512_castps_pd(v); };
    const auto s = [](__m512d v) { return _mm512_castpd_ps(v); };
    a[i] = s(_mm512_unpacklo_pd(d(b[i]), d(b[i + 2])));
    a[i + 1] = s(_mm512_unpackhi_pd(d(b[i]), d(b[i + 2])));
    a[i + 2] = s(_mm512_unpacklo_pd(d(b[i + 1]), d(b[i + 3])));
    a[i + 3] = s(_mm512_unpackhi_pd(d(b[i + 1]), d(b[i + 3])));
  }
  for (int i = 0; i < 4; ++i) {
    b[i] = _mm512_shuffle_f32x4(a[i], a[i + 4], 0x88);
    b[i + 4] = _mm512_shuffle_f32x4(a[i], a[i + 4], 0xDD);
    b[i + 8] = _mm512_shuffle_f32x4(a[i + 8], a[i + 12], 0x88);
    b[i + 12] = _mm512_shuffle_f32x4(a[i + 8], a[i + 12], 0xDD);
  }
  for (int i = 0; i < 4; ++i) {
    _mm512_storeu_ps(out(i), _mm512_shuffle_f32x4(b[i], b[i + 8], 0x88));
    _mm512_storeu_ps(out(i + 8), _mm512_shuffle_f32x4(b[i], b[i + 8], 0xDD));
    _mm512_storeu_ps(out(i + 4), _mm512_shuffle_f32x4(b[i + 4], b[i + 12], 0x88));
    _mm512_storeu_ps(out(i + 12), _mm512_shuffle_f32x4(b[i + 4], b[i + 12], 0xDD));
  }
}
#else
template <class Out>
inline void Transpose(const float* in, int64_t stride, const Out& out) {
  for (int i = 0; i < kWidth; ++i) {
    float* to = out(i);
    for (int j = 0; j < kWidth; ++j) { to[j] = in[j * stride + i]; }
  }
}
#endif

}  // namespace

void PackBlock(const Filter& f, const Blocks& blocks, int64_t panel, int64_t block, float* out) {
  const int64_t channels = blocks.Channels(block), taps = blocks.taps, depth = taps * channels;
  const int64_t first = panel * kColumns, columns = std::min(kColumns, f.n - first);
  const float* in = f.data + first * f.strides[0] + block * blocks.channels * f.strides[1];
  const bool torch_order = f.strides[1] == taps && (taps == 1 || (f.strides[3] == 1 && f.strides[2] == f.kw));
  int64_t i = 0;
  if (torch_order && columns == kColumns && depth <= kDepth) {
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
