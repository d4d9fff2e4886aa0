#include "tracker.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "dropped.h"
#include "hash.h"

// The kernel keeps a bit per page that any write clears, be it by this process's code, by a system call
// or by a debugger (userfaultfd's asynchronous write protection), and tells which pages lost it
// (PAGEMAP_SCAN). The bits are the process's, not a watch's: whoever collects them tells all watches.
// A page that was written to is then compared by hash. What cannot be tracked is hashed in each call.
//
// Not noticed: writes of devices to memory that was pinned for them before; a file under a private
// mapping, changed through a shared mapping of it that was written to already; a write that comes after
// changed(), before its caller has read the memory, and is undone before the next call.

namespace dfo {
namespace {

constexpr uintptr_t kPage = 4096;
constexpr uintptr_t kChunk = uintptr_t{1} << 18;  // what is hashed at a time: a small write costs one of these
constexpr uintptr_t kMinTracked = 8 * kPage;      // fewer are hashed as fast as asked for
constexpr size_t kMostMappings = 30000;           // tracking splits mappings; Linux allows a process 65530

// Newer than the headers of many systems: Linux 6.7, Documentation/admin-guide/mm/userfaultfd.rst and
// pagemap.rst; /dev/userfaultfd is of 6.1, MADV_POPULATE_READ of 5.14 (madvise(2)).
constexpr uint64_t kWpUnpopulated = uint64_t{1} << 13;
constexpr uint64_t kWpAsync = uint64_t{1} << 15;
constexpr int kUserModeOnly = 1;
constexpr unsigned long kNewUserfaultfd = _IO(0xAA, 0x00);
constexpr int kPopulateRead = 22;
struct ScanArgs {
  uint64_t size, flags, start, end, walk_end, regions, regions_size, max_pages;
  uint64_t inverted, all_of, any_of, wanted;
};
struct Region {
  uint64_t begin, end, categories;
};
constexpr unsigned long kPagemapScan = _IOWR('f', 16, ScanArgs);
constexpr uint64_t kProtect = 1, kFailUntracked = 2;                        // flags
constexpr uint64_t kWritten = 2, kOfFile = 4, kPresent = 8, kSwapped = 16;  // categories

uintptr_t FirstPage(const Range& range) { return (range.begin + kPage - 1) / kPage * kPage; }
uintptr_t EndPage(const Range& range) { return range.end / kPage * kPage; }
bool Large(const Range& range) { return FirstPage(range) < EndPage(range) && EndPage(range) - FirstPage(range) >= kMinTracked; }

// Pages that are tracked, of one kind of mapping.
struct Span {
  uintptr_t begin, end;
  int file;             // in Watch::files, -1 for memory without one
  bool tracked = true;  // false once the kernel lost track: unmapped, or mapped anew
  bool copied = false;  // some pages may be this process's own copies, no more the file's
  size_t copies = 0;    // how many were
};

struct Piece {
  uintptr_t begin;
  uint32_t bytes;
  int32_t range;
  Hash hash{};
  bool always;  // to be hashed in each call
  bool pending = false;
  bool readable = true;
};

// A file that is mapped privately: pages that were not copied yet follow its changes.
struct File {
  uint64_t inode;
  std::string path;
  int fd;
  timespec time{};
  off_t size = 0;
  bool settled = false;
};

}  // namespace

struct Watch {
  std::vector<Span> spans;    // by address, disjoint
  std::vector<Piece> pieces;  // by address; they overlap where ranges do
  std::vector<File> files;
  uint64_t epoch = 0;  // of the tracker that it uses; 0 for none
  bool complete = false;
};

namespace {

// Of the process. Everything below, down to the Python type, needs the mutex.
std::mutex mutex;
std::vector<Watch*> watches;
uint64_t epoch = 1;  // a forked child, whose memory nothing tracks, begins a new one
pid_t pid = 0;
int uffd = -1;
int pagemap = -1;
bool holes_are_written = false;
Region regions[512];

bool Register(uintptr_t begin, uintptr_t end) {
  uffdio_register args{};
  args.range = {begin, end - begin};
  args.mode = UFFDIO_REGISTER_MODE_WP;
  return ioctl(uffd, UFFDIO_REGISTER, &args) == 0;
}

void Unregister(uintptr_t begin, uintptr_t end) {
  uffdio_range args{begin, end - begin};
  ioctl(uffd, UFFDIO_UNREGISTER, &args);
}

bool Mapped(uintptr_t begin, uintptr_t end) {
  begin = begin / kPage * kPage;
  return msync(reinterpret_cast<void*>(begin), end - begin, MS_ASYNC) == 0;  // on Linux it only looks
}

// Whether the bytes can be read without a signal (a file may have become shorter than its mapping).
bool Readable(uintptr_t begin, uintptr_t end) {
  const uintptr_t first = begin / kPage * kPage;
  if (madvise(reinterpret_cast<void*>(first), end - first, kPopulateRead) == 0) { return true; }
  return errno == EINVAL && Mapped(begin, end);  // an old kernel, or memory of a device
}

void MarkPieces(Watch* watch, uintptr_t begin, uintptr_t end) {
  const auto first = std::lower_bound(watch->pieces.begin(), watch->pieces.end(), begin - std::min(begin, kChunk),
                                      [](const Piece& piece, uintptr_t at) { return piece.begin < at; });
  for (auto piece = first; piece != watch->pieces.end() && piece->begin < end; ++piece) {
    if (piece->begin + piece->bytes > begin) { piece->pending = true; }
  }
}

// For pages that were written to. Where they are a file's, for all of the span: see CountCopies.
void Mark(Watch* watch, uintptr_t begin, uintptr_t end) {
  auto span = std::upper_bound(watch->spans.begin(), watch->spans.end(), begin,
                               [](uintptr_t at, const Span& s) { return at < s.end; });
  for (; span != watch->spans.end() && span->begin < end; ++span) {
    if (span->file < 0) { continue; }
    span->copied = true;
    MarkPieces(watch, span->begin, span->end);
  }
  MarkPieces(watch, begin, end);
}

void MarkAll(uintptr_t begin, uintptr_t end) {
  for (Watch* watch : watches) { Mark(watch, begin, end); }
}

// Tells the watches which of the pages were written to since the last scan, and protects those again,
// both in one step of the kernel. False where the pages are no more what was registered.
bool Scan(const Span& span) {
  ScanArgs args{};
  args.size = sizeof(args);
  args.flags = kProtect | kFailUntracked;
  args.start = span.begin;
  args.end = span.end;
  args.regions = reinterpret_cast<uint64_t>(regions);
  args.regions_size = std::size(regions);
  args.all_of = args.wanted = kWritten;  // the kernel has a fast path for just this
  if (!holes_are_written) {
    args.all_of = 0;
    args.inverted = kPresent;
    args.any_of = kWritten | kPresent;
    args.wanted = kWritten | kPresent | kSwapped;
  }
  for (; args.start < span.end; args.start = args.walk_end) {
    const int count = ioctl(pagemap, kPagemapScan, &args);
    if (count < 0 || args.walk_end <= args.start) {
      MarkAll(span.begin, span.end);
      return false;
    }
    for (int i = 0; i < count; ++i) {
      // A page that is swapped out keeps its bit.
      const bool unchanged = (regions[i].categories & (kWritten | kSwapped)) == kSwapped;
      if (!unchanged) { MarkAll(regions[i].begin, regions[i].end); }
    }
  }
  if (Mapped(span.begin, span.end)) { return true; }  // a scan passes over what is not mapped
  MarkAll(span.begin, span.end);
  return false;
}

// How many of a file's pages are copies by now. The kernel keeps the bit of a copy that is dropped
// (madvise), though the content is the file's again: so nothing changed only if their number did not.
size_t CountCopies(const Span& span) {
  ScanArgs args{};
  args.size = sizeof(args);
  args.start = span.begin;
  args.end = span.end;
  args.regions = reinterpret_cast<uint64_t>(regions);
  args.regions_size = std::size(regions);
  args.inverted = kOfFile;
  args.all_of = kOfFile | kPresent;
  args.wanted = kPresent;
  size_t pages = 0;
  for (; args.start < span.end; args.start = args.walk_end) {
    const int count = ioctl(pagemap, kPagemapScan, &args);
    if (count < 0 || args.walk_end <= args.start) { return 0; }
    for (int i = 0; i < count; ++i) { pages += (regions[i].end - regions[i].begin) / kPage; }
  }
  return pages;
}

int OpenUserfaultfd(int flags) {
  int fd = static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | flags));
  if (fd < 0 && flags != 0) {
    const int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
    if (device < 0) { return -1; }
    fd = ioctl(device, kNewUserfaultfd, O_CLOEXEC | O_NONBLOCK);
    close(device);
  }
  if (fd < 0) { return -1; }
  uffdio_api api{};
  api.api = UFFD_API;
  api.features = kWpAsync | kWpUnpopulated;
  if (ioctl(fd, UFFDIO_API, &api) == 0) { return fd; }
  close(fd);
  return -1;
}

// Tries the whole of it out: writes, and whether pages that are gone count as written. The latter is
// asked for explicitly, more slowly, where they do not.
bool Works() {
  constexpr size_t kSize = size_t{4} << 20;  // it holds a whole page table without a page
  void* memory = mmap(nullptr, kSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) { return false; }
  auto* bytes = static_cast<volatile char*>(memory);
  const auto begin = reinterpret_cast<uintptr_t>(memory);
  Watch probe;
  probe.pieces.push_back({begin, kPage, 0, {}, false});
  watches.push_back(&probe);
  holes_are_written = true;
  Span hole{begin, begin + kSize, -1};
  bool works = Register(hole.begin, hole.end) && Scan(hole);
  holes_are_written = works && regions[0].begin <= hole.begin && regions[0].end >= hole.end;
  Span one{begin, begin + kPage, -1};
  const auto noticed = [&] {
    probe.pieces[0].pending = false;
    works = works && Scan(one);
    return probe.pieces[0].pending;
  };
  works = works && bytes[0] == 0;
  noticed();
  works = works && !noticed();
  bytes[0] = 1;
  works = works && noticed() && !noticed();
  madvise(memory, kPage, MADV_DONTNEED);
  works = works && noticed();
  watches.pop_back();
  munmap(memory, kSize);
  return works;
}

void CloseTracker() {
  if (uffd >= 0) { close(uffd); }
  if (pagemap >= 0) { close(pagemap); }
  uffd = pagemap = -1;
}

// Starts anew in a child, where the descriptors are still about its parent's memory.
void NoteFork() {
  if (pid == getpid()) { return; }
  if (pid != 0) {
    CloseTracker();
    watches.clear();
    ++epoch;
  } else {
    const auto child = [] {
      pid = -1;
      mutex.unlock();
    };
    DropAtFork();
    pthread_atfork([] { mutex.lock(); }, [] { mutex.unlock(); }, child);
  }
  pid = getpid();
  uffd = OpenUserfaultfd(0);
  if (uffd < 0) { uffd = OpenUserfaultfd(kUserModeOnly); }
  pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
  if (uffd < 0 || pagemap < 0 || !Works()) { CloseTracker(); }
}

// Whether the file may have changed since it was last looked at. A change too recent for the next one
// to get another time leaves it unsettled.
bool FileChanged(File* file) {
  struct stat now;
  timespec clock;
  if (fstat(file->fd, &now) != 0) { return true; }
  clock_gettime(CLOCK_REALTIME, &clock);
  const bool same = file->settled && now.st_size == file->size && now.st_ctim.tv_sec == file->time.tv_sec
                    && now.st_ctim.tv_nsec == file->time.tv_nsec;
  file->size = now.st_size;
  file->time = now.st_ctim;
  file->settled = clock.tv_sec - now.st_ctim.tv_sec > 2;
  return !same;
}

// Stops tracking the pages that no watch needs any more.
void Release(uintptr_t begin, uintptr_t end) {
  while (begin < end) {
    uintptr_t needed = end, next = end;
    for (const Watch* watch : watches) {
      auto span = std::upper_bound(watch->spans.begin(), watch->spans.end(), begin,
                                   [](uintptr_t at, const Span& s) { return at < s.end; });
      while (span != watch->spans.end() && !span->tracked) { ++span; }
      if (span == watch->spans.end() || span->begin >= needed) { continue; }
      needed = std::max(span->begin, begin);
      next = std::min(span->end, end);
    }
    if (begin < needed) { Unregister(begin, needed); }
    begin = next;
  }
}

// What is left of it is tracked no more: Linux would keep it from being dropped.
void Lose(Watch* watch, Span* span) {
  span->tracked = false;
  Release(span->begin, span->end);
  watch->complete = false;
  for (Piece& piece : watch->pieces) {
    if (piece.begin < span->end && span->begin < piece.begin + piece.bytes) { piece.always = true; }
  }
}

// Brings `pending` up to date.
void Poll(Watch* watch) {
  if (watch->epoch != epoch) {
    watch->complete = false;
    for (Piece& piece : watch->pieces) { piece.always = true; }
    return;
  }
  for (Span& span : watch->spans) {
    if (span.tracked && !Scan(span)) { Lose(watch, &span); }
    if (!span.copied) { continue; }
    const size_t copies = CountCopies(span);
    if (copies != span.copies) { MarkPieces(watch, span.begin, span.end); }
    span.copies = copies;
  }
  for (size_t i = 0; i < watch->files.size(); ++i) {
    if (!FileChanged(&watch->files[i])) { continue; }
    for (const Span& span : watch->spans) {
      if (span.file == static_cast<int>(i)) { MarkPieces(watch, span.begin, span.end); }
    }
  }
}

// Private mappings, which no one else can write to.
template <typename F>
void EachMapping(const F& visit) {
  FILE* maps = fopen("/proc/self/maps", "re");
  if (maps == nullptr) { return; }
  char* line = nullptr;
  size_t size = 0;
  while (getline(&line, &size, maps) > 0) {
    uintptr_t begin = 0, end = 0;
    uint64_t inode = 0;
    char flags[5] = {};
    int path = 0;
    if (sscanf(line, "%" SCNxPTR "-%" SCNxPTR " %4s %*s %*s %" SCNu64 " %n", &begin, &end, flags, &inode, &path) < 4
        || flags[3] != 'p') {
      continue;
    }
    line[strcspn(line, "\n")] = 0;
    visit(begin, end, inode, line + path);
  }
  free(line);
  fclose(maps);
}

// The file's index in the watch; -1 where it cannot be found, say because it was deleted.
int FileOf(Watch* watch, uint64_t inode, const char* path) {
  for (size_t i = 0; i < watch->files.size(); ++i) {
    if (watch->files[i].inode == inode && watch->files[i].path == path) { return static_cast<int>(i); }
  }
  const int fd = open(path, O_PATH | O_CLOEXEC);
  if (fd < 0) { return -1; }
  struct stat now;
  if (fstat(fd, &now) != 0 || now.st_ino != inode) {
    close(fd);
    return -1;
  }
  watch->files.push_back({inode, path, fd});
  FileChanged(&watch->files.back());
  return static_cast<int>(watch->files.size()) - 1;
}

// The whole pages of large ranges, as far as they can be tracked. Sets `complete`.
void FindSpans(Watch* watch, const std::vector<Range>& ranges) {
  std::vector<Range> wanted;  // disjoint
  for (const Range& range : ranges) {
    if (Large(range)) { wanted.push_back({FirstPage(range), EndPage(range)}); }
  }
  std::sort(wanted.begin(), wanted.end(), [](const Range& a, const Range& b) { return a.begin < b.begin; });
  uintptr_t missing = 0, end = 0;
  for (Range& range : wanted) {
    range.begin = std::max(range.begin, end);
    end = range.end = std::max(range.end, end);
    missing += range.end - range.begin;
  }
  size_t mappings = 2 * wanted.size();
  EachMapping([&](uintptr_t, uintptr_t, uint64_t, const char*) { ++mappings; });
  if (mappings > kMostMappings) { return; }
  EachMapping([&](uintptr_t begin, uintptr_t end, uint64_t inode, const char* path) {
    auto range = std::upper_bound(wanted.begin(), wanted.end(), begin, [](uintptr_t at, const Range& r) { return at < r.end; });
    int file = -1;
    for (; range != wanted.end() && range->begin < end; ++range) {
      if (range->begin == range->end) { continue; }
      if (inode != 0 && file < 0 && (file = FileOf(watch, inode, path)) < 0) { return; }
      watch->spans.push_back({std::max(begin, range->begin), std::min(end, range->end), file});
      missing -= watch->spans.back().end - watch->spans.back().begin;
    }
  });
  watch->complete = missing == 0;
}

// From now on no write to the watch's spans goes unnoticed. Pages that were not tracked until now count
// as written to, also for watches over memory that was mapped anew under them.
void Attach(Watch* watch, const std::vector<Range>& ranges) {
  NoteFork();
  if (uffd < 0) { return; }
  watch->epoch = epoch;
  FindSpans(watch, ranges);
  watches.push_back(watch);
  for (Span& span : watch->spans) {
    GiveBackOverlapping(span.begin, span.end);
    if (span.file >= 0) { Readable(span.begin, span.end); }  // CountCopies cannot count what is swapped out
    span.tracked = Register(span.begin, span.end) && Scan(span);
    watch->complete &= span.tracked;
    span.copies = span.file < 0 ? 0 : CountCopies(span);
    span.copied = span.copies > 0;
  }
}

void Detach(Watch* watch) {
  NoteFork();
  watches.erase(std::remove(watches.begin(), watches.end(), watch), watches.end());
  if (watch->epoch == epoch) {
    for (const Span& span : watch->spans) {
      if (span.tracked) { Release(span.begin, span.end); }
    }
  }
  for (const File& file : watch->files) { close(file.fd); }
}

// Cuts the ranges where tracking begins and ends, and in chunks.
void Cut(Watch* watch, const std::vector<Range>& ranges) {
  for (size_t i = 0; i < ranges.size(); ++i) {
    for (uintptr_t at = ranges[i].begin; at < ranges[i].end;) {
      uintptr_t end = std::min(ranges[i].end, (at / kChunk + 1) * kChunk);
      auto span = std::upper_bound(watch->spans.begin(), watch->spans.end(), at,
                                   [](uintptr_t a, const Span& s) { return a < s.end; });
      bool always = true;
      if (span != watch->spans.end()) {
        always = at < span->begin || !span->tracked;
        end = std::min(end, at < span->begin ? span->begin : span->end);
      }
      watch->pieces.push_back({at, static_cast<uint32_t>(end - at), static_cast<int32_t>(i), {}, always});
      at = end;
    }
  }
  std::sort(watch->pieces.begin(), watch->pieces.end(), [](const Piece& a, const Piece& b) { return a.begin < b.begin; });
}

struct Fresh {
  Piece* piece;
  Hash hash;
  bool readable;
};

void HashSome(Fresh* first, Fresh* last) {
  for (Fresh* at = first; at != last;) {
    Fresh* next = at;
    uintptr_t end = at->piece->begin;
    // Neighbours are made readable together.
    while (next != last && next->piece->begin <= end + kPage) {
      end = std::max(end, next->piece->begin + next->piece->bytes);
      ++next;
    }
    const bool readable = Readable(at->piece->begin, end);
    for (; at != next; ++at) {
      const Piece& piece = *at->piece;
      at->readable = readable || Readable(piece.begin, piece.begin + piece.bytes);
      if (at->readable) { at->hash = HashOf(reinterpret_cast<const char*>(piece.begin), piece.bytes); }
    }
  }
}

void HashThem(std::vector<Fresh>* work) {
  constexpr size_t kBatch = 32;
  std::atomic<size_t> next{0};
  const auto run = [&] {
    for (size_t at = next.fetch_add(kBatch); at < work->size(); at = next.fetch_add(kBatch)) {
      HashSome(work->data() + at, work->data() + std::min(at + kBatch, work->size()));
    }
  };
  size_t bytes = 0;
  for (const Fresh& fresh : *work) { bytes += fresh.piece->bytes; }
  std::vector<std::thread> helpers;
  const size_t wanted = std::min<size_t>({std::thread::hardware_concurrency(), 4, bytes >> 23});
  try {
    for (size_t i = 1; i < wanted; ++i) { helpers.emplace_back(run); }
  } catch (const std::exception&) {}  // no thread to be had: this one does it
  run();
  for (std::thread& helper : helpers) { helper.join(); }
}

// The ranges of those pieces that are not what they were.
std::vector<int> Verify(Watch* watch) {
  std::vector<Fresh> work;
  for (Piece& piece : watch->pieces) {
    if (piece.always || piece.pending) { work.push_back({&piece, {}, false}); }
    piece.pending = false;
  }
  HashThem(&work);
  std::vector<int> changed;
  for (const Fresh& fresh : work) {
    Piece& piece = *fresh.piece;
    const bool same = fresh.readable && piece.readable && fresh.hash.a == piece.hash.a && fresh.hash.b == piece.hash.b;
    if (!same) { changed.push_back(piece.range); }
    piece.hash = fresh.hash;
    piece.readable = fresh.readable;
    piece.always |= !fresh.readable;
  }
  std::sort(changed.begin(), changed.end());
  changed.erase(std::unique(changed.begin(), changed.end()), changed.end());
  return changed;
}

}  // namespace

Watch* NewWatch() { return new Watch(); }

// Makes the watch; the index of a range that is not memory, or -1. Without the mutex: others may mark
// pieces meanwhile, but none looks at a hash.
int Make(Watch* watch, const std::vector<Range>& ranges, bool track) {
  {
    std::lock_guard<std::mutex> lock(mutex);
    if (track) { Attach(watch, ranges); }
    Cut(watch, ranges);
  }
  std::vector<Fresh> work;
  for (Piece& piece : watch->pieces) { work.push_back({&piece, {}, false}); }
  HashThem(&work);
  for (const Fresh& fresh : work) {
    if (!fresh.readable) { return fresh.piece->range; }
    fresh.piece->hash = fresh.hash;
  }
  return -1;
}

std::vector<int> ChangedRanges(Watch* watch) {
  std::lock_guard<std::mutex> lock(mutex);
  NoteFork();
  Poll(watch);
  return Verify(watch);
}

// The bytes that each call hashes, and whether everything else is tracked.
std::pair<size_t, bool> Hashed(Watch* watch) {
  std::lock_guard<std::mutex> lock(mutex);
  NoteFork();
  const bool current = watch->epoch == epoch;
  size_t bytes = 0;
  for (const Piece& piece : watch->pieces) { bytes += piece.always || !current ? piece.bytes : 0; }
  return {bytes, watch->complete && current};
}

void Drop(Watch* watch) {
  {
    std::lock_guard<std::mutex> lock(mutex);
    Detach(watch);
  }
  delete watch;
}

std::unique_lock<std::mutex> LockTracker() {
  std::unique_lock<std::mutex> lock(mutex);
  NoteFork();
  return lock;
}

bool IsTracked(const Range& range) {
  for (Watch* watch : watches) {
    for (Span& span : watch->spans) {
      if (!span.tracked || span.begin >= range.end || range.begin >= span.end) { continue; }
      if (Scan(span)) { return true; }
      Lose(watch, &span);  // unmapped since, and somebody else's memory by now
    }
  }
  return false;
}

}  // namespace dfo
