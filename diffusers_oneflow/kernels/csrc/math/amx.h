// Float32 matrix products on AMX, whose matrix instruction multiplies bfloat16 and adds up in float32.
//
// A float32 has 24 bits of significand and a bfloat16 has 8, with the same exponents: each number is the sum of three
// bfloat16 (high, middle, low), without loss. Of the nine products of two such sums six are computed; the others are below
// 2^-24 of the result, less than float32's own rounding. The five small ones are added up first, so that their sum is not
// rounded at the size of the whole result. Six times the work at sixteen times the speed of multiply-add.
//
// Infinity has no such sum (its low parts would be inf - inf): where a number is not finite, Put and Split say so, and the
// product has to be computed in another way.
#pragma once
#if defined(__AMX_BF16__)
#include <algorithm>

#include "ahead.h"
#include "panels.h"
#include "vec.h"

namespace dfo::math::amx {

// Products are computed in steps of kStep numbers. One part of a step of 16 rows, or of 16 columns, is a tile of kTile
// bytes: 16 rows of 64 bytes. Rows lie in memory as (16 rows, step, part), columns as (step, part, 16 columns twice).
constexpr int kParts = 3, kTile = 1024;

inline int64_t Steps(int64_t depth) { return CeilDiv(depth, kStep); }
inline int64_t RowBytes(int64_t depth) { return Steps(depth) * kParts * 64; }
inline int64_t BlockBytes(int64_t depth) { return Steps(depth) * kParts * 2 * kTile; }

// The upper 16 bits of each are a bfloat16.
struct Parts {
  I part[kParts];

  explicit Parts(F x) {
    const I half = _mm512_set1_epi32(0x8000), upper = _mm512_set1_epi32(static_cast<int>(0xFFFF0000));
    const auto nearest = [&](F v) { return _mm512_and_si512(_mm512_add_epi32(_mm512_castps_si512(v), half), upper); };
    part[0] = nearest(x);
    const F rest = x - _mm512_castsi512_ps(part[0]);
    part[1] = nearest(rest);
    part[2] = _mm512_castps_si512(rest - _mm512_castsi512_ps(part[1]));
  }
};

// Pairs of bfloat16: a in the lower half of each 32 bits, b in the upper one.
inline I Pair(I a, I b) {
  // 0xD8: b where the mask is set, elsewhere a >> 16.
  return _mm512_ternarylogic_epi32(_mm512_srli_epi32(a, 16), b, _mm512_set1_epi32(static_cast<int>(0xFFFF0000)), 0xD8);
}

// 32 numbers of a step: the i-th pair of the instruction are numbers i (a) and i + 16 (b); which ones does not matter, as
// long as rows and columns agree. The parts go to `to`, `stride` bytes apart.
inline void StorePairs(const Parts& a, const Parts& b, char* to, int64_t stride) {
  for (int p = 0; p < kParts; ++p) { _mm512_store_si512(to + p * stride, Pair(a.part[p], b.part[p])); }
}

// Whether all numbers were finite.
class Finite {
 public:
  void See(const Parts& parts) {
    largest_ = _mm512_max_epi32(largest_, _mm512_and_si512(parts.part[0], _mm512_set1_epi32(INT32_MAX)));
  }
  bool all() const { return _mm512_reduce_max_epi32(largest_) < 0x7F800000; }

 private:
  I largest_ = _mm512_setzero_si512();
};

inline F LoadUpTo(const float* p, int64_t count) {
  if (count >= kWidth) { return Load(p, All{}); }
  return count > 0 ? Load(p, First{static_cast<int>(count)}) : Set(0);
}

// A row of `depth` numbers as row `r` of `rows`. False where one is not finite.
inline bool Put(const float* row, int64_t depth, char* rows, int64_t r) {
  const int64_t steps = Steps(depth);
  char* to = rows + r / 16 * steps * kParts * kTile + r % 16 * 64;
  Finite finite;
  for (int64_t k = 0; k < depth; k += kStep, to += kParts * kTile) {
    const Parts a(LoadUpTo(row + k, depth - k)), b(LoadUpTo(row + k + 16, depth - k - 16));
    finite.See(a), finite.See(b);
    StorePairs(a, b, to, kTile);
  }
  return finite.all();
}

// kColumns columns, (depth, kColumns). False where a number is not finite.
inline bool Split(const float* columns, int64_t depth, char* to) {
  Finite finite;
  for (int64_t first = 0; first < depth; first += kStep, to += kParts * 2 * kTile) {
    for (int64_t i = 0; i < 16; ++i) {
      const float* a_row = columns + (first + i) * kColumns;
      for (int j = 0; j < 2; ++j) {
        const Parts a(first + i < depth ? Load(a_row + j * 16, All{}) : Set(0));
        const Parts b(first + i + 16 < depth ? Load(a_row + 16 * kColumns + j * 16, All{}) : Set(0));
        finite.See(a), finite.See(b);
        StorePairs(a, b, to + j * kTile + i * 64, 2 * kTile);
      }
    }
  }
  return finite.all();
}

// The calling thread's tile registers, as long as it lives.
class Registers {
 public:
  Registers() {
    struct {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } configuration;
    _tile_loadconfig(&configuration);
  }
  ~Registers() { _tile_release(); }
  Registers(const Registers&) = delete;
  Registers& operator=(const Registers&) = delete;
};

// GCC does not know that tiles are read from memory.
inline void Written() { asm volatile("" ::: "memory"); }

inline void ZeroTiles() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

inline void FetchSome(Ahead* next) {
  for (int64_t i = 0; i < next->some && next->lines > 0; ++i) { next->Fetch(); }
}

constexpr int kHigh = 0, kMiddle = kTile, kLow = 2 * kTile;  // of a step of rows; twice that of columns
constexpr int kLine = kColumns * sizeof(float);

// Tiles 0 to 3 += the rows in 4 and 5 times the columns in 6 and 7.
inline void MultiplyTiles() {
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
  _tile_dpbf16ps(2, 5, 6);
  _tile_dpbf16ps(3, 5, 7);
}

// These as (32, kColumns).
inline void StoreTiles(float* out) {
  _tile_stored(0, out, kLine);
  _tile_stored(1, out + 16, kLine);
  _tile_stored(2, out + 16 * kColumns, kLine);
  _tile_stored(3, out + 16 * kColumns + 16, kLine);
  Written();
}

// to += from, `count` numbers, a multiple of kWidth.
inline void Add(const float* from, int64_t count, float* to) {
  for (int64_t i = 0; i < count; i += kWidth) { Store(to + i, Load(to + i, All{}) + Load(from + i, All{}), All{}); }
}

// out (32, kColumns) = 32 rows, as a and b, times kColumns columns.
inline void Multiply32x32(const char* a, const char* b, const char* columns, int64_t steps, float* out, Ahead* next) {
  Ahead ahead = *next;
  const auto load_rows = [&](int64_t s, int part) {
    _tile_loadd(4, a + s * kParts * kTile + part, 64);
    _tile_loadd(5, b + s * kParts * kTile + part, 64);
  };
  const auto load_columns = [&](int64_t s, int part) {
    const char* from = columns + 2 * (s * kParts * kTile + part);
    _tile_loadd(6, from, 64);
    _tile_loadd(7, from + kTile, 64);
  };
  const auto multiply = [&] {
    MultiplyTiles();
    FetchSome(&ahead);
  };
  Written();
  ZeroTiles();
  for (int64_t s = 0; s < steps; ++s) {
    load_rows(s, kHigh), load_columns(s, kLow), multiply();
    load_columns(s, kMiddle), multiply();
    load_rows(s, kMiddle), multiply();
    load_columns(s, kHigh), multiply();
    load_rows(s, kLow), multiply();
  }
  for (int64_t s = 0; s < steps; ++s) { load_rows(s, kHigh), load_columns(s, kHigh), multiply(); }
  StoreTiles(out);
  *next = ahead;
}

// In these two, tiles 0 and 1 are the sums of the large products, 2 and 3 of the small ones: so many are needed to
// keep the unit busy. `lower` holds the small sums until both are added.

// out (16, kColumns) = 16 rows times kColumns columns.
inline void Multiply16x32(const char* a, const char* columns, int64_t steps, float* out, Ahead* next) {
  Ahead ahead = *next;
  const auto load_columns = [&](int part) {
    _tile_loadd(6, columns + 2 * part, 64);
    _tile_loadd(7, columns + 2 * part + kTile, 64);
  };
  const auto small = [&](int part) {
    _tile_loadd(5, a + part, 64);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  };
  Written();
  ZeroTiles();
  for (int64_t s = 0; s < steps; ++s, a += kParts * kTile, columns += 2 * kParts * kTile) {
    load_columns(kHigh);
    _tile_loadd(4, a + kHigh, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    small(kMiddle), small(kLow);
    load_columns(kMiddle);
    small(kMiddle), small(kHigh);
    load_columns(kLow);
    small(kHigh);
    for (int i = 0; i < 6; ++i) { FetchSome(&ahead); }
  }
  alignas(64) float lower[16 * kColumns];
  _tile_stored(0, out, kLine);
  _tile_stored(1, out + 16, kLine);
  _tile_stored(2, lower, kLine);
  _tile_stored(3, lower + 16, kLine);
  Written();
  Add(lower, 16 * kColumns, out);
  *next = ahead;
}

// out (32, kColumns) = 32 rows, as a and b, times the first 16 of kColumns columns; the others of out are not written.
inline void Multiply32x16(const char* a, const char* b, const char* columns, int64_t steps, float* out) {
  const auto small = [&](int part) {
    _tile_loadd(4, a + part, 64);
    _tile_loadd(5, b + part, 64);
    _tile_dpbf16ps(2, 4, 6);
    _tile_dpbf16ps(3, 5, 6);
  };
  Written();
  ZeroTiles();
  for (int64_t s = 0; s < steps; ++s, a += kParts * kTile, b += kParts * kTile, columns += 2 * kParts * kTile) {
    _tile_loadd(6, columns + 2 * kLow, 64);
    small(kHigh);
    _tile_loadd(6, columns + 2 * kMiddle, 64);
    small(kHigh), small(kMiddle);
    _tile_loadd(6, columns + 2 * kHigh, 64);
    small(kMiddle), small(kLow);
    _tile_loadd(4, a + kHigh, 64);
    _tile_loadd(5, b + kHigh, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 5, 6);
  }
  alignas(64) float lower[32 * 16];
  _tile_stored(0, out, kLine);
  _tile_stored(1, out + 16 * kColumns, kLine);
  _tile_stored(2, lower, 64);
  _tile_stored(3, lower + 16 * 16, 64);
  Written();
  for (int64_t r = 0; r < 32; ++r) { Add(lower + r * 16, 16, out + r * kColumns); }
}

// ---- lists -------------------------------------------------------------------------------------------------------------
//
// Where the depth is far from a multiple of kStep, much of every step would be empty. Here the parts of all numbers are
// written one behind the other, as often as the six products need them, and multiplied as one long row of bfloat16: high,
// high, middle, middle, low, high of a row meet low, middle, middle, high, high, high of the columns.

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
