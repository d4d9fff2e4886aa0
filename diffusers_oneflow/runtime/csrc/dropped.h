// Drops memory whose content can be computed, and fills it again when anybody touches it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#include "source.h"

namespace dfo {

// Why this process cannot drop memory, in one sentence that says what to do; empty if it can.
std::string DroppingRefusal();

struct Dropped;

// The whole pages of [begin, end). The source outlives it. Nothing is dropped yet.
Dropped* NewDropped(uintptr_t begin, uintptr_t end, const Source* source);

// The pages of which it consists.
std::pair<uintptr_t, uintptr_t> Extent(const Dropped* dropped);

enum class Outcome {
  kDropped,  // all of it, and its content was the source's
  kChanged,  // it was not: everything is as it was, in memory
  kRefused,  // it cannot be dropped (too small, shared, a file's, watched, pinned): everything is in memory
};

// Drops what is in memory. Atomic: no write of another thread is lost, none sees anything but the content.
Outcome Drop(Dropped* dropped);

// Why the last Drop refused; null if it did not.
const char* Refusal(const Dropped* dropped);

// Whether anything of it was touched since Drop, by whomever.
bool Touched(const Dropped* dropped);
size_t DroppedBytes(Dropped* dropped);

// Brings everything back: ordinary memory from now on, until the next Drop.
void GiveBack(Dropped* dropped);

// Gives back, and forgets.
void DeleteDropped(Dropped* dropped);

// How often anything was filled again, or given back, in all.
uint64_t Fills();

// For the tracker, which watches memory that stays. With its mutex held.
void GiveBackOverlapping(uintptr_t begin, uintptr_t end);
// Lets children of fork() see the content as well. To be called before the tracker's own pthread_atfork: of the two
// mutexes, the tracker's is taken first.
void DropAtFork();

}  // namespace dfo
