// Tiles of a float32 product on AMX: what tile_fma.h says of a kind of tile. Where a number is not finite, the product has
// to be computed by FmaTiles.
#pragma once
#if defined(__AMX_BF16__)
#include <algorithm>

#include "amx.h"

namespace dfo::math {

struct AmxTiles {
  static constexpr int kRows = 32;
  // As much of a block as stays in the first-level cache while all rows are multiplied with it.
  static constexpr int64_t kPart = 96;
  static constexpr bool kSplits = true;

  static int64_t RowBytes(int64_t depth) { return amx::RowBytes(depth); }
  static int64_t BlockBytes(int64_t depth) { return amx::BlockBytes(depth); }

  using Registers = amx::Registers;

  // A row is gathered here, in float32, before Put splits it.
  static float* Row(char*, int64_t) {
    alignas(64) static thread_local float row[kDepth];
    return row;
  }
  static bool Put(const float* row, int64_t depth, char* rows, int64_t r) { return amx::Put(row, depth, rows, r); }
  static bool Split(const float* block, int64_t depth, char* to) { return amx::Split(block, depth, to); }

  static void Multiply(const char* gathered, int64_t first, int rows, const char* block, int64_t begin, int64_t depth, bool add,
                       float* out, Ahead* next) {
    const int64_t all = amx::Steps(depth), step = begin / kStep, steps = std::min(kPart / kStep, all - step);
    const int64_t sixteen = all * amx::kParts * amx::kTile;
    const char* a = gathered + first / 16 * sixteen + step * amx::kParts * amx::kTile;
    block += step * amx::kParts * 2 * amx::kTile;
    alignas(64) float made[kRows * kColumns];
    const bool wide = rows > 16;
    if (wide) {
      amx::Multiply32x32(a, a + sixteen, block, steps, made, next);
    } else {
      amx::Multiply16x32(a, block, steps, made, next);
    }
    const int64_t count = (wide ? 32 : 16) * kColumns;
    if (add) {
      amx::Add(made, count, out);
    } else {
      std::copy_n(made, count, out);
    }
  }
};

}  // namespace dfo::math
#endif
