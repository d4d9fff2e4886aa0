// Memory that will be read soon.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace dfo::math {

// The memory of the filter's next block, fetched line by line while this one is computed with: at a latent of 8 x 8 a
// filter is read from memory about as fast as it is used.
struct Ahead {
  const char* row = nullptr;
  int64_t line = 0, lines = 0, rows = 0, stride = 0;  // stride in bytes

  // Only as long as there are lines.
  void Fetch() {
    _mm_prefetch(row + line * 64, _MM_HINT_T1);
    if (++line < lines) { return; }
    line = 0;
    if (rows == 0) {
      lines = 0;
    } else {
      --rows, row += stride;
    }
  }
};

}  // namespace dfo::math
