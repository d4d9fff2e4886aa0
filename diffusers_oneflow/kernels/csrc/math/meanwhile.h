// What the vector units do while the matrix unit multiplies.
#pragma once
#if defined(__AMX_BF16__)
#include "amx.h"

namespace dfo::math::amx {

// 32 rows, put a step at a time: beside the matrix unit, which leaves the vector units free.
class PutMeanwhile {
 public:
  // `count` rows, `stride` numbers apart; those up to 32 are zeros. Rows from `next` on, which come after these, are fetched.
  void Begin(const float* first, const float* next, int64_t stride, int64_t count, int64_t depth, char* rows) {
    first_ = first, next_ = next - first, stride_ = stride, count_ = count, depth_ = depth, rows_ = rows, row_ = 0, finite_ = {};
    BeginRow();
  }
  void Some() {
    for (int i = 0; i < 2 && row_ < 32; ++i) {
      PutStep(from_, k_, depth_, to_, &finite_);
      _mm_prefetch(reinterpret_cast<const char*>(from_ + next_ + k_), _MM_HINT_T1);
      _mm_prefetch(reinterpret_cast<const char*>(from_ + next_ + k_ + 16), _MM_HINT_T1);
      k_ += kStep, to_ += kParts * kTile;
      if (k_ >= depth_) { ++row_, BeginRow(); }
    }
  }
  // False where a number was not finite.
  bool Finish() {
    while (row_ < 32) { Some(); }
    return finite_.all();
  }

 private:
  void BeginRow() {
    static constexpr float kNone[kDepth] = {};
    from_ = row_ < count_ ? first_ + row_ * stride_ : kNone, to_ = RowAt(rows_, depth_, row_), k_ = 0;
  }

  const float *first_ = nullptr, *from_ = nullptr;
  char *rows_ = nullptr, *to_ = nullptr;
  int64_t next_ = 0, stride_ = 0, count_ = 0, depth_ = 0, row_ = 32, k_ = 0;
  Finite finite_;
};

// Products that are still to be added to what they belong to: a few at a time, while the next ones are computed. Read as
// soon as they are stored, they would keep the processor waiting.
class Sums {
 public:
  // Where the next products are stored.
  float* Next() { return made_[next_]; }
  // They are to be added to `to`; `count` is a multiple of kWidth.
  void Owe(float* to, int64_t count) {
    Settle();
    from_ = made_[next_], to_ = to, end_ = from_ + count, next_ ^= 1;
  }
  void Some() {
    for (int i = 0; i < 4 && from_ != end_; ++i, from_ += kWidth, to_ += kWidth) {
      Store(to_, Load(to_, All{}) + Load(from_, All{}), All{});
    }
  }
  void Settle() {
    while (from_ != end_) { Some(); }
  }

 private:
  alignas(64) float made_[2][32 * kColumns] = {};
  const float *from_ = nullptr, *end_ = nullptr;
  float* to_ = nullptr;
  int next_ = 0;
};

}  // namespace dfo::math::amx
#endif
