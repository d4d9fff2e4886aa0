// Tells which ranges of memory were written to.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <utility>
#include <vector>

namespace dfo {

struct Range {
  uintptr_t begin, end;
};

struct Watch;

Watch* NewWatch();

// Makes the watch; the index of a range that is not memory, or -1.
int Make(Watch* watch, const std::vector<Range>& ranges, bool track);

// The ranges whose content is not what it was when last asked.
std::vector<int> ChangedRanges(Watch* watch);

// The bytes that each call hashes, and whether everything else is tracked.
std::pair<size_t, bool> Hashed(Watch* watch);

void Drop(Watch* watch);

// While the lock is held no watch begins or ends to track memory.
std::unique_lock<std::mutex> LockTracker();
// Whether a watch tracks any of the range. With the lock held.
bool IsTracked(const Range& range);

}  // namespace dfo
