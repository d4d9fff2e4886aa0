// userfaultfd for memory that is missing: who touches it waits until it was filled.
#pragma once

#include <cstddef>
#include <cstdint>

namespace dfo {

constexpr uintptr_t kPage = 4096;

// Opens the descriptor for this process and starts the thread that calls `fill` with each address that is waited for.
// Null, or why not: one sentence that says what to do. Again in a forked child, which has neither.
const char* StartFaults(void (*fill)(uintptr_t address));

// From now on missing pages are waited for. False where the memory cannot be (a device's), or there are too many mappings.
bool RegisterMissing(uintptr_t begin, uintptr_t end);
void UnregisterMissing(uintptr_t begin, uintptr_t end);

// Moves pages to other addresses, in one step each: whoever reads or writes them meanwhile waits if `from` is registered.
// `to` has no pages and is registered. Returns the bytes moved; less where a page cannot be: `busy` where it
// is pinned or shared with a forked child, otherwise a file's or the like.
size_t MovePages(uintptr_t to, uintptr_t from, size_t bytes, bool* busy);

// For `fill`: puts pages where they are missing, and lets those who wait for them go on.
void PutPages(uintptr_t to, const char* from, size_t bytes);
void PutZeros(uintptr_t page);
void Wake(uintptr_t page);

}  // namespace dfo
