// Sharing work among the threads of the calling thread's OpenMP team.
#pragma once
#include <omp.h>

#include <cstdint>

namespace dfo::math {

// In elements; below, waking the other threads costs more than they save.
constexpr int64_t kEnough = 32768;

// body(begin, end) on even parts of 0 ... count, one a thread; on the calling thread alone where `work` is little.
template <class Body>
inline void ForRanges(int64_t count, int64_t work, const Body& body) {
  if (count <= 0) { return; }
  if (count == 1 || work < kEnough) {
    body(int64_t{0}, count);
    return;
  }
#pragma omp parallel
  {
    const int64_t threads = omp_get_num_threads(), thread = omp_get_thread_num();
    const int64_t begin = count * thread / threads, end = count * (thread + 1) / threads;
    if (begin < end) { body(begin, end); }
  }
}

}  // namespace dfo::math
