// Memory of one thread.
#pragma once
#include <sys/mman.h>

#include <cstdint>

namespace dfo::math {

// Memory of one thread, kept for its next call. In ordinary pages: huge ones would make products up to a tenth faster, but
// while Linux makes room for them it moves pages about, and weights that lie there cannot be released (weights="release").
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
      const int64_t size = (bytes + 4095) / 4096 * 4096;
      void* made = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (made == MAP_FAILED) { return nullptr; }
      memory_ = static_cast<char*>(made), size_ = size;
    }
    return memory_;
  }

 private:
  void Release() {
    if (memory_ != nullptr) { munmap(memory_, size_); }
    memory_ = nullptr, size_ = 0;
  }

  char* memory_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace dfo::math
