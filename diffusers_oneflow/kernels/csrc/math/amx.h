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

// The numbers of a row from `k` on as one step of 16 rows.
inline void PutStep(const float* row, int64_t k, int64_t depth, char* to, Finite* finite) {
  const Parts a(LoadUpTo(row + k, depth - k)), b(LoadUpTo(row + k + 16, depth - k - 16));
  finite->See(a), finite->See(b);
  StorePairs(a, b, to, kTile);
}

// Where row `r` of rows of `depth` numbers begins.
inline char* RowAt(char* rows, int64_t depth, int64_t r) { return rows + r / 16 * Steps(depth) * kParts * kTile + r % 16 * 64; }

// A row of `depth` numbers as row `r` of `rows`. False where one is not finite.
inline bool Put(const float* row, int64_t depth, char* rows, int64_t r) {
  char* to = RowAt(rows, depth, r);
  Finite finite;
  for (int64_t k = 0; k < depth; k += kStep, to += kParts * kTile) { PutStep(row, k, depth, to, &finite); }
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

// to += from, `count` numbers, a multiple of kWidth.
inline void Add(const float* from, int64_t count, float* to) {
  for (int64_t i = 0; i < count; i += kWidth) { Store(to + i, Load(to + i, All{}) + Load(from + i, All{}), All{}); }
}

}  // namespace dfo::math::amx
#endif
