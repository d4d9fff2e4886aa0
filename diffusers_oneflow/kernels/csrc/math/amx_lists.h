// Products of numbers whose depth is far from a multiple of kStep: much of every step would be empty.
//
// The parts of all numbers are written one behind the other, as often as the six products need them, and multiplied as one
// long row of bfloat16: high, high, middle, middle, low, high of a row meet low, middle, middle, high, high, high of the
// columns.
#pragma once
#if defined(__AMX_BF16__)
#include "amx_tiles.h"

namespace dfo::math::amx {

constexpr int kSegments = 6;

// Pairs of numbers in one part of a list.
inline int64_t ListPairs(int64_t depth) { return CeilDiv(depth, 8) * 4; }
inline int64_t ListSteps(int64_t depth) { return CeilDiv(kSegments * ListPairs(depth), 16); }

// A row of `depth` numbers as row `r` of `rows`; `list` is room for 16 * ListSteps(depth). False where one is not finite.
inline bool PutList(const float* row, int64_t depth, char* rows, int64_t r, uint32_t* list) {
  static constexpr int kOrder[kSegments] = {0, 0, 1, 1, 2, 0};
  const int64_t pairs = ListPairs(depth), steps = ListSteps(depth);
  I odd;
  for (int i = 0; i < 32; ++i) { reinterpret_cast<int16_t*>(&odd)[i] = static_cast<int16_t>(2 * i + 1); }
  Finite finite;
  for (int64_t k = 0; k < depth; k += 32) {
    const Parts a(LoadUpTo(row + k, depth - k)), b(LoadUpTo(row + k + 16, depth - k - 16));
    finite.See(a), finite.See(b);
    const First lanes{static_cast<int>(std::min<int64_t>(16, pairs - k / 2))};
    for (int segment = 0; segment < kSegments; ++segment) {
      const int part = kOrder[segment];
      const I packed = _mm512_permutex2var_epi16(a.part[part], odd, b.part[part]);
      _mm512_mask_storeu_epi32(list + segment * pairs + k / 2, Mask(lanes), packed);
    }
  }
  std::fill(list + kSegments * pairs, list + steps * 16, 0u);
  char* to = rows + r / 16 * steps * kTile + r % 16 * 64;
  for (int64_t s = 0; s < steps; ++s) { _mm512_store_si512(to + s * kTile, _mm512_loadu_si512(list + s * 16)); }
  return finite.all();
}

// kColumns columns, (depth, kColumns). False where a number is not finite.
inline bool SplitList(const float* columns, int64_t depth, char* to) {
  static constexpr int kOrder[kSegments] = {2, 1, 1, 0, 0, 0};
  const int64_t pairs = ListPairs(depth), end = ListSteps(depth) * 16;
  const auto place = [&](int64_t row, int j) { return to + (row / 16 * 2 + j) * kTile + row % 16 * 64; };
  Finite finite;
  for (int j = 0; j < 2; ++j) {
    for (int64_t i = 0; i < pairs; ++i) {
      const float* at = columns + 2 * i * kColumns + j * 16;
      const Parts a(2 * i < depth ? Load(at, All{}) : Set(0)), b(2 * i + 1 < depth ? Load(at + kColumns, All{}) : Set(0));
      finite.See(a), finite.See(b);
      for (int segment = 0; segment < kSegments; ++segment) {
        const int part = kOrder[segment];
        _mm512_store_si512(place(segment * pairs + i, j), Pair(a.part[part], b.part[part]));
      }
    }
    for (int64_t row = kSegments * pairs; row < end; ++row) { _mm512_store_si512(place(row, j), _mm512_setzero_si512()); }
  }
  return finite.all();
}

// out (32, kColumns) = 32 rows, as a and b, times kColumns columns.
inline void MultiplyLists(const char* a, const char* b, const char* columns, int64_t steps, float* out) {
  Written();
  ZeroTiles();
  for (int64_t s = 0; s < steps; ++s) {
    _tile_loadd(4, a + s * kTile, 64);
    _tile_loadd(6, columns + 2 * s * kTile, 64);
    _tile_loadd(7, columns + (2 * s + 1) * kTile, 64);
    _tile_loadd(5, b + s * kTile, 64);
    MultiplyTiles();
  }
  StoreTiles(out);
}

}  // namespace dfo::math::amx
#endif
