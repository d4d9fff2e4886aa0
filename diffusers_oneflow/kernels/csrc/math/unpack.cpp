// Back from a packed filter.
#include <atomic>
#include <cstring>
#include <iterator>

#include "panels.h"
#include "parallel.h"

namespace dfo::math {
namespace {

// Where the packed filter has the number (n, c, tap).
struct Place {
  const Blocks& blocks;
  const float* packed;

  const float* At(int64_t n, int64_t c, int64_t tap) const {
    const int64_t block = c / blocks.channels, row = tap * blocks.Channels(block) + c % blocks.channels;
    return packed + n / kColumns * blocks.PanelSize() + blocks.Offset(block) + row * kColumns + n % kColumns;
  }
};

inline void Gather(const float* from, int64_t step, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) { out[i] = from[i * step]; }
}

// The dimensions of a filter as they lie in memory, the outermost first: n, c and taps, in any order.
struct Order {
  explicit Order(const Filter& f) {
    const int64_t strides[] = {f.strides[0], f.strides[1], f.strides[f.kw == 1 ? 2 : 3]};
    const int64_t all[] = {f.n, f.c, f.kh * f.kw};
    // A dimension of one place has no stride to go by: it comes first.
    const auto stride = [&](int d) { return all[d] == 1 ? INT64_MAX : strides[d]; };
    std::stable_sort(dims, dims + 3, [&](int a, int b) { return stride(a) > stride(b); });
    for (int i = 0; i < 3; ++i) { sizes[i] = all[dims[i]]; }
  }

  int dims[3] = {0, 1, 2};
  int64_t sizes[3];
};

// `count` numbers from (n, c, tap) on along the innermost dimension.
void Run(const Place& place, int dim, const int64_t (&at)[3], int64_t count, float* out) {
  const Blocks& blocks = place.blocks;
  const float* from = place.At(at[0], at[1], at[2]);
  if (dim == 2) { return Gather(from, blocks.Channels(at[1] / blocks.channels) * kColumns, count, out); }
  // Until the end of a panel, or of a block.
  const int64_t part = dim == 0 ? kColumns : blocks.channels, step = dim == 0 ? 1 : kColumns;
  for (int64_t done = 0, some; done < count; done += some) {
    int64_t next[3] = {at[0], at[1], at[2]};
    next[dim] += done;
    some = std::min(count - done, part - next[dim] % part);
    Gather(place.At(next[0], next[1], next[2]), step, some, out + done);
  }
}

// Whole rows of one panel, where n is the outermost dimension: each line of the panel is read once for all of them.
void UnpackRows(const Place& place, const Order& order, int64_t n, int64_t rows, float* out) {
  const Blocks& blocks = place.blocks;
  const int64_t length = blocks.c * blocks.taps;
  const int64_t c_step = order.dims[1] == 1 ? order.sizes[2] : 1, tap_step = order.dims[1] == 1 ? 1 : order.sizes[2];
  for (int64_t block = 0; block < blocks.count; ++block) {
    const int64_t channels = blocks.Channels(block), first = block * blocks.channels;
    const float* from = place.At(n, first, 0);
    for (int64_t tap = 0; tap < blocks.taps; ++tap) {
      for (int64_t c = first; c < first + channels; ++c, from += kColumns) {
        float* to = out + c * c_step + tap * tap_step;
        for (int64_t row = 0; row < rows; ++row) { to[row * length] = from[row]; }
      }
    }
  }
}

}  // namespace

void Unpack(const Filter& f, const float* packed, float* data) {
  const Blocks blocks(f);
  ForRanges(f.n, kEnough, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const float* panel = packed + n / kColumns * blocks.PanelSize() + n % kColumns;
      for (int64_t c = 0; c < f.c; ++c) {
        const int64_t block = c / blocks.channels;
        for (int64_t tap = 0; tap < blocks.taps; ++tap) {
          const int64_t row = tap * blocks.Channels(block) + c % blocks.channels;
          data[n * f.strides[0] + c * f.strides[1] + tap / f.kw * f.strides[2] + tap % f.kw * f.strides[3]] =
              panel[blocks.Offset(block) + row * kColumns];
        }
      }
    }
  });
}

bool Ordered(const Filter& f) {
  const Order order(f);
  const int64_t strides[] = {f.strides[0], f.strides[1], f.strides[f.kw == 1 ? 2 : 3]};
  int64_t dense = 1;
  for (int i = 2; i >= 0; --i) {
    if (order.sizes[i] > 1 && strides[order.dims[i]] != dense) { return false; }
    dense *= order.sizes[i];
  }
  return f.kh == 1 || f.kw == 1 || f.strides[2] == f.kw * f.strides[3];
}

void UnpackRange(const Filter& f, const float* packed, int64_t first, int64_t count, float* out) {
  const Blocks blocks(f);
  const Place place{blocks, packed};
  const Order order(f);
  int64_t inner = first % order.sizes[2], middle = first / order.sizes[2] % order.sizes[1];
  int64_t outer = first / order.sizes[2] / order.sizes[1];
  for (int64_t done = 0; done < count; inner = 0) {
    const int64_t rows = std::min((count - done) / (order.sizes[1] * order.sizes[2]), kColumns - outer % kColumns);
    if (order.dims[0] == 0 && middle == 0 && inner == 0 && rows > 0) {
      UnpackRows(place, order, outer, rows, out + done);
      done += rows * order.sizes[1] * order.sizes[2];
      outer += rows;
      continue;
    }
    int64_t at[3];
    at[order.dims[0]] = outer, at[order.dims[1]] = middle, at[order.dims[2]] = inner;
    const int64_t some = std::min(count - done, order.sizes[2] - inner);
    Run(place, order.dims[2], at, some, out + done);
    done += some;
    if (++middle == order.sizes[1]) { middle = 0, ++outer; }
  }
}

namespace {

// Numbers at a time, by unpacking them.
bool SameNumbers(const Filter& f, const float* packed, int64_t first, int64_t count, const float* data) {
  float part[4096];
  for (int64_t done = 0, some; done < count; done += some) {
    some = std::min<int64_t>(count - done, std::size(part));
    UnpackRange(f, packed, first + done, some, part);
    if (std::memcmp(part, data + done, some * sizeof(float)) != 0) { return false; }
  }
  return true;
}

// A panel at a time, by packing it: several times as fast.
bool SamePanel(const Filter& f, const Blocks& blocks, int64_t panel, const float* packed) {
  alignas(64) float block[kDepth * kColumns];
  packed += panel * blocks.PanelSize();
  for (int64_t i = 0; i < blocks.count; ++i) {
    PackBlock(f, blocks, panel, i, block);
    if (std::memcmp(block, packed + blocks.Offset(i), blocks.Depth(i) * kColumns * sizeof(float)) != 0) { return false; }
  }
  return true;
}

}  // namespace

bool SameRange(const Filter& f, const float* packed, int64_t first, int64_t count, const float* data) {
  const Blocks blocks(f);
  const int64_t panel = blocks.PanelSize();
  if (Order(f).dims[0] != 0 || blocks.Depth(0) > kDepth) { return SameNumbers(f, packed, first, count, data); }
  // What is no whole panel comes before and after.
  const int64_t begin = std::min(first + count, CeilDiv(first, panel) * panel);
  const int64_t end = std::max(begin, (first + count) / panel * panel);
  Filter there = f;
  there.data = data - first;
  std::atomic<bool> same{SameNumbers(f, packed, first, begin - first, data)
                         && SameNumbers(f, packed, end, first + count - end, data + (end - first))};
  ForRanges((end - begin) / panel, count, [&](int64_t from, int64_t to) {
    for (int64_t i = from; i < to && same; ++i) {
      if (!SamePanel(there, blocks, begin / panel + i, packed)) { same = false; }
    }
  });
  return same;
}

}  // namespace dfo::math
