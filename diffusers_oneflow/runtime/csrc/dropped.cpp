#include "dropped.h"

#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <mutex>
#include <thread>
#include <vector>

#include "faults.h"
#include "linux.h"
#include "tracker.h"

// Pages are moved aside before they are dropped, and compared with what the source says: nothing is lost that could not
// be computed again, whoever wrote to it and whenever. Who touches them from then on waits for a thread that fills them
// (faults.h) and takes no lock but the mutex here. Nobody touches dropped memory with that mutex held.

namespace dfo {
namespace {

constexpr size_t kChunk = 64 * kPage;                   // is filled at once
constexpr size_t kSmallest = 16 * kPage;                // less is not worth its mapping
constexpr size_t kMost = 10000;                         // each splits a mapping, and Linux allows a process 65530
constexpr int kPopulateRead = 22, kPopulateWrite = 23;  // of Linux 5.14, madvise(2)

}  // namespace

struct Dropped {
  uintptr_t begin, end, origin;  // whole pages; the source's byte 0
  const Source* source;
  bool registered = false;
  std::vector<bool> missing{};  // by chunk
  std::atomic<bool> touched{false};
  const char* refusal = nullptr;  // of the last Drop

  size_t Chunks() const { return (end - begin + kChunk - 1) / kChunk; }
  uintptr_t Chunk(size_t i) const { return std::min(end, begin + i * kChunk); }
};

namespace {

std::mutex mutex;
std::vector<Dropped*> registry;  // what is registered, by address
const char* refusal = nullptr;
bool started = false;
std::atomic<uint64_t> fills{0};
alignas(kPage) char buffer[kChunk];

Dropped* Find(uintptr_t address) {
  const auto at = std::upper_bound(registry.begin(), registry.end(), address,
                                   [](uintptr_t a, const Dropped* d) { return a < d->end; });
  return at != registry.end() && (*at)->begin <= address ? *at : nullptr;
}

bool Overlaps(uintptr_t begin, uintptr_t end) {
  return std::any_of(registry.begin(), registry.end(), [&](const Dropped* d) { return d->begin < end && begin < d->end; });
}

// On the thread of faults.h.
void Fill(uintptr_t page) {
  std::lock_guard<std::mutex> lock(mutex);
  Dropped* dropped = Find(page);
  if (dropped == nullptr) { return PutZeros(page); }  // what is new in ordinary memory
  const size_t chunk = (page - dropped->begin) / kChunk;
  if (!dropped->missing[chunk]) { return PutZeros(page); }
  const uintptr_t begin = dropped->Chunk(chunk), end = dropped->Chunk(chunk + 1);
  dropped->source->read(dropped->source, begin - dropped->origin, end - begin, buffer);
  dropped->missing[chunk] = false;
  dropped->touched = true;
  ++fills;
  PutPages(begin, buffer, end - begin);
}

// In a forked child, which has neither the registrations nor the thread. Where it cannot have them, everything is filled.
void InChild() {
  if (started) {
    refusal = StartFaults(Fill);
    for (Dropped* dropped : registry) {
      if (refusal == nullptr && RegisterMissing(dropped->begin, dropped->end)) { continue; }
      for (size_t i = 0; i < dropped->Chunks(); ++i) {
        if (!dropped->missing[i]) { continue; }
        const uintptr_t begin = dropped->Chunk(i);
        dropped->source->read(dropped->source, begin - dropped->origin, dropped->Chunk(i + 1) - begin,
                              reinterpret_cast<char*>(begin));
        dropped->missing[i] = false;
      }
      dropped->registered = false;
      dropped->touched = true;
      ++fills;
    }
    registry.erase(std::remove_if(registry.begin(), registry.end(), [](const Dropped* d) { return !d->registered; }),
                   registry.end());
  }
  mutex.unlock();
}

// With the mutex held.
const char* StartOnce() {
  if (!started) {
    refusal = StartFaults(Fill);
    started = true;
  }
  return refusal;
}

// With the mutex held.
bool Register(Dropped* dropped) {
  if (dropped->registered) { return true; }
  dropped->refusal = StartOnce();
  if (dropped->refusal != nullptr) { return false; }
  if (registry.size() >= kMost) {
    dropped->refusal = "this process has too many pieces of dropped memory";
  } else if (dropped->end < dropped->begin + kSmallest) {
    dropped->refusal = "it is too small";
  } else if (Overlaps(dropped->begin, dropped->end)) {
    dropped->refusal = "some of it belongs to another piece of dropped memory";
  } else if (!RegisterMissing(dropped->begin, dropped->end)) {
    dropped->refusal = "Linux does not let it be registered: it is a file's or a device's, or another userfaultfd has it";
  }
  if (dropped->refusal != nullptr) { return false; }
  dropped->registered = true;
  dropped->missing.assign(dropped->Chunks(), false);
  registry.insert(std::upper_bound(registry.begin(), registry.end(), dropped,
                                   [](const Dropped* a, const Dropped* b) { return a->begin < b->begin; }),
                  dropped);
  return true;
}

// Drops a run of chunks that are in memory. With the mutex held.
Outcome DropRun(Dropped* dropped, size_t first, size_t last, bool* busy) {
  const uintptr_t begin = dropped->Chunk(first), end = dropped->Chunk(last);
  const size_t bytes = end - begin;
  void* memory = mmap(nullptr, bytes + kHuge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) { return Outcome::kRefused; }
  // Where huge pages can be moved as they are.
  const auto start = reinterpret_cast<uintptr_t>(memory);
  const uintptr_t aside = start + (begin % kHuge + kHuge - start % kHuge) % kHuge;
  Outcome outcome = Outcome::kRefused;
  if (RegisterMissing(aside, aside + bytes)) {
    const size_t moved = MovePages(aside, begin, bytes, busy);
    UnregisterMissing(aside, aside + bytes);
    const auto* data = reinterpret_cast<const char*>(aside);
    dropped->refusal = *busy ? "some of it is pinned, or shared with a forked child" : "some of it cannot be moved";
    if (moved == bytes) {
      dropped->refusal = nullptr;
      const bool same = dropped->source->same(dropped->source, begin - dropped->origin, bytes, data);
      outcome = same ? Outcome::kDropped : Outcome::kChanged;
    }
    if (outcome != Outcome::kDropped) {
      const size_t back = MovePages(begin, aside, moved, busy);
      PutPages(begin + back, data + back, moved - back);
    }
  }
  munmap(memory, bytes + kHuge);
  return outcome;
}

// Drops all that is in memory. `busy` tells why not. With the tracker's mutex held.
Outcome DropAll(Dropped* dropped, bool* busy) {
  std::lock_guard<std::mutex> lock(mutex);
  if (!Register(dropped)) { return Outcome::kRefused; }
  const size_t chunks = dropped->Chunks();
  for (size_t first = 0, last; first < chunks; first = std::max(last, first + 1)) {
    for (last = first; last < chunks && !dropped->missing[last]; ++last) {}
    if (first == last) { continue; }
    const Outcome outcome = DropRun(dropped, first, last, busy);
    if (outcome != Outcome::kDropped) { return outcome; }
    std::fill(dropped->missing.begin() + first, dropped->missing.begin() + last, true);
  }
  dropped->touched = false;
  return Outcome::kDropped;
}

bool Missing(const Dropped* dropped, size_t chunk) {
  std::lock_guard<std::mutex> lock(mutex);
  return dropped->missing[chunk];
}

// With the tracker's mutex held, which keeps others from dropping it again. Memory that was unmapped meanwhile stays so.
void Restore(Dropped* dropped) {
  if (!dropped->registered) { return; }
  for (size_t i = 0; i < dropped->Chunks(); ++i) {
    const auto chunk = reinterpret_cast<void*>(dropped->Chunk(i));
    const size_t bytes = dropped->Chunk(i + 1) - dropped->Chunk(i);
    while (Missing(dropped, i) && (madvise(chunk, bytes, kPopulateRead) == 0 || errno != ENOMEM)) {}
  }
  std::lock_guard<std::mutex> lock(mutex);
  dropped->touched = true;
  ++fills;
  UnregisterMissing(dropped->begin, dropped->end);
  dropped->registered = false;
  registry.erase(std::find(registry.begin(), registry.end(), dropped));
}

}  // namespace

std::string DroppingRefusal() {
  const auto tracker = LockTracker();
  std::lock_guard<std::mutex> lock(mutex);
  const char* reason = StartOnce();
  return reason == nullptr ? "" : reason;
}

Dropped* NewDropped(uintptr_t begin, uintptr_t end, const Source* source) {
  return new Dropped{(begin + kPage - 1) / kPage * kPage, end / kPage * kPage, begin, source};
}

std::pair<uintptr_t, uintptr_t> Extent(const Dropped* dropped) { return {dropped->begin, dropped->end}; }

Outcome Drop(Dropped* dropped) {
  const auto tracker = LockTracker();
  Outcome outcome = Outcome::kRefused;
  bool busy = false;
  dropped->refusal = "a watch tracks some of it";
  if (!IsTracked({dropped->begin, dropped->end})) {
    dropped->refusal = "no memory to move it to";
    outcome = DropAll(dropped, &busy);
    // Shared with a forked child, or pinned, or for a moment in Linux's own hands. The first become this process's own.
    for (int wait = 1; outcome == Outcome::kRefused && busy && wait <= 256; wait *= 2) {
      Restore(dropped);
      madvise(reinterpret_cast<void*>(dropped->begin), dropped->end - dropped->begin, kPopulateWrite);
      std::this_thread::sleep_for(std::chrono::milliseconds(wait));
      busy = false;
      outcome = DropAll(dropped, &busy);
    }
  }
  if (outcome != Outcome::kRefused) { dropped->refusal = nullptr; }
  if (outcome != Outcome::kDropped) { Restore(dropped); }
  return outcome;
}

const char* Refusal(const Dropped* dropped) { return dropped->refusal; }

bool Touched(const Dropped* dropped) { return dropped->touched; }

size_t DroppedBytes(Dropped* dropped) {
  std::lock_guard<std::mutex> lock(mutex);
  size_t bytes = 0;
  for (size_t i = 0; dropped->registered && i < dropped->Chunks(); ++i) {
    bytes += dropped->missing[i] ? dropped->Chunk(i + 1) - dropped->Chunk(i) : 0;
  }
  return bytes;
}

void GiveBack(Dropped* dropped) {
  const auto tracker = LockTracker();
  Restore(dropped);
}

void DeleteDropped(Dropped* dropped) {
  GiveBack(dropped);
  delete dropped;
}

uint64_t Fills() { return fills; }

void GiveBackOverlapping(uintptr_t begin, uintptr_t end) {
  for (;;) {
    Dropped* found = nullptr;
    {
      std::lock_guard<std::mutex> lock(mutex);
      for (Dropped* dropped : registry) {
        if (dropped->begin < end && begin < dropped->end) { found = dropped; }
      }
    }
    if (found == nullptr) { return; }
    Restore(found);
  }
}

void DropAtFork() {
  pthread_atfork([] { mutex.lock(); }, [] { mutex.unlock(); }, InChild);
}

}  // namespace dfo
