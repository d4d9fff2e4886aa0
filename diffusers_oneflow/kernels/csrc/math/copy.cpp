// A copy of any strided view into dense memory: runs of bytes, fills, blocked transposes, and one by one.
#include <immintrin.h>

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "kernels.h"
#include "parallel.h"

namespace dfo::math {
namespace {

constexpr int kMaxDims = 32;

struct View {
  int ndim = 0;
  int64_t sizes[kMaxDims];
  int64_t strides[kMaxDims];  // of x, in items
};

// Without dimensions of size 1, and with those joined that are one in memory.
View Collapse(int32_t ndim, const int64_t* sizes, const int64_t* strides) {
  View v;
  for (int32_t d = 0; d < ndim; ++d) {
    if (sizes[d] == 1) { continue; }
    if (v.ndim > 0 && v.strides[v.ndim - 1] == strides[d] * sizes[d]) {
      v.sizes[v.ndim - 1] *= sizes[d];
      v.strides[v.ndim - 1] = strides[d];
    } else {
      v.sizes[v.ndim] = sizes[d];
      v.strides[v.ndim++] = strides[d];
    }
  }
  if (v.ndim == 0) { v = {1, {1}, {1}}; }
  return v;
}

// Steps through the indices of the first dimensions of a view, and knows where in x each is.
class Odometer {
 public:
  Odometer(const View& view, int ndim, int64_t index) : view_(view), ndim_(ndim) {
    for (int d = ndim - 1; d >= 0; --d) {
      at_[d] = index % view.sizes[d];
      index /= view.sizes[d];
      offset_ += at_[d] * view.strides[d];
    }
  }

  int64_t offset() const { return offset_; }

  void Next() {
    for (int d = ndim_ - 1; d >= 0; --d) {
      offset_ += view_.strides[d];
      if (++at_[d] < view_.sizes[d]) { return; }
      offset_ -= view_.sizes[d] * view_.strides[d];
      at_[d] = 0;
    }
  }

 private:
  const View& view_;
  const int ndim_;
  int64_t at_[kMaxDims];
  int64_t offset_ = 0;
};

// Row by row, each thread an equal part of y, which may begin and end within a row.
template <class T>
void CopyRows(const View& v, const T* x, T* y) {
  const int64_t width = v.sizes[v.ndim - 1], stride = v.strides[v.ndim - 1];
  int64_t total = width;
  for (int d = 0; d < v.ndim - 1; ++d) { total *= v.sizes[d]; }
  ForRanges(total, total, [&](int64_t begin, int64_t end) {
    Odometer row(v, v.ndim - 1, begin / width);
    for (int64_t at = begin, first = begin % width; at < end; row.Next(), first = 0) {
      const int64_t count = std::min(width - first, end - at);
      const T* from = x + row.offset() + first * stride;
      T* to = y + at;
      if (stride == 1) {
        std::memcpy(to, from, count * sizeof(T));
      } else if (stride == 0) {
        std::fill(to, to + count, *from);
      } else {
        for (int64_t i = 0; i < count; ++i) { to[i] = from[i * stride]; }
      }
      at += count;
    }
  });
}

// y[i][j] = x[j][i] for 8 x 8 items, rows `sx` and `sy` apart.
template <class T>
void Transpose8(const T* x, int64_t sx, T* y, int64_t sy) {
  for (int i = 0; i < 8; ++i) {
    for (int j = 0; j < 8; ++j) { y[i * sy + j] = x[j * sx + i]; }
  }
}

template <>
void Transpose8(const uint32_t* x, int64_t sx, uint32_t* y, int64_t sy) {
  __m256 r[8], t[8];
  for (int i = 0; i < 8; ++i) { r[i] = _mm256_loadu_ps(reinterpret_cast<const float*>(x + i * sx)); }
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
    r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xEE);
    r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xEE);
  }
  for (int i = 0; i < 4; ++i) {
    _mm256_storeu_ps(reinterpret_cast<float*>(y + i * sy), _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
    _mm256_storeu_ps(reinterpret_cast<float*>(y + (i + 4) * sy), _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
  }
}

template <>
void Transpose8(const uint16_t* x, int64_t sx, uint16_t* y, int64_t sy) {
  __m128i r[8], t[8];
  for (int i = 0; i < 8; ++i) { r[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x + i * sx)); }
  for (int i = 0; i < 4; ++i) {
    t[2 * i] = _mm_unpacklo_epi16(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm_unpackhi_epi16(r[2 * i], r[2 * i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    r[i] = _mm_unpacklo_epi32(t[i], t[i + 2]);
    r[i + 1] = _mm_unpackhi_epi32(t[i], t[i + 2]);
    r[i + 2] = _mm_unpacklo_epi32(t[i + 1], t[i + 3]);
    r[i + 3] = _mm_unpackhi_epi32(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(y + 2 * i * sy), _mm_unpacklo_epi64(r[i], r[i + 4]));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(y + (2 * i + 1) * sy), _mm_unpackhi_epi64(r[i], r[i + 4]));
  }
}

// Where x runs along dimension k and y along the last one. In tiles, since the lines that are read, or written, may all
// fall into one set of the cache: a line of y is written as a whole, next to few others.
template <class T>
void CopyTransposed(const View& v, int k, const T* x, T* y) {
  constexpr int64_t kTile = 64, kRun = 512, kLine = std::max<int64_t>(8, 64 / sizeof(T));
  const int64_t width = v.sizes[v.ndim - 1], stride = v.strides[v.ndim - 1], height = v.sizes[k];
  int64_t pitch = width;  // of dimension k in y
  for (int d = k + 1; d < v.ndim - 1; ++d) { pitch *= v.sizes[d]; }
  // The other dimensions, with the strides of both.
  View from, to;
  int64_t outer = 1;
  int64_t dense = width;
  from.ndim = to.ndim = v.ndim - 2;
  for (int d = v.ndim - 2, i = v.ndim - 3; d >= 0; --d) {
    if (d != k) {
      from.sizes[i] = to.sizes[i] = v.sizes[d];
      from.strides[i] = v.strides[d];
      to.strides[i--] = dense;
      outer *= v.sizes[d];
    }
    dense *= v.sizes[d];
  }
  const int64_t tiles = (height + kTile - 1) / kTile, runs = (width + kRun - 1) / kRun;
  ForRanges(outer * tiles * runs, outer * height * width, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t index = task / (tiles * runs);
      const int64_t i0 = task / runs % tiles * kTile, i1 = std::min(height, i0 + kTile);
      const int64_t j0 = task % runs * kRun, j1 = std::min(width, j0 + kRun);
      const T* in = x + Odometer(from, from.ndim, index).offset();
      T* out = y + Odometer(to, to.ndim, index).offset();
      const int64_t whole_i = i0 + (i1 - i0) / 8 * 8, whole_j = j0 + (j1 - j0) / 8 * 8;
      for (int64_t line = j0; line < whole_j; line += kLine) {
        for (int64_t i = i0; i < whole_i; i += 8) {
          for (int64_t j = line; j < std::min(line + kLine, whole_j); j += 8) {
            Transpose8(in + j * stride + i, stride, out + i * pitch + j, pitch);
          }
        }
      }
      for (int64_t i = i0; i < i1; ++i) {
        for (int64_t j = i < whole_i ? whole_j : j0; j < j1; ++j) { out[i * pitch + j] = in[j * stride + i]; }
      }
    }
  });
}

template <class T>
void CopyItems(const View& v, const void* from, void* to) {
  const T* x = static_cast<const T*>(from);
  T* y = static_cast<T*>(to);
  const int last = v.ndim - 1;
  if (v.strides[last] != 0 && v.strides[last] != 1 && v.sizes[last] >= 8) {
    for (int k = 0; k < last; ++k) {
      if (v.strides[k] == 1 && v.sizes[k] >= 4) { return CopyTransposed(v, k, x, y); }
    }
  }
  CopyRows(v, x, y);
}

}  // namespace

void Copy(int64_t item, const void* x, void* y, int32_t ndim, const int64_t* sizes, const int64_t* strides) {
  if (std::find(sizes, sizes + ndim, 0) != sizes + ndim) { return; }
  const View v = Collapse(ndim, sizes, strides);
  switch (item) {
    case 1: return CopyItems<uint8_t>(v, x, y);
    case 2: return CopyItems<uint16_t>(v, x, y);
    case 4: return CopyItems<uint32_t>(v, x, y);
    case 8: return CopyItems<uint64_t>(v, x, y);
  }
}

}  // namespace dfo::math
