// Tiles of a float32 product by multiply-add instructions.
//
// What product.cpp asks of a kind of tile: kRows rows are computed at a time; Rows holds x, gathered (`Row` is where a row
// goes, `Put` says that it is there), Block a block of the filter as it is multiplied with; both are counted in bytes.
#pragma once
#include "ahead.h"
#include "panels.h"
#include "vec.h"

namespace dfo::math {

struct FmaTiles {
  static constexpr int kVectors = kColumns / kWidth;
  // As many rows of a tile as leave registers for the columns: 12 x 32 accumulators of AVX-512's 32 registers.
  static constexpr int kRows = kWidth == 16 ? 12 : 3;
  static constexpr int64_t kPart = kDepth;
  // A packed filter is multiplied with as it is.
  static constexpr bool kSplits = false;

  static int64_t RowBytes(int64_t) { return kDepth * sizeof(float); }
  static int64_t BlockBytes(int64_t depth) { return depth * kColumns * sizeof(float); }

  struct Registers {};
  // Results still to be added up: see meanwhile.h.
  struct Sums {
    void Settle() {}
  };

  static float* Row(char* rows, int64_t r) { return reinterpret_cast<float*>(rows) + r * kDepth; }
  static bool Put(const float*, int64_t, char*, int64_t) { return true; }
  static bool Split(const float*, int64_t, char*) { return true; }

  // out (rows, kColumns) = or += the rows from `first` on times the block, of `depth` numbers; of these only kPart from
  // `begin` on. Of at most kRows rows only as many are computed as there are, or some more.
  static void Multiply(const char* gathered, int64_t first, int rows, const char* block, int64_t, int64_t depth, bool add,
                       float* out, Ahead* next, Sums*) {
    const float* a = Row(const_cast<char*>(gathered), first);
    const float* b = reinterpret_cast<const float*>(block);
#if defined(__AVX512F__)
    if (rows > 8) { return Tile<12>(a, b, depth, add, out, next); }
    if (rows > 4) { return Tile<8>(a, b, depth, add, out, next); }
    if (rows > 2) { return Tile<4>(a, b, depth, add, out, next); }
    if (rows > 1) { return Tile<2>(a, b, depth, add, out, next); }
    return Tile<1>(a, b, depth, add, out, next);
#else
    if (rows > 1) { return Tile<3>(a, b, depth, add, out, next); }
    return Tile<1>(a, b, depth, add, out, next);
#endif
  }

 private:
  // out (kTile, kColumns) = or += a (kTile, depth; rows kDepth apart) times b (depth, kColumns).
  template <int kTile>
  static void Tile(const float* __restrict a, const float* __restrict b, int64_t depth, bool add, float* __restrict out,
                   Ahead* next) {
    Ahead ahead = *next;
    F sum[kTile][kVectors];
#pragma GCC unroll 12
    for (int r = 0; r < kTile; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) { sum[r][v] = Set(0); }
    }
    for (int64_t k = 0; k < depth; ++k) {
      if (ahead.lines > 0) { ahead.Fetch(); }
      F column[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) { column[v] = Load(b + k * kColumns + v * kWidth, All{}); }
#pragma GCC unroll 12
      for (int r = 0; r < kTile; ++r) {
        const F value = Set(a[r * kDepth + k]);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) { sum[r][v] = Fma(value, column[v], sum[r][v]); }
      }
    }
    *next = ahead;
#pragma GCC unroll 12
    for (int r = 0; r < kTile; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        float* at = out + r * kColumns + v * kWidth;
        Store(at, add ? Load(at, All{}) + sum[r][v] : sum[r][v], All{});
      }
    }
  }
};

}  // namespace dfo::math
