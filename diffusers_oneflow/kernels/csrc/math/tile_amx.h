// Tiles of a float32 product on AMX, whose matrix instruction multiplies bfloat16 and adds up in float32.
//
// A float32 has 24 bits of significand and a bfloat16 has 8, with the same exponents: each number is the sum of three
// bfloat16 (high, middle, low), without loss. Of the nine products of two such sums six are computed; the others are below
// 2^-24 of the result, less than float32's own rounding. The five small ones are added up first, so that their
// sum is not rounded at the size of the whole result. Six times the work at sixteen times the speed of multiply-add.
//
// Infinity has no such sum (its low parts would be inf - inf): where a number is not finite, Put and Split say so, and the
// product has to be computed by tile_fma.h.
#pragma once
#if defined(__AMX_BF16__)
#include <algorithm>

#include "ahead.h"
#include "panels.h"
#include "vec.h"

namespace dfo::math {

class AmxTiles {
 public:
  static constexpr int kRows = 32;
  // As much of a block as stays in the first-level cache while all rows are multiplied with it.
  static constexpr int64_t kPart = 96;
  static constexpr bool kSplits = true;

  static int64_t RowBytes(int64_t depth) { return Steps(depth) * kParts * 64; }
  static int64_t BlockBytes(int64_t depth) { return Steps(depth) * kParts * 2 * kTile; }

  // A row is gathered here, in float32, before Put splits it.
  static float* Row(char*, int64_t) {
    alignas(64) static thread_local float row[kDepth];
    return row;
  }

  // False where a number of the row is not finite. Steps of 32 numbers; 16 rows of one part are a tile. The i-th pair of
  // a step are its numbers i and i + 16: it does not matter which, as long as filter and rows agree.
  static bool Put(const float* row, int64_t depth, char* rows, int64_t r) {
    const int64_t steps = Steps(depth);
    char* to = rows + r / 16 * steps * kParts * kTile + r % 16 * 64;
    I largest = _mm512_setzero_si512();
    for (int64_t s = 0; s < steps; ++s, to += kParts * kTile) {
      const Parts a(LoadUpTo(row + s * 32, depth - s * 32)), b(LoadUpTo(row + s * 32 + 16, depth - s * 32 - 16));
      largest = _mm512_max_epi32(largest, _mm512_max_epi32(a.Size(), b.Size()));
      for (int p = 0; p < kParts; ++p) { _mm512_store_si512(to + p * kTile, Pair(a.part[p], b.part[p])); }
    }
    return Finite(largest);
  }

  // A block of a packed filter (depth, kColumns) as tiles of 16 pairs by 16 columns. False where a number is not finite.
  static bool Split(const float* block, int64_t depth, char* to) {
    I largest = _mm512_setzero_si512();
    for (int64_t s = 0; s < Steps(depth); ++s, to += kParts * 2 * kTile) {
      for (int64_t i = 0; i < 16; ++i) {
        const int64_t k = s * 32 + i;
        for (int j = 0; j < 2; ++j) {
          const Parts a(k < depth ? Load(block + k * kColumns + j * 16, All{}) : Set(0));
          const Parts b(k + 16 < depth ? Load(block + (k + 16) * kColumns + j * 16, All{}) : Set(0));
          largest = _mm512_max_epi32(largest, _mm512_max_epi32(a.Size(), b.Size()));
          for (int p = 0; p < kParts; ++p) {
            _mm512_store_si512(to + (p * 2 + j) * kTile + i * 64, Pair(a.part[p], b.part[p]));
          }
        }
      }
    }
    return Finite(largest);
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

  // As FmaTiles::Multiply; `first` is a multiple of 32.
  static void Multiply(const char* gathered, int64_t first, int rows, const char* block, int64_t begin, int64_t depth, bool add,
                       float* out, Ahead* next) {
    const int64_t all = Steps(depth), step = begin / 32, steps = std::min(kPart / 32, all - step);
    const char* a = gathered + (first / 16 * all + step) * kParts * kTile;
    block += step * kParts * 2 * kTile;
    alignas(64) float made[kRows * kColumns];
    asm volatile("" ::: "memory");  // GCC does not know that tiles are read from memory
    const bool wide = rows > 16;
    if (wide) {
      Wide(a, a + all * kParts * kTile, block, steps, made, next);
    } else {
      Narrow(a, block, steps, made, next);
    }
    for (int64_t i = 0; i < (wide ? 32 : 16) * kColumns; i += kWidth) {
      const F sum = Load(made + i, All{});
      Store(out + i, add ? Load(out + i, All{}) + sum : sum, All{});
    }
  }

 private:
  static constexpr int kParts = 3, kTile = 1024, kLine = kColumns * sizeof(float);
  static constexpr int kHigh = 0, kMiddle = kTile, kLow = 2 * kTile;  // of a step of rows; twice that of a block

  static int64_t Steps(int64_t depth) { return CeilDiv(depth, 32); }

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
    I Size() const { return _mm512_and_si512(part[0], _mm512_set1_epi32(0x7FFFFFFF)); }
  };

  // (low half of the result: a, upper half: b)
  static I Pair(I a, I b) {
    // 0xD8: where the mask is set b, elsewhere a >> 16
    return _mm512_ternarylogic_epi32(_mm512_srli_epi32(a, 16), b, _mm512_set1_epi32(static_cast<int>(0xFFFF0000)), 0xD8);
  }

  static bool Finite(I largest) { return _mm512_reduce_max_epi32(largest) < 0x7F800000; }

  static F LoadUpTo(const float* p, int64_t count) {
    if (count >= kWidth) { return Load(p, All{}); }
    return count > 0 ? Load(p, First{static_cast<int>(count)}) : Set(0);
  }

  static void ZeroTiles() {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }

  static void FetchSome(Ahead* next) {
    for (int i = 0; i < 8 && next->lines > 0; ++i) { next->Fetch(); }
  }

  // 32 rows, as a and b, by 32 columns.
  static void Wide(const char* a, const char* b, const char* filter, int64_t steps, float* out, Ahead* next) {
    Ahead ahead = *next;
    const auto rows = [&](int64_t s, int part) {
      _tile_loadd(4, a + s * kParts * kTile + part, 64);
      _tile_loadd(5, b + s * kParts * kTile + part, 64);
    };
    const auto columns = [&](int64_t s, int part) {
      const char* from = filter + 2 * (s * kParts * kTile + part);
      _tile_loadd(6, from, 64);
      _tile_loadd(7, from + kTile, 64);
    };
    const auto multiply = [&] {
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
      FetchSome(&ahead);
    };
    ZeroTiles();
    for (int64_t s = 0; s < steps; ++s) {
      rows(s, kHigh), columns(s, kLow), multiply();
      columns(s, kMiddle), multiply();
      rows(s, kMiddle), multiply();
      columns(s, kHigh), multiply();
      rows(s, kLow), multiply();
    }
    for (int64_t s = 0; s < steps; ++s) { rows(s, kHigh), columns(s, kHigh), multiply(); }
    _tile_stored(0, out, kLine);
    _tile_stored(1, out + 16, kLine);
    _tile_stored(2, out + 16 * kColumns, kLine);
    _tile_stored(3, out + 16 * kColumns + 16, kLine);
    *next = ahead;
  }

  // 16 rows by 32 columns. Tiles 0 and 1 are the sums of the large products, 2 and 3 of the small ones: so many
  // are needed to keep the unit busy.
  static void Narrow(const char* a, const char* filter, int64_t steps, float* out, Ahead* next) {
    Ahead ahead = *next;
    ZeroTiles();
    const auto columns = [&](const char* from) {
      _tile_loadd(6, from, 64);
      _tile_loadd(7, from + kTile, 64);
    };
    const auto small = [&](const char* row) {
      _tile_loadd(5, row, 64);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    };
    for (int64_t s = 0; s < steps; ++s, a += kParts * kTile, filter += 2 * kParts * kTile) {
      columns(filter + 2 * kHigh);
      _tile_loadd(4, a + kHigh, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      small(a + kMiddle), small(a + kLow);
      columns(filter + 2 * kMiddle);
      small(a + kMiddle), small(a + kHigh);
      columns(filter + 2 * kLow);
      small(a + kHigh);
      for (int i = 0; i < 6; ++i) { FetchSome(&ahead); }
    }
    alignas(64) float lower[16 * kColumns];
    _tile_stored(0, out, kLine);
    _tile_stored(1, out + 16, kLine);
    _tile_stored(2, lower, kLine);
    _tile_stored(3, lower + 16, kLine);
    for (int64_t i = 0; i < 16 * kColumns; i += kWidth) { Store(out + i, Load(out + i, All{}) + Load(lower + i, All{}), All{}); }
    *next = ahead;
  }
};

}  // namespace dfo::math
#endif
