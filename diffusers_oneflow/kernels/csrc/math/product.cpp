#include "product.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <utility>

#include "finish.h"
#include "gather.h"
#include "lines.h"
#include "panels.h"
#include "parallel.h"
#include "scratch.h"
#include "tile_amx.h"
#include "tile_fma.h"
#include "turned.h"

namespace dfo::math {
namespace {

// Bytes of x and of results that stay in the second-level cache while they are worked on.
constexpr int64_t kCache = 1280 * 1024;
// Nanoseconds, roughly: to gather a number of x, to read one of a packed filter, to pack one of a filter, to split one.
constexpr double kGather = 0.1, kRead = 0.05, kPack = 0.25, kSplit = 0.15;
// A larger filter is prepared piece by piece, not as a whole before it is used.
constexpr int64_t kPreparedAtOnce = 96 << 20;
// Up to so many rows a tile on AMX would be mostly empty.
[[maybe_unused]] constexpr int64_t kFewRows = 8;

// A filter's blocks as they are multiplied with, all of them.
template <class Tiles>
class Prepared {
 public:
  explicit Prepared(const Filter& f) : blocks_(f), panels_(CeilDiv(f.n, kColumns)), size_(Tiles::BlockBytes(blocks_.Depth(0))) {}

  int64_t Bytes() const { return panels_ * blocks_.count * size_; }
  const char* Block(int64_t panel, int64_t block) const { return memory_ + (panel * blocks_.count + block) * size_; }
  bool filled() const { return memory_ != nullptr; }

  // False where a number is not finite, and Tiles needs it to be.
  bool Fill(const Product& p, char* memory) {
    std::atomic<bool> fine{true};
    ForRanges(panels_ * blocks_.count, kEnough, [&](int64_t begin, int64_t end) {
      alignas(64) float floats[kDepth * kColumns];
      for (int64_t i = begin; i < end; ++i) {
        const int64_t panel = i / blocks_.count, block = i % blocks_.count;
        char* to = memory + i * size_;
        const float* from = p.packed + panel * blocks_.PanelSize() + blocks_.Offset(block);
        if (p.packed == nullptr) {
          float* packed = Tiles::kSplits ? floats : reinterpret_cast<float*>(to);
          PackBlock(p.filter, blocks_, panel, block, packed);
          from = packed;
        }
        if (!Tiles::Split(from, blocks_.Depth(block), to)) { fine = false; }
      }
    });
    memory_ = memory;
    return fine;
  }

 private:
  Blocks blocks_;
  int64_t panels_, size_;
  const char* memory_ = nullptr;
};

// What one thread computes: tiles of rows [first_row, last_row) by panels [first_panel, last_panel). Rows: see Gathered.
template <class Tiles, class Rows = Gathered<Tiles>>
class Part {
 public:
  Part(const Product& p, const Prepared<Tiles>& prepared, int64_t first_row, int64_t last_row, int64_t first_panel,
       int64_t last_panel)
      : p_(p), prepared_(prepared), f_(p.filter), blocks_(p.filter), rows_(p, blocks_),
        half_(p.gate == Act::kNone ? 0 : f_.n / kColumns / 2), first_row_(first_row), last_row_(last_row),
        first_panel_(first_panel), last_panel_(last_panel) {}

  // Whether it reads the filter more than once.
  bool Repeats() const { return Sizes().first < last_row_ - first_row_; }

  // False if there is no memory.
  bool Run() {
    if (first_row_ >= last_row_ || first_panel_ >= last_panel_) { return true; }
    const auto [rows, group] = Sizes();
    const int64_t panels = group * (half_ ? 2 : 1);
    const int64_t depth = blocks_.Depth(0), block = CeilDiv(depth * kColumns * 4, 64) * 64;
    const int64_t results = panels * (rows + kRows) * kColumns * 4, made = CeilDiv(Tiles::BlockBytes(depth), 64) * 64;
    const int64_t gathered = CeilDiv(rows * rows_.RowBytes() + rows_.ExtraBytes(rows), 4096) * 4096;
    static thread_local Scratch scratch;
    a_ = scratch.Get(gathered + results + block + made);
    if (a_ == nullptr) { return false; }
    made_ = a_ + gathered;
    c_ = reinterpret_cast<float*>(made_ + made);
    b_ = c_ + results / 4;
    [[maybe_unused]] typename Tiles::Registers registers;
    for (int64_t row = first_row_; row < last_row_; row += rows) {
      count_ = std::min(rows, last_row_ - row);
      for (int64_t panel = first_panel_; panel < last_panel_; panel += group) {
        if (!Group(row, panel, std::min(group, last_panel_ - panel))) { return false; }
      }
    }
    return true;
  }

 private:
  static constexpr int kRows = Tiles::kRows;

  int64_t PaddedRows() const { return CeilDiv(count_, kRows) * kRows; }

  // How many rows and panels at a time: x is gathered once for every group of panels, the filter read once for every
  // group of rows, and what belongs to both has to stay in the cache.
  std::pair<int64_t, int64_t> Sizes() const {
    const int64_t rows = last_row_ - first_row_, panels = last_panel_ - first_panel_;
    const double split = Tiles::kSplits ? kSplit : 0, gather = (kGather + split) * rows_.Share();
    const double prepare = prepared_.filled() ? kRead : split + (p_.packed == nullptr ? kPack : kRead);
    std::pair<int64_t, int64_t> best{kRows, 1};
    double least = 0;
    for (int64_t groups = 1; groups <= panels; ++groups) {
      const int64_t group = CeilDiv(panels, groups), columns = group * kColumns * (half_ ? 2 : 1);
      const int64_t room = kCache - rows_.ExtraBytes(0);
      const int64_t fit = std::max<int64_t>(room / (rows_.RowBytes() + columns * 4), kRows), parts = CeilDiv(rows, fit);
      const double cost = gather * static_cast<double>(CeilDiv(panels, group) * rows)
                          + prepare * static_cast<double>(parts * panels * kColumns);
      if (groups == 1 || cost < least) { least = cost, best = {CeilDiv(CeilDiv(rows, parts), kRows) * kRows, group}; }
      if (parts == 1) { break; }
    }
    return best;
  }

  bool Group(int64_t row, int64_t panel, int64_t panels) {
    bool fine = true;
    const int64_t all = panels * (half_ ? 2 : 1);
    // The i-th panel of the group: the gates come after what they gate.
    const auto number = [&](int64_t i) { return i < panels ? panel + i : panel + half_ + i - panels; };
    for (int64_t block = 0; block < blocks_.count; ++block) {
      fine &= rows_.Fill(block, row, count_, a_);
      for (int64_t i = 0; i < all; ++i) {
        const bool last = i + 1 == all;
        fine &= Multiply(number(i), block, number(last ? 0 : i + 1), std::min(block + last, blocks_.count - 1), C(i));
      }
    }
    sums_.Settle();
    if (!fine) { return Part<FmaTiles>(p_, Prepared<FmaTiles>(f_), row, row + count_, panel, panel + panels).Run(); }
    for (int64_t r = 0; r < count_; ++r) { Finish(row + r, r, panel, panels); }
    return true;
  }

  float* C(int64_t place) const { return c_ + place * PaddedRows() * kColumns; }

  // Where the filter's block will be read.
  Ahead Next(int64_t panel, int64_t block) const {
    if (prepared_.filled()) { return {prepared_.Block(panel, block), 0, Tiles::BlockBytes(blocks_.Depth(block)) / 64, 0, 0}; }
    if (p_.packed != nullptr) {
      return {reinterpret_cast<const char*>(p_.packed + panel * blocks_.PanelSize() + blocks_.Offset(block)), 0,
              blocks_.Depth(block) * kColumns / 16, 0, 0};
    }
    const float* first = f_.data + panel * kColumns * f_.strides[0] + block * blocks_.channels * f_.strides[1];
    return {reinterpret_cast<const char*>(first), 0, blocks_.Depth(block) / 16 + 1, kColumns, f_.strides[0] * 4};
  }

  // False where a number is not finite, and Tiles needs it to be.
  bool Multiply(int64_t panel, int64_t block, int64_t next_panel, int64_t next_block, float* c) {
    Ahead next = Next(next_panel, next_block);
    const int64_t depth = blocks_.Depth(block);
    bool fine = true;
    const char* b = nullptr;
    if (prepared_.filled()) {
      b = prepared_.Block(panel, block);
    } else {
      const float* floats = p_.packed + panel * blocks_.PanelSize() + blocks_.Offset(block);
      if (p_.packed == nullptr) {
        PackBlock(f_, blocks_, panel, block, b_);
        floats = b_;
      }
      fine = Tiles::Split(floats, depth, made_);
      b = Tiles::kSplits ? made_ : reinterpret_cast<const char*>(floats);
    }
    for (int64_t begin = 0; begin < depth; begin += Tiles::kPart) {
      for (int64_t t = 0; t < count_; t += kRows) {
        rows_.Multiply(t, static_cast<int>(std::min<int64_t>(kRows, count_ - t)), b, begin, depth, block + begin > 0,
                       c + t * kColumns, &next, &sums_);
      }
    }
    return fine;
  }

  // One row of results: what follows the product.
  void Finish(int64_t row, int64_t r, int64_t panel, int64_t panels) {
    WithAct(half_ ? p_.gate : p_.act, [&](auto act) {
      for (int64_t i = 0; i < panels; ++i) {
        FinishColumns(p_, act, row, (panel + i) * kColumns, C(i) + r * kColumns, half_ ? C(panels + i) + r * kColumns : nullptr);
      }
    });
  }

  const Product& p_;
  const Prepared<Tiles>& prepared_;
  const Filter& f_;
  Blocks blocks_;
  Rows rows_;
  typename Tiles::Sums sums_;
  int64_t half_;  // panels between a column and its gate
  int64_t first_row_, last_row_, first_panel_, last_panel_;
  int64_t count_ = 0;
  char *a_ = nullptr, *made_ = nullptr;
  float *b_ = nullptr, *c_ = nullptr;
};

// The threads as a grid over rows and columns, (down, across): the one that leaves none with more than the others; of
// equal ones the one that reads less (each row of threads reads the whole filter, each column all of x).
std::pair<int64_t, int64_t> Grid(int64_t threads, int64_t rows, int64_t panels, int64_t tile_rows) {
  const int64_t tiles = CeilDiv(rows, tile_rows);
  int64_t across = 1;
  double best = 0;
  for (int64_t n = 1; n <= threads; ++n) {
    if (threads % n != 0) { continue; }
    const int64_t m = threads / n;
    const double work = static_cast<double>(CeilDiv(panels, n)) * CeilDiv(tiles, m) * tile_rows * kColumns;
    const double reads = static_cast<double>(m) * panels * kColumns + static_cast<double>(n) * rows;
    const double cost = work + reads;
    if (best == 0 || cost < best) { best = cost, across = n; }
  }
  return {threads / across, across};
}

template <class Tiles, class Rows = Gathered<Tiles>>
bool RunWith(const Product& p) {
  const int64_t rows = p.batch * p.oh * p.ow, tiles = CeilDiv(rows, Tiles::kRows);
  const int64_t panels = CeilDiv(p.filter.n, kColumns) / (p.gate == Act::kNone ? 1 : 2);
  const int64_t depth = p.filter.c * p.filter.kh * p.filter.kw;
  Prepared<Tiles> prepared(p.filter);
  if (rows * panels * kColumns * depth < kEnough) { return Part<Tiles, Rows>(p, prepared, 0, rows, 0, panels).Run(); }
  const auto part = [&](int64_t thread, std::pair<int64_t, int64_t> grid) {
    const auto [down, across] = grid;
    const int64_t i = thread / across, j = thread % across;
    const auto row = [&](int64_t k) { return std::min(rows, tiles * k / down * Tiles::kRows); };
    return Part<Tiles, Rows>(p, prepared, row(i), row(i + 1), panels * j / across, panels * (j + 1) / across);
  };
  // A filter that would be prepared more than once, by several threads or for several groups of rows, is prepared before.
  static thread_local Scratch whole;
  const auto grid = Grid(omp_get_max_threads(), rows, panels, Tiles::kRows);
  if ((Tiles::kSplits || p.packed == nullptr) && prepared.Bytes() <= kPreparedAtOnce
      && (grid.first > 1 || part(0, grid).Repeats())) {
    char* memory = whole.Get(prepared.Bytes());
    if (memory != nullptr && !prepared.Fill(p, memory)) { return RunWith<FmaTiles>(p); }
  }
  bool done = true;
#pragma omp parallel reduction(&& : done)
  done = part(omp_get_thread_num(), Grid(omp_get_num_threads(), rows, panels, Tiles::kRows)).Run();
  return done;
}

bool Run(const Product& p) {
#if defined(__AMX_BF16__)
  if (p.batch * p.oh * p.ow > kFewRows) {
    if (Turns(p)) {
      if (RunTurned(p)) { return true; }
    } else {
      return Lines::Fit(p) ? RunWith<AmxTiles, Lines>(p) : RunWith<AmxTiles>(p);
    }
  }
#endif
  return RunWith<FmaTiles>(p);
}

#if !defined(__AMX_BF16__)
constexpr bool (*RunAttention)(const AttentionCall&) = nullptr;
#endif

const Products kProducts = {PackedBytes, Pack, Unpack, Ordered, UnpackRange, SameRange, Run, RunAttention};

}  // namespace
}  // namespace dfo::math

extern "C" __attribute__((visibility("default"))) const dfo::math::Products* dfo_products() { return &dfo::math::kProducts; }
