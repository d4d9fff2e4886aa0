// Tiles of a float32 product on AMX: what tile_fma.h says of a kind of tile. Where a number is not finite, the product has
// to be computed by FmaTiles.
#pragma once
#if defined(__AMX_BF16__)
#include <algorithm>

#include "ahead.h"
#include "amx_tiles.h"
#include "meanwhile.h"

namespace dfo::math {

struct AmxTiles {
  static constexpr int kRows = 32;
  // As much of a block as stays in the first-level cache while all rows are multiplied with it.
  static constexpr int64_t kPart = 96;
  static constexpr bool kSplits = true;
  // Lines of what comes next that are fetched at a time.
  static constexpr int kFetched = 8;

  static int64_t RowBytes(int64_t depth) { return amx::RowBytes(depth); }
  static int64_t BlockBytes(int64_t depth) { return amx::BlockBytes(depth); }

  struct Nothing {
    void operator()() const {}
  };
  using Registers = amx::Registers;
  using Sums = amx::Sums;

  // A row is gathered here, in float32, before Put splits it.
  static float* Row(char*, int64_t) {
    alignas(64) static thread_local float row[kDepth];
    return row;
  }
  static bool Put(const float* row, int64_t depth, char* rows, int64_t r) { return amx::Put(row, depth, rows, r); }
  static bool Split(const float* block, int64_t depth, char* to) { return amx::Split(block, depth, to); }

  static void Multiply(const char* gathered, int64_t first, int rows, const char* block, int64_t begin, int64_t depth, bool add,
                       float* out, Ahead* next, Sums* sums) {
    const int64_t sixteen = amx::Steps(depth) * amx::kParts * amx::kTile;
    const char* a = gathered + first / 16 * sixteen + begin / kStep * amx::kParts * amx::kTile;
    Multiply(a, rows > 16 ? a + sixteen : nullptr, {}, block, begin, depth, add, out, next, sums);
  }

  // The same of 16 rows, or, where b is not null, of 32. If narrow, only of the first 16 columns; the others of out are
  // undefined. `also` is done meanwhile, six times a step.
  template <class Also = Nothing>
  static void Multiply(const char* a, const char* b, amx::Places places, const char* block, int64_t begin, int64_t depth,
                       bool add, float* out, Ahead* next, Sums* sums, bool narrow = false, const Also& also = {}) {
    const int64_t step = begin / kStep, steps = std::min(kPart / kStep, amx::Steps(depth) - step);
    block += step * amx::kParts * 2 * amx::kTile;
    float* made = add ? sums->Next() : out;
    const auto meanwhile = [&] {
      sums->Some();
      also();
      for (int i = 0; i < kFetched && next->lines > 0; ++i) { next->Fetch(); }
    };
    if (narrow) {
      amx::Multiply32x16(a, b, block, steps, made, meanwhile);
    } else if (b != nullptr) {
      amx::Multiply32x32(a, b, places, block, steps, made, meanwhile);
    } else {
      amx::Multiply16x32(a, places, block, steps, made, meanwhile);
    }
    if (add) { sums->Owe(out, (b != nullptr ? 32 : 16) * kColumns); }
  }
};

}  // namespace dfo::math
#endif
