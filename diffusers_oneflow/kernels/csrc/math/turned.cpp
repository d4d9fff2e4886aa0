#if defined(__AMX_BF16__)
#include "turned.h"

#include <algorithm>
#include <atomic>

#include "finish.h"
#include "gather.h"
#include "parallel.h"
#include "scratch.h"
#include "tile_amx.h"
#include "transpose.h"

namespace dfo::math {
namespace {

// Of more rows, to turn x costs more than the filter.
constexpr int64_t kMostRows = 256;
// Bytes of results of one thread that stay in the second-level cache, beside columns.
constexpr int64_t kCache = 640 << 10, kColumnCache = 768 << 10;

// x as columns: for each block of channels and 32 pixels the steps of amx.h.
class Pixels {
 public:
  explicit Pixels(const Product& p)
      : p_(p), blocks_(p.filter), rows_(p.batch * p.oh * p.ow), panels_(CeilDiv(rows_, kColumns)),
        size_(amx::BlockBytes(blocks_.Depth(0))) {}

  int64_t Bytes() const { return panels_ * blocks_.count * size_; }
  int64_t panels() const { return panels_; }
  // Whether it has no more than 16.
  bool Narrow(int64_t panel) const { return rows_ - panel * kColumns <= 16; }
  const Blocks& blocks() const { return blocks_; }
  // Of one block, all pixels.
  int64_t BlockBytes() const { return panels_ * size_; }
  const char* Block(int64_t block, int64_t panel) const { return memory_ + (block * panels_ + panel) * size_; }

  // False where a number is not finite.
  bool Fill(char* memory) {
    memory_ = memory;
    std::atomic<bool> fine{true};
    ForRanges(blocks_.count * panels_, rows_ * blocks_.PanelSize() / kColumns, [&](int64_t begin, int64_t end) {
      alignas(64) float gathered[kColumns * kDepth], columns[kDepth * kColumns];
      for (int64_t i = begin; i < end; ++i) {
        const int64_t block = i / panels_, panel = i % panels_, depth = blocks_.Depth(block);
        const int64_t count = std::min(kColumns, rows_ - panel * kColumns);
        GatherRows(
            p_, block * blocks_.channels, blocks_.Channels(block), panel * kColumns, count,
            [&](int64_t r) { return gathered + r * kDepth; }, [](int64_t, const float*) {});
        for (int64_t r = count; r < kColumns; ++r) { std::fill_n(gathered + r * kDepth, depth, 0.0f); }
        Turn(gathered, blocks_.Channels(block), columns);
        if (!amx::Split(columns, depth, memory + i * size_)) { fine = false; }
      }
    });
    return fine;
  }

 private:
  // (pixel, tap, channel) to (channel, tap, pixel): the order of the filter's numbers.
  void Turn(const float* gathered, int64_t channels, float* columns) const {
    const int64_t taps = blocks_.taps;
    for (int64_t tap = 0; tap < taps; ++tap) {
      const float* from = gathered + tap * channels;
      int64_t c = 0;
      for (; c + kWidth <= channels; c += kWidth) {
        for (int64_t j = 0; j < kColumns; j += kWidth) {
          Transpose(from + j * kDepth + c, kDepth, [&](int k) { return columns + ((c + k) * taps + tap) * kColumns + j; });
        }
      }
      for (; c < channels; ++c) {
        for (int64_t j = 0; j < kColumns; ++j) { columns[(c * taps + tap) * kColumns + j] = from[j * kDepth + c]; }
      }
    }
  }

  const Product& p_;
  Blocks blocks_;
  int64_t rows_, panels_, size_;
  char* memory_ = nullptr;
};

// What one thread computes: 32 output channels at a time, all pixels.
class Channels {
 public:
  Channels(const Product& p, const Pixels& pixels)
      : p_(p), pixels_(pixels), blocks_(pixels.blocks()), half_(p.gate == Act::kNone ? 0 : p.filter.n / 2) {}

  // Tiles [begin, end) of 32 channels.
  bool Run(int64_t begin, int64_t end) {
    const int64_t tile_floats = pixels_.panels() * 32 * kColumns, sides = half_ ? 2 : 1;
    const int64_t most = std::max<int64_t>(1, kCache / (tile_floats * 4 * sides));
    const int64_t group = CeilDiv(end - begin, CeilDiv(end - begin, most));
    // A row of the filter is read in pieces as long as possible: so the processor fetches it ahead.
    const int64_t at_once = std::clamp<int64_t>(kColumnCache / pixels_.BlockBytes(), 1, blocks_.count);
    const int64_t rows_bytes = 32 * amx::RowBytes(kDepth);
    static thread_local Scratch scratch;
    char* memory = scratch.Get(2 * rows_bytes + group * sides * tile_floats * 4);
    if (memory == nullptr) { return false; }
    auto* c = reinterpret_cast<float*>(memory + 2 * rows_bytes);
    amx::Registers registers;
    for (; begin < end; begin += group) {
      const int64_t tiles = std::min(group, end - begin);
      for (int64_t first = 0; first < blocks_.count; first += at_once) {
        const int64_t blocks = std::min(at_once, blocks_.count - first), count = tiles * sides * blocks;
        const auto channel = [&](int64_t k) { return Channel(begin, tiles, k / blocks); };
        const auto block = [&](int64_t k) { return first + k % blocks; };
        const auto rows = [&](int64_t k) { return memory + k % 2 * rows_bytes; };
        // While one product is computed, the filter's rows of the next are split, and those of the one after fetched.
        const auto split = [&](int64_t k) {
          const float* next = k + 1 < count ? Row(channel(k + 1), block(k + 1)) : Row(channel(k), first);
          rows_.Begin(Row(channel(k), block(k)), next, p_.filter.strides[0], p_.filter.n - channel(k), blocks_.Depth(block(k)),
                      rows(k));
        };
        split(0);
        for (int64_t k = 0; k < count; ++k) {
          if (!rows_.Finish()) { return false; }
          if (k + 1 < count) { split(k + 1); }
          Multiply(rows(k), block(k), c + k / blocks * tile_floats);
        }
      }
      sums_.Settle();
      for (int64_t i = 0; i < tiles; ++i) {
        Finish((begin + i) * 32, c + i * tile_floats, half_ ? c + (tiles + i) * tile_floats : nullptr);
      }
    }
    return true;
  }

 private:
  // The first channel of the i-th tile of a group: the gates come after what they gate.
  int64_t Channel(int64_t begin, int64_t tiles, int64_t i) const {
    return i < tiles ? (begin + i) * 32 : half_ + (begin + i - tiles) * 32;
  }

  const float* Row(int64_t channel, int64_t block) const {
    return p_.filter.data + channel * p_.filter.strides[0] + block * blocks_.channels * blocks_.taps;
  }

  void Multiply(const char* rows, int64_t block, float* c) {
    const int64_t depth = blocks_.Depth(block), sixteen = amx::Steps(depth) * amx::kParts * amx::kTile;
    Ahead none;
    for (int64_t begin = 0; begin < depth; begin += AmxTiles::kPart) {
      const char* a = rows + begin / kStep * amx::kParts * amx::kTile;
      for (int64_t panel = 0; panel < pixels_.panels(); ++panel) {
        AmxTiles::Multiply(a, a + sixteen, {}, pixels_.Block(block, panel), begin, depth, block + begin > 0,
                           c + panel * 32 * kColumns, &none, &sums_, pixels_.Narrow(panel), [&] { rows_.Some(); });
      }
    }
  }

  // (channel, pixel) to rows of y.
  void Finish(int64_t channel, const float* c, const float* gate) {
    const int64_t rows = p_.batch * p_.oh * p_.ow;
    alignas(64) float turned[2][32 * kColumns];
    WithAct(half_ ? p_.gate : p_.act, [&](auto act) {
      for (int64_t panel = 0; panel < pixels_.panels(); ++panel) {
        Turn(c + panel * 32 * kColumns, turned[0]);
        if (half_) { Turn(gate + panel * 32 * kColumns, turned[1]); }
        for (int64_t r = 0; r < std::min(kColumns, rows - panel * kColumns); ++r) {
          FinishColumns(p_, act, panel * kColumns + r, channel, turned[0] + r * 32, half_ ? turned[1] + r * 32 : nullptr);
        }
      }
    });
  }

  static void Turn(const float* from, float* to) {
    for (int64_t i = 0; i < 32; i += kWidth) {
      for (int64_t j = 0; j < 32; j += kWidth) {
        Transpose(from + i * 32 + j, 32, [&](int k) { return to + (j + k) * 32 + i; });
      }
    }
  }

  const Product& p_;
  const Pixels& pixels_;
  const Blocks& blocks_;
  int64_t half_;
  amx::PutMeanwhile rows_;
  amx::Sums sums_;
};

}  // namespace

bool Turns(const Product& p) {
  const Filter& f = p.filter;
  return p.packed == nullptr && p.batch * p.oh * p.ow <= kMostRows && f.kh * f.kw <= kDepth && InTorchOrder(f);
}

bool RunTurned(const Product& p) {
  Pixels pixels(p);
  static thread_local Scratch scratch;
  char* memory = scratch.Get(pixels.Bytes());
  if (memory == nullptr || !pixels.Fill(memory)) { return false; }
  const int64_t tiles = CeilDiv(p.filter.n, 32) / (p.gate == Act::kNone ? 1 : 2);
  std::atomic<bool> fine{true};
  ForRanges(tiles, p.batch * p.oh * p.ow * tiles * p.filter.c * p.filter.kh * p.filter.kw, [&](int64_t begin, int64_t end) {
    if (!Channels(p, pixels).Run(begin, end)) { fine = false; }
  });
  return fine;
}

}  // namespace dfo::math
#endif
