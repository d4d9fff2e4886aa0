// Memory of one thread.
#pragma once
#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <memory>

namespace dfo::math {

struct Free {
  void operator()(char* p) const { std::free(p); }
};

// Memory of one thread, kept for its next call.
class Scratch {
 public:
  // From the beginning of a page; null if there is none.
  char* Get(int64_t bytes) {
    if (bytes > size_) {
      // Much memory in huge pages: finding small ones would take a tenth of a product's time.
      const int64_t page = bytes < (1 << 20) ? 4096 : 2 << 20, all = (bytes + page - 1) / page * page;
      memory_.reset(static_cast<char*>(std::aligned_alloc(page, all)));
      if (memory_ && page > 4096) { madvise(memory_.get(), all, MADV_HUGEPAGE); }
      size_ = memory_ ? bytes : 0;
    }
    return memory_.get();
  }

 private:
  std::unique_ptr<char, Free> memory_;
  int64_t size_ = 0;
};

}  // namespace dfo::math
