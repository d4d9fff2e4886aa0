// Group norm with an activation: x is read twice from memory, once to measure it and once to write y.
//
// The positions of all samples (or, channels first, the elements of all groups) are shared out evenly, so that one
// large sample keeps every thread busy. A thread that has all of a sample finishes it by itself; samples that are split
// wait until every thread has measured its part.
#include <algorithm>
#include <cmath>
#include <memory>

#include "functions.h"
#include "kernels.h"
#include "moments.h"
#include "parallel.h"

namespace dfo::math {
namespace {

template <class T>
struct Problem {
  const T* x;
  const T* weight;
  const T* bias;
  T* y;
  int64_t channels, groups, positions;
  double eps;
  Act act;

  int64_t GroupSize() const { return channels / groups * positions; }
  float Rstd(const Moments& group) const { return static_cast<float>(1 / std::sqrt(group.squares / group.count + eps)); }
  float Weight(int64_t c) const { return weight == nullptr ? 1.0f : ToFloat(weight[c]); }
  float Bias(int64_t c) const { return bias == nullptr ? 0.0f : ToFloat(bias[c]); }
};

// Channels last. A unit is a sample, its elements are positions, each a row of channels.
template <class T>
class ChannelsLast {
 public:
  // What a thread found out about its part of a unit: mean and squares of each channel.
  struct Part {
    std::unique_ptr<double[]> mean, squares;
    int64_t count = 0;
  };

  explicit ChannelsLast(const Problem<T>& problem)
      : p_(problem), c_(problem.channels), rows_(new float[3 * c_]), chunk_(std::max<int64_t>(8, kChunk / c_ / sizeof(T))) {}

  static int64_t Units(const Problem<T>&, int64_t n) { return n; }
  static int64_t Length(const Problem<T>& p) { return p.positions; }

  void Measure(int64_t unit, int64_t begin, int64_t end, Part& part) {
    part.mean.reset(new double[c_]());
    part.squares.reset(new double[c_]());
    for (int64_t row = begin; row < end; row += chunk_) {
      AddChunk(p_.x + (unit * p_.positions + row) * c_, std::min(chunk_, end - row), part);
    }
  }

  void Finish(int64_t unit, int64_t begin, int64_t end, const Part* parts, int64_t part_count) {
    float* means = rows_.get();
    float* scales = means + c_;
    float* biases = scales + c_;
    const int64_t width = c_ / p_.groups;
    for (int64_t first = 0; first < c_; first += width) {
      const Moments group = GroupMoments(first, width, parts, part_count);
      const float mean = static_cast<float>(group.mean), rstd = p_.Rstd(group);
      for (int64_t c = first; c < first + width; ++c) {
        means[c] = mean;
        scales[c] = rstd * p_.Weight(c);
        biases[c] = p_.Bias(c);
      }
    }
    WithAct(p_.act, [&](auto function) {
      // The last chunk first: it is still in the cache.
      for (int64_t chunk = begin + (end - 1 - begin) / chunk_ * chunk_; chunk >= begin; chunk -= chunk_) {
        for (int64_t row = chunk; row < std::min(chunk + chunk_, end); ++row) {
          const T* x = p_.x + (unit * p_.positions + row) * c_;
          T* y = p_.y + (unit * p_.positions + row) * c_;
          ForVectors(c_, [&](int64_t c, auto lanes) {
            const F centred = Load(x + c, lanes) - Load(means + c, lanes);
            Store(y + c, function(Fma(centred, Load(scales + c, lanes), Load(biases + c, lanes))), lanes);
          });
        }
      }
    });
  }

 private:
  static constexpr int64_t kChunk = 128 * 1024;  // bytes that surely stay in the second-level cache

  // As moments.h does it, for all channels side by side.
  void AddChunk(const T* x, int64_t rows, Part& part) {
    float* mean = rows_.get();
    float* off = mean + c_;
    float* squares = off + c_;
    std::fill(mean, mean + 3 * c_, 0.0f);
    ForEights(x, rows, [&](int64_t c, auto lanes, const auto& at, auto count) {
      F sum = at(0);
      for (int i = 1; i < count; ++i) { sum += at(i); }
      Store(mean + c, Load(mean + c, lanes) + sum, lanes);
    });
    const float inverse = 1.0f / rows;
    ForVectors(c_, [&](int64_t c, auto lanes) { Store(mean + c, Load(mean + c, lanes) * inverse, lanes); });
    ForEights(x, rows, [&](int64_t c, auto lanes, const auto& at, auto count) {
      const F m = Load(mean + c, lanes);
      F d = at(0) - m, s = d * d;
      for (int i = 1; i < count; ++i) {
        const F v = at(i) - m;
        d += v;
        s = Fma(v, v, s);
      }
      Store(off + c, Load(off + c, lanes) + d, lanes);
      Store(squares + c, Load(squares + c, lanes) + s, lanes);
    });

    const double n = rows, per_row = 1 / n, share = n / (part.count + n), both = part.count * share;
    double* means = part.mean.get();
    double* sums = part.squares.get();
#pragma omp simd
    for (int64_t c = 0; c < c_; ++c) {
      const double correction = off[c] * per_row, delta = mean[c] + correction - means[c];
      means[c] += delta * share;
      sums[c] += std::max(squares[c] - correction * correction * n, 0.0) + delta * delta * both;
    }
    part.count += rows;
  }

  // body(c, lanes, at, count): vectors at(0) ... at(count - 1) of the channels from c on, in up to 8 rows.
  template <class Body>
  void ForEights(const T* x, int64_t rows, const Body& body) {
    for (; rows >= 8; rows -= 8, x += 8 * c_) {
      ForVectors(c_, [&](int64_t c, auto lanes) {
        body(c, lanes, [&](int i) { return Load(x + i * c_ + c, lanes); }, std::integral_constant<int, 8>());
      });
    }
    if (rows == 0) { return; }
    ForVectors(c_, [&](int64_t c, auto lanes) {
      body(c, lanes, [&](int i) { return Load(x + i * c_ + c, lanes); }, static_cast<int>(rows));
    });
  }

  static Moments GroupMoments(int64_t first, int64_t width, const Part* parts, int64_t part_count) {
    Moments all;
    for (int64_t i = 0; i < part_count; ++i) {
      if (parts[i].count == 0) { continue; }
      const double* means = &parts[i].mean[first];
      const double* sums = &parts[i].squares[first];
      double mean = 0, squares = 0, spread = 0;
#pragma omp simd reduction(+ : mean, squares)
      for (int64_t c = 0; c < width; ++c) {
        mean += means[c];
        squares += sums[c];
      }
      mean /= width;
#pragma omp simd reduction(+ : spread)
      for (int64_t c = 0; c < width; ++c) { spread += (means[c] - mean) * (means[c] - mean); }
      all.Add({mean, squares + spread * parts[i].count, width * parts[i].count});
    }
    return all;
  }

  const Problem<T>& p_;
  const int64_t c_;
  const std::unique_ptr<float[]> rows_;
  const int64_t chunk_;
};

// Channels first. A unit is one group of one sample, which lies in one piece.
template <class T>
class ChannelsFirst {
 public:
  using Part = Moments;

  explicit ChannelsFirst(const Problem<T>& problem) : p_(problem) {}

  static int64_t Units(const Problem<T>& p, int64_t n) { return n * p.groups; }
  static int64_t Length(const Problem<T>& p) { return p.GroupSize(); }

  void Measure(int64_t unit, int64_t begin, int64_t end, Part& part) {
    part = math::Measure(p_.x + unit * p_.GroupSize() + begin, end - begin);
  }

  void Finish(int64_t unit, int64_t begin, int64_t end, const Part* parts, int64_t part_count) {
    Moments group;
    for (int64_t i = 0; i < part_count; ++i) {
      if (parts[i].count > 0) { group.Add(parts[i]); }
    }
    const F mean = Set(static_cast<float>(group.mean));
    const float rstd = p_.Rstd(group);
    const int64_t first_channel = unit % p_.groups * (p_.channels / p_.groups);
    WithAct(p_.act, [&](auto function) {
      for (int64_t i = begin; i < end;) {
        const int64_t c = i / p_.positions, next = std::min(end, (c + 1) * p_.positions);
        const F scale = Set(rstd * p_.Weight(first_channel + c)), bias = Set(p_.Bias(first_channel + c));
        const T* x = p_.x + unit * p_.GroupSize() + i;
        T* y = p_.y + unit * p_.GroupSize() + i;
        ForVectors(next - i,
                   [&](int64_t k, auto lanes) { Store(y + k, function(Fma(Load(x + k, lanes) - mean, scale, bias)), lanes); });
        i = next;
      }
    });
  }

 private:
  const Problem<T>& p_;
};

template <class Layout, class T>
void Run(const Problem<T>& p, int64_t n) {
  const int64_t units = Layout::Units(p, n), length = Layout::Length(p), total = units * length;
  // Thread t keeps what it found out about unit u in slot t + u: ranges are in order, so no other pair has that slot.
  const std::unique_ptr<typename Layout::Part[]> parts(new typename Layout::Part[omp_get_max_threads() + units]);

#pragma omp parallel if (n * p.positions * p.channels >= kEnough)
  {
    const int64_t threads = omp_get_num_threads(), thread = omp_get_thread_num();
    const auto bound = [&](int64_t t) { return total * t / threads; };
    Layout layout(p);
    const auto for_units = [&](auto body) {
      for (int64_t at = bound(thread), high = bound(thread + 1); at < high;) {
        const int64_t unit = at / length, next = std::min(high, (unit + 1) * length);
        body(unit, at - unit * length, next - unit * length);
        at = next;
      }
    };
    for_units([&](int64_t unit, int64_t begin, int64_t end) {
      auto& part = parts[thread + unit];
      layout.Measure(unit, begin, end, part);
      if (end - begin == length) { layout.Finish(unit, begin, end, &part, 1); }
    });
#pragma omp barrier
    for_units([&](int64_t unit, int64_t begin, int64_t end) {
      if (end - begin == length) { return; }
      int64_t first = 0, last = threads - 1;  // of the threads that have a part
      while (bound(first + 1) <= unit * length) { ++first; }
      while (bound(last) >= (unit + 1) * length) { --last; }
      layout.Finish(unit, begin, end, &parts[first + unit], last - first + 1);
    });
  }
}

}  // namespace

void GroupNorm(Type type, const void* x, const void* weight, const void* bias, void* y, int64_t n, int64_t positions,
               int64_t channels, int64_t groups, double eps, Act act, bool channels_last) {
  if (n * positions * channels == 0) { return; }
  WithType(type, [&](auto tag) {
    using T = decltype(tag);
    const Problem<T> p = {static_cast<const T*>(x),
                          static_cast<const T*>(weight),
                          static_cast<const T*>(bias),
                          static_cast<T*>(y),
                          channels,
                          groups,
                          positions,
                          eps,
                          act};
    if (channels_last) {
      Run<ChannelsLast<T>>(p, n);
    } else {
      Run<ChannelsFirst<T>>(p, n);
    }
  });
}

}  // namespace dfo::math
