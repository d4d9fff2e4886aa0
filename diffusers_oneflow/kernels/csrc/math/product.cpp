#include "product.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <utility>

#include "functions.h"
#include "panels.h"
#include "parallel.h"
#include "vec.h"

namespace dfo::math {
namespace {

constexpr int kVectors = kColumns / kWidth;
// As many rows of a tile as leave registers for the columns: 12 x 32 accumulators of AVX-512's 32 registers.
constexpr int kRows = kWidth == 16 ? 12 : 3;
// Bytes of x and of results that stay in the second-level cache while they are worked on.
constexpr int64_t kCache = 1280 * 1024;
// Nanoseconds, roughly: to gather a number of x, to read one of a packed filter, to pack one of a filter.
constexpr double kGather = 0.1, kRead = 0.05, kPack = 0.25;
// A larger filter is packed piece by piece, not as a whole before it is used.
constexpr int64_t kPackedAtOnce = 64 << 20;

// ---- packing -------------------------------------------------------------------------------------------------------

// 16 or 8 rows of as many numbers, `stride` apart, as columns; column i goes to out(i).
#if defined(__AVX512F__)
template <class Out>
inline void Transpose(const float* in, int64_t stride, const Out& out) {
  __m512 a[16], b[16];
  for (int i = 0; i < 16; ++i) { a[i] = _mm512_loadu_ps(in + i * stride); }
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    const auto d = [](__m512 v) { return _mm512_castps_pd(v); };
    const auto s = [](__m512d v) { return _mm512_castpd_ps(v); };
    a[i] = s(_mm512_unpacklo_pd(d(b[i]), d(b[i + 2])));
    a[i + 1] = s(_mm512_unpackhi_pd(d(b[i]), d(b[i + 2])));
    a[i + 2] = s(_mm512_unpacklo_pd(d(b[i + 1]), d(b[i + 3])));
    a[i + 3] = s(_mm512_unpackhi_pd(d(b[i + 1]), d(b[i + 3])));
  }
  for (int i = 0; i < 4; ++i) {
    b[i] = _mm512_shuffle_f32x4(a[i], a[i + 4], 0x88);
    b[i + 4] = _mm512_shuffle_f32x4(a[i], a[i + 4], 0xDD);
    b[i + 8] = _mm512_shuffle_f32x4(a[i + 8], a[i + 12], 0x88);
    b[i + 12] = _mm512_shuffle_f32x4(a[i + 8], a[i + 12], 0xDD);
  }
  for (int i = 0; i < 4; ++i) {
    _mm512_storeu_ps(out(i), _mm512_shuffle_f32x4(b[i], b[i + 8], 0x88));
    _mm512_storeu_ps(out(i + 8), _mm512_shuffle_f32x4(b[i], b[i + 8], 0xDD));
    _mm512_storeu_ps(out(i + 4), _mm512_shuffle_f32x4(b[i + 4], b[i + 12], 0x88));
    _mm512_storeu_ps(out(i + 12), _mm512_shuffle_f32x4(b[i + 4], b[i + 12], 0xDD));
  }
}
#else
template <class Out>
inline void Transpose(const float* in, int64_t stride, const Out& out) {
  for (int i = 0; i < kWidth; ++i) {
    float* to = out(i);
    for (int j = 0; j < kWidth; ++j) { to[j] = in[j * stride + i]; }
  }
}
#endif

}  // namespace

void PackBlock(const Filter& f, const Blocks& blocks, int64_t panel, int64_t block, float* out) {
  const int64_t channels = blocks.Channels(block), taps = blocks.taps, depth = taps * channels;
  const int64_t first = panel * kColumns, columns = std::min(kColumns, f.n - first);
  const float* in = f.data + first * f.strides[0] + block * blocks.channels * f.strides[1];
  const bool torch_order = f.strides[1] == taps && (taps == 1 || (f.strides[3] == 1 && f.strides[2] == f.kw));
  int64_t i = 0;
  if (torch_order && columns == kColumns && depth <= kDepth) {
    // Where the numbers of a column, in torch's order (channel, tap), go: to find out takes a division for each.
    int64_t places[kDepth];
    for (int64_t c = 0, at = 0; c < channels; ++c) {
      for (int64_t tap = 0; tap < taps; ++tap, ++at) { places[at] = (tap * channels + c) * kColumns; }
    }
    for (; i + kWidth <= depth; i += kWidth) {
      for (int64_t j = 0; j < kColumns; j += kWidth) {
        Transpose(in + j * f.strides[0] + i, f.strides[0], [&](int k) { return out + places[i + k] + j; });
      }
    }
  }
  for (; i < depth; ++i) {
    const int64_t c = i / taps, tap = i % taps;
    const float* from = in + c * f.strides[1] + tap / f.kw * f.strides[2] + tap % f.kw * f.strides[3];
    float* to = out + (tap * channels + c) * kColumns;
    for (int64_t j = 0; j < kColumns; ++j) { to[j] = j < columns ? from[j * f.strides[0]] : 0.0f; }
  }
}

namespace {

int64_t PackedBytes(const Filter& f) { return CeilDiv(f.n, kColumns) * Blocks(f).PanelSize() * sizeof(float); }

void Pack(const Filter& f, float* packed) {
  const Blocks blocks(f);
  ForRanges(CeilDiv(f.n, kColumns), kEnough, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) {
      float* to = packed + panel * blocks.PanelSize();
      for (int64_t block = 0; block < blocks.count; ++block) { PackBlock(f, blocks, panel, block, to + blocks.Offset(block)); }
    }
  });
}

// ---- the product ---------------------------------------------------------------------------------------------------

// The memory of the filter's next block, fetched line by line while this one is computed with: at a latent of 8 x 8 a
// filter is read from memory about as fast as it is used.
struct Ahead {
  const char* row = nullptr;
  int64_t line = 0, lines = 0, rows = 0, stride = 0;  // stride in bytes

  void Fetch() {
    _mm_prefetch(row + line * 64, _MM_HINT_T1);
    if (++line < lines) { return; }
    line = 0;
    if (rows > 0) { --rows, row += stride; }
  }
};

// out (kTile, kColumns) = or += a (kTile, depth; rows kDepth apart) times b (depth, kColumns).
template <int kTile>
void Tile(const float* __restrict a, const float* __restrict b, int64_t depth, bool add, float* __restrict out, Ahead* next) {
  Ahead ahead = *next;
  F sum[kTile][kVectors];
#pragma GCC unroll 12
  for (int r = 0; r < kTile; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) { sum[r][v] = Set(0); }
  }
  for (int64_t k = 0; k < depth; ++k) {
    ahead.Fetch();
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

// Only as many rows as there are, or one more.
void RunTile(int rows, const float* a, const float* b, int64_t depth, bool add, float* out, Ahead* next) {
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

// kKernel x kKernel pixels of kCount numbers each; `line` and `step` lead to the next row and the next pixel.
template <int kKernel, int kCount>
inline void CopyPixels(const float* __restrict from, int64_t line, int64_t step, float* __restrict to) {
#pragma GCC unroll 3
  for (int ky = 0; ky < kKernel; ++ky) {
#pragma GCC unroll 3
    for (int kx = 0; kx < kKernel; ++kx) {
      const float* pixel = from + ky * line + kx * step;
#pragma GCC unroll 2
      for (int i = 0; i < kCount; i += kWidth) { Store(to + (ky * kKernel + kx) * kCount + i, Load(pixel + i, All{}), All{}); }
    }
    // The same pixels are wanted for the next block.
    _mm_prefetch(reinterpret_cast<const char*>(from + ky * line + kCount), _MM_HINT_T1);
  }
}

struct Free {
  void operator()(float* p) const { std::free(p); }
};

// Memory of one thread, kept for its next call.
class Scratch {
 public:
  float* Get(int64_t floats) {
    if (floats > size_) {
      memory_.reset(static_cast<float*>(std::aligned_alloc(64, CeilDiv(floats * sizeof(float), 64) * 64)));
      size_ = memory_ ? floats : 0;
    }
    return memory_.get();
  }

 private:
  std::unique_ptr<float, Free> memory_;
  int64_t size_ = 0;
};

// What one thread computes: tiles of rows [first_row, last_row) by panels [first_panel, last_panel).
class Part {
 public:
  Part(const Product& p, int64_t first_row, int64_t last_row, int64_t first_panel, int64_t last_panel)
      : p_(p), f_(p.filter), blocks_(p.filter), half_(p.gate == Act::kNone ? 0 : f_.n / kColumns / 2),
        first_row_(first_row), last_row_(last_row), first_panel_(first_panel), last_panel_(last_panel) {}

  // Whether it reads the filter more than once.
  bool Repeats() const { return Sizes().first < last_row_ - first_row_; }

  // False if there is no memory.
  bool Run() {
    if (first_row_ >= last_row_ || first_panel_ >= last_panel_) { return true; }
    const auto [rows, group] = Sizes();
    const int64_t panels = group * (half_ ? 2 : 1);
    static thread_local Scratch scratch;
    a_ = scratch.Get((rows + kRows) * kDepth + panels * (rows + kRows) * kColumns + kDepth * kColumns);
    if (a_ == nullptr) { return false; }
    c_ = a_ + (rows + kRows) * kDepth;
    b_ = c_ + panels * (rows + kRows) * kColumns;
    for (int64_t row = first_row_; row < last_row_; row += rows) {
      count_ = std::min(rows, last_row_ - row);
      for (int64_t panel = first_panel_; panel < last_panel_; panel += group) {
        Group(row, panel, std::min(group, last_panel_ - panel));
      }
    }
    return true;
  }

 private:
  int64_t Tiles() const { return CeilDiv(count_, kRows); }

  // How many rows and panels at a time: x is gathered once for every group of panels, the filter read once for every
  // group of rows, and what belongs to both has to stay in the cache.
  std::pair<int64_t, int64_t> Sizes() const {
    const int64_t rows = last_row_ - first_row_, panels = last_panel_ - first_panel_;
    std::pair<int64_t, int64_t> best{kRows, 1};
    double least = 0;
    for (int64_t groups = 1; groups <= panels; ++groups) {
      const int64_t group = CeilDiv(panels, groups), columns = group * kColumns * (half_ ? 2 : 1);
      const int64_t fit = std::max<int64_t>(kCache / 4 / (kDepth + columns), kRows), parts = CeilDiv(rows, fit);
      const double cost = kGather * static_cast<double>(CeilDiv(panels, group) * rows) +
                          (p_.packed == nullptr ? kPack : kRead) * static_cast<double>(parts * panels * kColumns);
      if (groups == 1 || cost < least) { least = cost, best = {CeilDiv(CeilDiv(rows, parts), kRows) * kRows, group}; }
      if (parts == 1) { break; }
    }
    return best;
  }

  void Group(int64_t row, int64_t panel, int64_t panels) {
    const int64_t all = panels * (half_ ? 2 : 1);
    // The i-th panel of the group: the gates come after what they gate.
    const auto number = [&](int64_t i) { return i < panels ? panel + i : panel + half_ + i - panels; };
    for (int64_t block = 0; block < blocks_.count; ++block) {
      Gather(row, block);
      for (int64_t i = 0; i < all; ++i) {
        const bool last = i + 1 == all;
        Multiply(number(i), block, number(last ? 0 : i + 1), std::min(block + last, blocks_.count - 1), C(i));
      }
    }
    for (int64_t r = 0; r < count_; ++r) { Finish(row + r, r, panel, panels); }
  }

  float* C(int64_t place) const { return c_ + place * Tiles() * kRows * kColumns; }

  // Where the filter's block will be read.
  Ahead Next(int64_t panel, int64_t block) const {
    if (p_.packed != nullptr) {
      return {reinterpret_cast<const char*>(p_.packed + panel * blocks_.PanelSize() + blocks_.Offset(block)), 0,
              blocks_.Depth(block) * kColumns / 16, 0, 0};
    }
    const float* first = f_.data + panel * kColumns * f_.strides[0] + block * blocks_.channels * f_.strides[1];
    return {reinterpret_cast<const char*>(first), 0, blocks_.Depth(block) / 16 + 1, kColumns, f_.strides[0] * 4};
  }

  void Multiply(int64_t panel, int64_t block, int64_t next_panel, int64_t next_block, float* c) {
    Ahead next = Next(next_panel, next_block);
    const float* b = p_.packed + panel * blocks_.PanelSize() + blocks_.Offset(block);
    if (p_.packed == nullptr) {
      PackBlock(f_, blocks_, panel, block, b_);
      b = b_;
    }
    const int64_t depth = blocks_.Depth(block);
    for (int64_t t = 0; t < count_; t += kRows) {
      RunTile(static_cast<int>(std::min<int64_t>(kRows, count_ - t)), a_ + t * kDepth, b, depth, block > 0, c + t * kColumns,
              &next);
    }
  }

  // The numbers of x that a block of the filter meets, row by row of the result; zeros where they lie outside.
  void Gather(int64_t row, int64_t block) {
    const int64_t channels = blocks_.Channels(block);
    const float* x = p_.x + block * blocks_.channels;
    const int64_t line = p_.dilation[0] * p_.w * f_.c, step = p_.dilation[1] * f_.c;
    const bool common = f_.kh == 3 && f_.kw == 3 && channels == 16;
    int64_t ox = row % p_.ow, oy = row / p_.ow % p_.oh, image = row / p_.ow / p_.oh;
    for (int64_t r = 0; r < count_; ++r) {
      float* to = a_ + r * kDepth;
      const int64_t top = oy * p_.stride[0] - p_.padding[0], left = ox * p_.stride[1] - p_.padding[1];
      const float* from = x + ((image * p_.h + top) * p_.w + left) * f_.c;
      if (common && top >= 0 && left >= 0 && top + 2 * p_.dilation[0] < p_.h && left + 2 * p_.dilation[1] < p_.w) {
        CopyPixels<3, 16>(from, line, step, to);
      } else {
        CopyInside(from, top, left, line, step, channels, to);
      }
      if (++ox == p_.ow) {
        ox = 0;
        if (++oy == p_.oh) { oy = 0, ++image; }
      }
    }
    const int64_t end = Tiles() * kRows;
    if (count_ < end) { std::memset(a_ + count_ * kDepth, 0, (end - count_) * kDepth * sizeof(float)); }
  }

  // What of the pixels from (top, left) on is inside the image, and zeros.
  void CopyInside(const float* from, int64_t top, int64_t left, int64_t line, int64_t step, int64_t channels, float* to) {
    for (int64_t ky = 0; ky < f_.kh; ++ky) {
      const int64_t y = top + ky * p_.dilation[0];
      for (int64_t kx = 0; kx < f_.kw; ++kx, to += channels) {
        const int64_t at = left + kx * p_.dilation[1];
        const bool inside = y >= 0 && y < p_.h && at >= 0 && at < p_.w;
        const float* pixel = from + ky * line + kx * step;
        ForVectors(channels, [&](int64_t i, auto lanes) { Store(to + i, inside ? Load(pixel + i, lanes) : Set(0), lanes); });
      }
    }
  }

  // One row of results: what follows the product.
  void Finish(int64_t row, int64_t r, int64_t panel, int64_t panels) {
    const int64_t columns = half_ ? f_.n / 2 : f_.n, first = panel * kColumns;
    float* y = p_.y + row * columns + first;
    const float* bias = p_.bias == nullptr ? nullptr : p_.bias + first;
    const float* residual = p_.residual == nullptr ? nullptr : p_.residual + row * columns + first;
    WithAct(half_ ? p_.gate : p_.act, [&](auto act) {
      for (int64_t i = 0; i < panels; ++i) {
        const float* c = C(i) + r * kColumns;
        const float* gate = half_ ? C(panels + i) + r * kColumns : nullptr;
        const int64_t at = i * kColumns;
        ForVectors(std::min(kColumns, columns - first - at), [&](int64_t j, auto lanes) {
          F value = Load(c + j, lanes);
          if (bias != nullptr) { value += Load(bias + at + j, lanes); }
          if (gate != nullptr) {
            F other = Load(gate + j, lanes);
            if (bias != nullptr) { other += Load(bias + columns + at + j, lanes); }
            value *= act(other);
          } else {
            if (p_.act_first) { value = act(value); }
            if (residual != nullptr) { value += Load(residual + at + j, lanes); }
            if (!p_.act_first) { value = act(value); }
          }
          Store(y + at + j, value, lanes);
        });
      }
    });
  }

  const Product& p_;
  const Filter& f_;
  Blocks blocks_;
  int64_t half_;  // panels between a column and its gate
  int64_t first_row_, last_row_, first_panel_, last_panel_;
  int64_t count_ = 0;
  float *a_ = nullptr, *b_ = nullptr, *c_ = nullptr;
};

// The threads as a grid over rows and columns, (down, across): the one that leaves none with more than the others; of
// equal ones the one that reads less (each row of threads reads the whole filter, each column all of x).
std::pair<int64_t, int64_t> Grid(int64_t threads, int64_t rows, int64_t panels) {
  const int64_t tiles = CeilDiv(rows, kRows);
  int64_t across = 1;
  double best = 0;
  for (int64_t n = 1; n <= threads; ++n) {
    if (threads % n != 0) { continue; }
    const int64_t m = threads / n;
    const double work = static_cast<double>(CeilDiv(panels, n)) * CeilDiv(tiles, m) * kRows * kColumns;
    const double reads = static_cast<double>(m) * panels * kColumns + static_cast<double>(n) * rows;
    const double cost = work + reads;
    if (best == 0 || cost < best) { best = cost, across = n; }
  }
  return {threads / across, across};
}

bool Run(const Product& p) {
  const int64_t rows = p.batch * p.oh * p.ow, tiles = CeilDiv(rows, kRows);
  const int64_t panels = CeilDiv(p.filter.n, kColumns) / (p.gate == Act::kNone ? 1 : 2);
  const int64_t depth = p.filter.c * p.filter.kh * p.filter.kw;
  if (rows * panels * kColumns * depth < kEnough) {
    return Part(p, 0, rows, 0, panels).Run();
  }
  Product product = p;
  const auto part = [&](int64_t thread, std::pair<int64_t, int64_t> grid) {
    const auto [down, across] = grid;
    const int64_t i = thread / across, j = thread % across;
    const auto row = [&](int64_t k) { return std::min(rows, tiles * k / down * kRows); };
    return Part(product, row(i), row(i + 1), panels * j / across, panels * (j + 1) / across);
  };
  // A filter that would be packed more than once, by several threads or for several groups of rows, is packed before.
  static thread_local Scratch whole;
  const auto grid = Grid(omp_get_max_threads(), rows, panels);
  if (p.packed == nullptr && PackedBytes(p.filter) <= kPackedAtOnce && (grid.first > 1 || part(0, grid).Repeats())) {
    if (float* memory = whole.Get(PackedBytes(p.filter) / 4)) {
      Pack(p.filter, memory);
      product.packed = memory;
    }
  }
  bool done = true;
#pragma omp parallel reduction(&& : done)
  done = part(omp_get_thread_num(), Grid(omp_get_num_threads(), rows, panels)).Run();
  return done;
}

const Products kProducts = {PackedBytes, Pack, Unpack, Ordered, UnpackRange, SameRange, Run};

}  // namespace
}  // namespace dfo::math

extern "C" __attribute__((visibility("default"))) const dfo::math::Products* dfo_products() { return &dfo::math::kProducts; }
