// Rows to columns.
#pragma once
#include "vec.h"

namespace dfo::math {

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

}  // namespace dfo::math
