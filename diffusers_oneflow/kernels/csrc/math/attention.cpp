// Flash attention: a block of rows meets the keys block by block, and a row's largest score, its sum and its result so far
// are all that is kept of them (Dao et al., "FlashAttention", 2022, algorithm 1).
#if defined(__AMX_BF16__)
#include "attention.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <type_traits>

#include "amx_lists.h"
#include "functions.h"
#include "parallel.h"
#include "scratch.h"

namespace dfo::math {
namespace {

using amx::kParts;
using amx::kTile;

// Keys that are worked on at a time.
constexpr int64_t kKeys = 128;
// Bytes of rows, and of their results, that stay in the second-level cache while all keys go by; and as many rows at most.
constexpr int64_t kCache = 640 << 10, kMostRows = 512;
// Steps that are added up in one chain of roundings.
constexpr int64_t kChain = 3, kListChain = 16;
// Bytes of split keys and values that one thread holds; of more keys only a part is split at a time.
constexpr int64_t kMost = 24 << 20;
constexpr float kLowest = -std::numeric_limits<float>::infinity();

// One head of one image.
struct Head {
  const float *q, *k, *v, *mask;
  float* y;
};

// What one thread computes.
class Attend {
 public:
  explicit Attend(const AttentionCall& call)
      : c_(call), panels_(CeilDiv(c_.d, kColumns)), lists_(amx::ListSteps(c_.d) <= 0.7 * amx::Steps(c_.d) * amx::kSegments),
        steps_(lists_ ? amx::ListSteps(c_.d) : amx::Steps(c_.d)), step_bytes_(lists_ ? kTile : kParts * kTile),
        key_bytes_(steps_ * 2 * step_bytes_ / kColumns), value_bytes_(panels_ * amx::BlockBytes(kKeys) / kKeys),
        chunk_(std::clamp(kMost / (key_bytes_ + value_bytes_) / kKeys * kKeys, kKeys, CeilDiv(c_.n, kKeys) * kKeys)),
        rows_(std::clamp<int64_t>(kCache / (row_bytes() + panels_ * kColumns * 4) / 32 * 32, 128, kMostRows)) {}

  // Rows [begin, end) of b * heads * m. False where a number is not finite or there is no memory.
  bool Run(int64_t begin, int64_t end) {
    if (!Allocate(std::min(end - begin, c_.m))) { return false; }
    amx::Registers registers;
    for (int64_t next; begin < end; begin = next) {
      next = std::min(end, (begin / c_.m + 1) * c_.m);
      const int64_t first = begin % c_.m, last = first + next - begin;
      const Head head = At(begin / c_.m);
      for (int64_t from = 0; from < c_.n; from += chunk_) {
        const int64_t to = std::min(c_.n, from + chunk_);
        if (!SplitKeys(head, from, to) || !SplitValues(head, from, to)) { return false; }
        for (int64_t row = first; row < last; row += rows_) {
          if (!Rows(head, row, std::min(rows_, last - row), row - first, from, to)) { return false; }
        }
      }
    }
    return true;
  }

 private:
  int64_t row_bytes() const { return steps_ * step_bytes_ / 16; }

  Head At(int64_t index) const {
    const int64_t b = index / c_.heads, h = index % c_.heads;
    const auto at = [&](const float* p, const int64_t* strides) { return p + b * strides[0] + h * strides[2]; };
    return {at(c_.q, c_.q_strides), at(c_.k, c_.k_strides), at(c_.v, c_.v_strides),
            c_.mask == nullptr ? nullptr : c_.mask + b * c_.mask_strides[0] + h * c_.mask_strides[1],
            c_.y + (b * c_.m * c_.heads + h) * c_.d};
  }

  bool Allocate(int64_t rows) {
    static thread_local Scratch scratch;
    char* memory = scratch.Get(LayOut(nullptr, rows));
    if (memory != nullptr) { LayOut(memory, rows); }
    return memory != nullptr;
  }

  // Where in `memory` everything is, from whole lines on; returns how many bytes that takes.
  int64_t LayOut(char* memory, int64_t rows) {
    int64_t used = 0;
    const auto take = [&](auto*& place, int64_t bytes) {
      place = reinterpret_cast<std::remove_reference_t<decltype(place)>>(reinterpret_cast<uintptr_t>(memory) + used);
      used += CeilDiv(bytes, 64) * 64;
    };
    take(keys_, chunk_ * key_bytes_);
    take(values_, chunk_ * value_bytes_);
    take(q_, rows_ * row_bytes());
    take(p_, 32 * amx::RowBytes(kKeys));
    take(block_, kColumns * std::max(c_.d, kKeys) * 4);
    take(sums_, rows_ * panels_ * kColumns * 4);
    take(scores_, 32 * kKeys * 4);
    take(largest_, rows * 4);
    take(totals_, rows * kWidth * 4);
    take(list_, amx::ListSteps(c_.d) * 64);
    return used;
  }

  // The keys as columns: (32 keys, d), and zeros behind the last.
  bool SplitKeys(const Head& head, int64_t from, int64_t to) {
    bool fine = true;
    // A filter of as many columns as there are keys.
    const Filter keys{head.k + from * c_.k_strides[1], to - from, c_.d, 1, 1, {c_.k_strides[1], 1, 1, 1}};
    const Blocks blocks(keys);
    for (int64_t key = from; key < to; key += kColumns) {
      for (int64_t block = 0; block < blocks.count; ++block) {
        PackBlock(keys, blocks, (key - from) / kColumns, block, block_ + blocks.Offset(block));
      }
      char* split = keys_ + (key - from) * key_bytes_;
      fine &= lists_ ? amx::SplitList(block_, c_.d, split) : amx::Split(block_, c_.d, split);
    }
    return fine;
  }

  // Blocks of kKeys values: (kKeys, 32 of d), and zeros around.
  bool SplitValues(const Head& head, int64_t from, int64_t to) {
    bool fine = true;
    for (int64_t key = from; key < to; key += kKeys) {
      for (int64_t panel = 0; panel < panels_; ++panel) {
        const int64_t columns = std::min(kColumns, c_.d - panel * kColumns);
        for (int64_t j = 0; j < kKeys; ++j) {
          const float* in = head.v + (key + j) * c_.v_strides[1] + panel * kColumns;
          const bool there = key + j < to;
          Store(block_ + j * kColumns, there ? amx::LoadUpTo(in, columns) : Set(0), All{});
          Store(block_ + j * kColumns + 16, there ? amx::LoadUpTo(in + 16, columns - 16) : Set(0), All{});
        }
        fine &= amx::Split(block_, kKeys, Values(key - from, panel));
      }
    }
    return fine;
  }

  char* Values(int64_t key, int64_t panel) const { return values_ + key * value_bytes_ + panel * amx::BlockBytes(kKeys); }

  // Rows [row, row + count) against the keys [from, to); their state is kept at `state`, their result so far in y.
  bool Rows(const Head& head, int64_t row, int64_t count, int64_t state, int64_t from, int64_t to) {
    bool fine = true;
    for (int64_t r = 0; r < count; ++r) {
      const float* q = head.q + (row + r) * c_.q_strides[1];
      fine &= lists_ ? amx::PutList(q, c_.d, q_, r, list_) : amx::Put(q, c_.d, q_, r);
    }
    if (!fine) { return false; }
    const int64_t width = panels_ * kColumns, line = c_.heads * c_.d;
    for (int64_t r = 0; r < count; ++r) {
      float* sums = sums_ + r * width;
      if (from == 0) {
        largest_[state + r] = kLowest;
        Store(totals_ + (state + r) * kWidth, Set(0), All{});
        std::fill(sums, sums + width, 0.0f);
      } else {
        std::copy_n(head.y + (row + r) * line, c_.d, sums);
      }
    }
    for (int64_t key = from; key < to && !(c_.causal && key >= row + count); key += kKeys) {
      for (int64_t r = 0; r < count; r += 32) {
        if (c_.causal && key >= row + r + 32) { continue; }
        Tile(head, row + r, std::min<int64_t>(32, count - r), r, state + r, key, key - from, std::min(kKeys, to - key));
      }
    }
    for (int64_t r = 0; r < count; ++r) {
      // A row that sees no key is zero, as torch's.
      const float total = Sum(Load(totals_ + (state + r) * kWidth, All{}));
      const F factor = Set(to < c_.n ? 1 : total == 0 ? 0 : 1 / total);
      ForVectors(c_.d, [&](int64_t i, auto lanes) {
        Store(head.y + (row + r) * line + i, Load(sums_ + r * width + i, lanes) * factor, lanes);
      });
    }
    return true;
  }

  // 32 rows against a block of keys.
  void Tile(const Head& head, int64_t row, int64_t count, int64_t r, int64_t state, int64_t key, int64_t place, int64_t keys) {
    const int64_t panels = CeilDiv(keys, kColumns);
    const char* q = q_ + r * row_bytes();
    Scores(q, place, panels);
    const bool plain = c_.mask == nullptr && c_.scale > 0 && !(c_.causal && key + keys > row + 1);
    const float scale = plain ? c_.scale : 1;
    if (plain && keys % kColumns != 0) { HideTail(keys); }
    alignas(64) float largest[32], shrink[32];
    for (int64_t i = 0; i < 32; ++i) {
      if (!plain && i < count) { Hide(head, row + i, key, keys, panels, i); }
      largest[i] = i < count ? std::max(largest_[state + i], LargestOf(i, panels) * scale) : 0;
    }
    for (int64_t i = 0; i < 32; i += kWidth) {
      // While a row has seen no key, any number does: its exponentials are zero.
      const First lanes{static_cast<int>(std::clamp<int64_t>(count - i, 0, kWidth))};
      const F before = Load(largest_ + state + i, lanes), now = Load(largest + i, All{});
      Store(largest_ + state + i, now, lanes);
      const F base = now == Set(kLowest) ? Set(0) : now;
      Store(largest + i, base, All{});
      Store(shrink + i, Exp(before - base), All{});
    }
    for (int64_t i = 0; i < count; ++i) { Exponentials(i, panels, scale, largest[i], shrink[i], totals_ + (state + i) * kWidth); }
    const char* b = p_ + panels * kParts * kTile;
    alignas(64) float made[32 * kColumns];
    for (int64_t panel = 0; panel < panels_; ++panel) {
      const int64_t columns = c_.d - panel * kColumns;
      if (columns > 16) {
        amx::Multiply32x32(p_, b, {}, Values(place, panel), panels, made, [] {});
      } else {
        amx::Multiply32x16(p_, b, Values(place, panel), panels, made, [] {});
      }
      for (int64_t i = 0; i < count; ++i) {
        float* sums = sums_ + ((r + i) * panels_ + panel) * kColumns;
        for (int64_t j = 0; j < (columns > 16 ? 32 : 16); j += kWidth) {
          Store(sums + j, Fma(Load(sums + j, All{}), Set(shrink[i]), Load(made + i * kColumns + j, All{})), All{});
        }
      }
    }
  }

  // No key behind the last one.
  void HideTail(int64_t keys) {
    for (int64_t j = keys; j % kColumns != 0; j = (j / kWidth + 1) * kWidth) {
      const __mmask16 hidden = static_cast<__mmask16>(0xFFFF << j % kWidth);
      float* at = scores_ + j / kColumns * 32 * kColumns + j / kWidth * kWidth % kColumns;
      for (int64_t i = 0; i < 32; ++i) { _mm512_mask_storeu_ps(at + i * kColumns, hidden, Set(kLowest)); }
    }
  }

  // The scores of row i of the tile, scaled, with the mask on, and -inf where there is no key that it sees.
  void Hide(const Head& head, int64_t row, int64_t key, int64_t keys, int64_t panels, int64_t i) {
    if (c_.causal) { keys = std::min(keys, row + 1 - key); }
    const float* mask = head.mask == nullptr ? nullptr : head.mask + row * c_.mask_strides[2] + key * c_.mask_strides[3];
    const int64_t step = c_.mask_strides[3];
    for (int64_t j = 0; j < panels * kColumns; j += kWidth) {
      float* at = scores_ + (j / kColumns * 32 + i) * kColumns + j % kColumns;
      const First lanes{static_cast<int>(std::clamp<int64_t>(keys - j, 0, kWidth))};
      F score = Load(at, All{}) * c_.scale;
      if (mask != nullptr && lanes.count > 0) {
        if (step == 1) {
          score += Load(mask + j, lanes);
        } else {
          for (int lane = 0; lane < lanes.count; ++lane) { score[lane] += mask[(j + lane) * step]; }
        }
      }
      Store(at, Choose(score, Set(kLowest), lanes), All{});
    }
  }

  // 32 rows times the keys from `place` on.
  void Scores(const char* q, int64_t place, int64_t panels) {
    alignas(64) float made[32 * kColumns];
    const int64_t chain = lists_ ? kListChain : kChain;
    for (int64_t i = 0; i < panels; ++i) {
      const char* keys = keys_ + (place + i * kColumns) * key_bytes_;
      float* scores = scores_ + i * 32 * kColumns;
      for (int64_t step = 0; step < steps_; step += chain) {
        const char *a = q + step * step_bytes_, *b = a + 16 * row_bytes(), *columns = keys + step * 2 * step_bytes_;
        const int64_t steps = std::min(chain, steps_ - step);
        float* to = step == 0 ? scores : made;
        if (lists_) {
          amx::MultiplyLists(a, b, columns, steps, to);
        } else {
          amx::Multiply32x32(a, b, {}, columns, steps, to, [] {});
        }
        if (step > 0) { amx::Add(made, 32 * kColumns, scores); }
      }
    }
  }

  float LargestOf(int64_t i, int64_t panels) const {
    const float* at = scores_ + i * kColumns;
    F most = Set(kLowest);
    for (int64_t panel = 0; panel < panels; ++panel, at += 32 * kColumns) {
      most = MaxOrB(most, MaxOrB(Load(at, All{}), Load(at + 16, All{})));
    }
    return Largest(most);
  }

  // Row i of the tile: exp(scale * score - largest), split into p_.
  void Exponentials(int64_t i, int64_t panels, float scale, float largest, float shrink, float* totals) {
    const float* at = scores_ + i * kColumns;
    const F base = Set(-largest), factor = Set(scale);
    F sum = Load(totals, All{}) * shrink;
    char* to = p_ + i / 16 * panels * kParts * kTile + i % 16 * 64;
    for (int64_t panel = 0; panel < panels; ++panel, at += 32 * kColumns, to += kParts * kTile) {
      const F a = ExpOfNegative(Fma(Load(at, All{}), factor, base)), b = ExpOfNegative(Fma(Load(at + 16, All{}), factor, base));
      sum += a + b;
      amx::StorePairs(amx::Parts(a), amx::Parts(b), to, kTile);
    }
    Store(totals, sum, All{});
  }

  // As Exp, for x <= 0 or little more: the nearest whole number by way of one so large that it has no fraction.
  static F ExpOfNegative(F x) {
    constexpr float kWhole = 0x1.8p23f;
    x = MaxOrB(Set(-104.0f), x);
    const F n = Fma(x, Set(1.44269504f), Set(kWhole)) - kWhole;
    F r = Fma(n, Set(-0x1.62e400p-1f), x);
    r = Fma(n, Set(-0x1.7f7d1cp-20f), r);
    return Scale(ExpOfFraction(r), n);
  }

  const AttentionCall& c_;
  const int64_t panels_;
  const bool lists_;  // whether rows and keys are multiplied as lists
  const int64_t steps_, step_bytes_, key_bytes_, value_bytes_, chunk_, rows_;
  char *keys_ = nullptr, *values_ = nullptr, *q_ = nullptr, *p_ = nullptr;
  float *block_ = nullptr, *sums_ = nullptr, *scores_ = nullptr, *largest_ = nullptr, *totals_ = nullptr;
  uint32_t* list_ = nullptr;
};

}  // namespace

bool RunAttention(const AttentionCall& call) {
  const int64_t blocks = CeilDiv(call.m, 32), all = call.b * call.heads;
  std::atomic<bool> fine{true};
  // Whole tiles of rows for each thread, from the first head to the last.
  ForRanges(all * blocks, all * call.m * call.n * call.d, [&](int64_t begin, int64_t end) {
    const auto row = [&](int64_t block) { return block / blocks * call.m + std::min(call.m, block % blocks * 32); };
    if (!Attend(call).Run(row(begin), row(end))) { fine = false; }
  });
  return fine;
}

}  // namespace dfo::math
#endif
