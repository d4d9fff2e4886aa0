// Memory of one thread.
#pragma once
#include <sys/mman.h>

#include <cstdint>

namespace dfo::math {

// Memory of one thread, kept for its next call. Mapped, not allocated: memory that was once marked for huge pages would
// otherwise come back as somebody's tensor, which could not be released any more (weights="release").
class Scratch {
 public:
  Scratch() = default;
  ~Scratch() { Release(); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  // From the beginning of a page; null if there is none.
  char* Get(int64_t bytes) {
    if (bytes > size_) {
      Release();
      const int64_t page = bytes < kHuge / 2 ? 4096 : kHuge, size = (bytes + page - 1) / page * page;
      void* made = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (made == MAP_FAILED) { return nullptr; }
      // Finding small pages would take a tenth of a product's time.
      if (page == kHuge) { madvise(made, size, MADV_HUGEPAGE); }
      memory_ = static_cast<char*>(made), size_ = size;
    }
    return memory_;
  }

 private:
  static constexpr int64_t kHuge = 2 << 20;

  void Release() {
    if (memory_ != nullptr) { munmap(memory_, size_); }
    memory_ = nullptr, size_ = 0;
  }

  char* memory_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace dfo::math
