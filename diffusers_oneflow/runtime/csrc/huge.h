// Memory in huge pages.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace dfo {

using Ranges = std::vector<std::pair<uintptr_t, uintptr_t>>;

// Has Linux move what lies in the ranges [begin, end) into huge pages, as far as whole ones lie in one range or in several
// that touch: content and addresses stay, and others may read and write meanwhile. Some milliseconds for each. Returns the
// bytes that are in huge pages now; 0 where Linux (before 6.1) cannot.
size_t CollapsePages(Ranges ranges);

// The same on a thread of its own. What is unmapped meanwhile is passed over.
void CollapsePagesLater(Ranges ranges);

}  // namespace dfo
