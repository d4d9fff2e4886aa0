#include "huge.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <thread>

#include "linux.h"

namespace dfo {
namespace {

constexpr int kCollapse = 25;  // MADV_COLLAPSE, newer than the headers of many systems: madvise(2)
constexpr uintptr_t kPage = 4096;

}  // namespace

size_t CollapsePages(Ranges ranges) {
  std::sort(ranges.begin(), ranges.end());
  size_t done = 0;
  for (size_t i = 0; i < ranges.size();) {
    const uintptr_t begin = ranges[i].first;
    uintptr_t end = ranges[i].second;
    // An allocator's own words lie between.
    for (++i; i < ranges.size() && ranges[i].first <= end + kPage; ++i) { end = std::max(end, ranges[i].second); }
    for (uintptr_t at = (begin + kHuge - 1) / kHuge * kHuge; at + kHuge <= end; at += kHuge) {
      if (madvise(reinterpret_cast<void*>(at), kHuge, kCollapse) == 0) {
        done += kHuge;
      } else if (errno == ENOMEM) {
        return done;  // no memory for it, here or for any other
      }
    }
  }
  return done;
}

void CollapsePagesLater(Ranges ranges) {
  const SignalsBlocked blocked;
  try {
    std::thread(CollapsePages, std::move(ranges)).detach();
  } catch (const std::system_error&) {}  // no thread to be had: ordinary pages will do
}

}  // namespace dfo
