// Kernels that move whole rows of bytes: concatenation, nearest-neighbour upsampling, embedding.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>

#include "kernels.h"
#include "parallel.h"

namespace dfo::math {
namespace {

constexpr int64_t kItem = 4;  // bytes that count as one element of work

template <class Pixel>
void UpsampleRow(const char* x, char* y, int64_t ow, const int64_t* source) {
  for (int64_t i = 0; i < ow; ++i) {
    Pixel p;  // by memcpy, for x and y need not be aligned
    std::memcpy(&p, x + source[i] * sizeof(Pixel), sizeof(p));
    std::memcpy(y + i * sizeof(Pixel), &p, sizeof(p));
  }
}

struct Pixel16 {
  uint64_t half[2];
};

void UpsampleRow(int64_t pixel_bytes, const char* x, char* y, int64_t ow, const int64_t* source) {
  switch (pixel_bytes) {
    case 1: return UpsampleRow<uint8_t>(x, y, ow, source);
    case 2: return UpsampleRow<uint16_t>(x, y, ow, source);
    case 4: return UpsampleRow<uint32_t>(x, y, ow, source);
    case 8: return UpsampleRow<uint64_t>(x, y, ow, source);
    case 16: return UpsampleRow<Pixel16>(x, y, ow, source);
  }
  for (int64_t i = 0; i < ow; ++i) { std::memcpy(y + i * pixel_bytes, x + source[i] * pixel_bytes, pixel_bytes); }
}

// In torch's own arithmetic, which is in float32 unless the size is kept or doubled.
int64_t Nearest(int64_t i, int64_t in, int64_t out) {
  if (out == in) { return i; }
  if (out == 2 * in) { return i / 2; }
  const float scale = static_cast<float>(in) / static_cast<float>(out);
  return std::min(static_cast<int64_t>(std::floor(static_cast<float>(i) * scale)), in - 1);
}

}  // namespace

void Concat(const void* const* parts, const int64_t* bytes, int32_t count, int64_t rows, void* y) {
  int64_t row_bytes = 0;
  for (int32_t i = 0; i < count; ++i) { row_bytes += bytes[i]; }
  // Shared out by bytes of y, so that one long row keeps all threads busy as well as many short ones do.
  ForRanges(rows * row_bytes, rows * row_bytes / kItem, [&](int64_t begin, int64_t end) {
    int64_t r = begin / row_bytes, column = begin % row_bytes;
    char* out = static_cast<char*>(y) + begin;
    for (int64_t left = end - begin; left > 0; ++r, column = 0) {
      int64_t first = 0;  // column where the part begins
      for (int32_t i = 0; i < count && left > 0; first += bytes[i++]) {
        const int64_t skipped = std::max<int64_t>(column - first, 0);
        const int64_t size = std::min(bytes[i] - skipped, left);
        if (size <= 0) { continue; }
        std::memcpy(out, static_cast<const char*>(parts[i]) + r * bytes[i] + skipped, size);
        out += size;
        left -= size;
      }
    }
  });
}

void UpsampleNearest(int64_t pixel_bytes, const void* x, void* y, int64_t n, int64_t h, int64_t w, int64_t oh, int64_t ow) {
  const int64_t row_bytes = ow * pixel_bytes;
  ForRanges(n * oh, n * oh * row_bytes / kItem, [&](int64_t begin, int64_t end) {
    const std::unique_ptr<int64_t[]> source(new int64_t[ow]);
    for (int64_t i = 0; i < ow; ++i) { source[i] = Nearest(i, w, ow); }
    int64_t last = -1;  // the row of x that the row of y before was made of
    for (int64_t r = begin; r < end; ++r) {
      const int64_t from = r / oh * h + Nearest(r % oh, h, oh);
      char* out = static_cast<char*>(y) + r * row_bytes;
      if (from == last) {
        std::memcpy(out, out - row_bytes, row_bytes);
      } else {
        UpsampleRow(pixel_bytes, static_cast<const char*>(x) + from * w * pixel_bytes, out, ow, source.get());
      }
      last = from;
    }
  });
}

bool Embedding(const void* table, const int64_t* ids, void* y, int64_t count, int64_t row_bytes, int64_t rows) {
  for (int64_t i = 0; i < count; ++i) {
    if (ids[i] < 0 || ids[i] >= rows) { return false; }
  }
  ForRanges(count, count * row_bytes / kItem, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      std::memcpy(static_cast<char*>(y) + i * row_bytes, static_cast<const char*>(table) + ids[i] * row_bytes, row_bytes);
    }
  });
  return true;
}

}  // namespace dfo::math
