#include "faults.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "linux.h"

namespace dfo {
namespace {

// Newer than the headers of many systems: Linux 6.8 (ioctl_userfaultfd(2)); /dev/userfaultfd is of 6.1, close_range of 5.9.
constexpr uint64_t kFeatureMove = uint64_t{1} << 16;
constexpr uint64_t kAllowHoles = uint64_t{1} << 1;
struct MoveArgs {
  uint64_t to, from, bytes, mode;
  int64_t moved;
};
constexpr unsigned long kMove = _IOWR(0xAA, 0x05, MoveArgs);
constexpr unsigned long kNewUserfaultfd = _IO(0xAA, 0x00);
constexpr int kCloseRange = 436;

int uffd = -1;
void (*fill_page)(uintptr_t) = nullptr;

// System calls that read dropped memory fail unless the kernel's own faults are served as well: no user-mode-only
// descriptor will do.
int OpenDescriptor() {
  const int fd = static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK));
  if (fd >= 0) { return fd; }
  const int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
  if (device < 0) { return -1; }
  const int made = ioctl(device, kNewUserfaultfd, O_CLOEXEC | O_NONBLOCK);
  close(device);
  return made;
}

struct Start {
  int fd;
  int pipe;  // where the thread says whether it is ready
};

// Were the descriptor closed (some programs close all that they find), the kernel would give out zeros for what is
// missing: this thread has a table of descriptors of its own, with this one alone.
void* Serve(void* argument) {
  const Start start = *static_cast<Start*>(argument);
  const auto fd = static_cast<unsigned>(start.fd);
  const char answer = unshare(CLONE_FILES) == 0 && syscall(kCloseRange, ~0u, ~0u, 0) == 0;
  while (write(start.pipe, &answer, 1) < 0 && errno == EINTR) {}
  if (!answer) { return nullptr; }
  syscall(kCloseRange, fd + 1, ~0u, 0);
  if (fd > 0) { syscall(kCloseRange, 0, fd - 1, 0); }
  for (;;) {
    pollfd ready{start.fd, POLLIN, 0};
    poll(&ready, 1, -1);
    uffd_msg message;
    if (read(start.fd, &message, sizeof(message)) != sizeof(message)) { continue; }
    if (message.event == UFFD_EVENT_PAGEFAULT) { fill_page(message.arg.pagefault.address / kPage * kPage); }
  }
}

// False where no thread is to be had, or none with descriptors of its own.
bool StartThread(int fd) {
  int pipe[2];
  if (pipe2(pipe, O_CLOEXEC) != 0) { return false; }
  Start start{fd, pipe[1]};
  pthread_t thread;
  bool started = false;
  {
    const SignalsBlocked blocked;
    started = pthread_create(&thread, nullptr, Serve, &start) == 0;
  }
  if (started) {
    char answer = 0;
    while (read(pipe[0], &answer, 1) < 0 && errno == EINTR) {}
    started = answer == 1;
    pthread_detach(thread);
  }
  close(pipe[0]);
  close(pipe[1]);
  return started;
}

}  // namespace

const char* StartFaults(void (*fill)(uintptr_t)) {
  if (uffd >= 0) { close(uffd); }
  fill_page = fill;
  uffd = OpenDescriptor();
  if (uffd < 0) {
    return "this process may not use userfaultfd for faults in system calls: give it read and write access to "
           "/dev/userfaultfd or the capability CAP_SYS_PTRACE, or set the sysctl vm.unprivileged_userfaultfd to 1";
  }
  uffdio_api api{};
  api.api = UFFD_API;
  api.features = kFeatureMove;
  const bool moves = ioctl(uffd, UFFDIO_API, &api) == 0;
  if (moves && sysconf(_SC_PAGESIZE) == static_cast<long>(kPage) && StartThread(uffd)) { return nullptr; }
  close(uffd);
  uffd = -1;
  return moves ? "the thread that gives dropped memory back cannot be started: allow this process threads and close_range"
               : "this kernel's userfaultfd cannot move pages: Linux 6.8 or newer can";
}

bool RegisterMissing(uintptr_t begin, uintptr_t end) {
  uffdio_register args{};
  args.range = {begin, end - begin};
  args.mode = UFFDIO_REGISTER_MODE_MISSING;
  return ioctl(uffd, UFFDIO_REGISTER, &args) == 0;
}

void UnregisterMissing(uintptr_t begin, uintptr_t end) {
  uffdio_range args{begin, end - begin};
  ioctl(uffd, UFFDIO_UNREGISTER, &args);
}

// Linux moves and fills within one mapping only. Where the next begins both of these find by halving.
size_t MovePages(uintptr_t to, uintptr_t from, size_t bytes, bool* busy) {
  size_t done = 0;
  for (size_t step = bytes; done < bytes; step = std::min(step, bytes - done)) {
    MoveArgs args{to + done, from + done, step, kAllowHoles, 0};
    const int error = ioctl(uffd, kMove, &args) == 0 ? 0 : errno;
    if (args.moved > 0) { done += static_cast<size_t>(args.moved); }
    *busy = error == EBUSY;
    if (error == EINVAL && step > kPage) {
      step = std::max(kPage, step / 2 / kPage * kPage);
    } else if (error == 0) {
      step *= 2;
    } else if (error != EAGAIN) {
      break;
    }
  }
  return done;
}

void PutPages(uintptr_t to, const char* from, size_t bytes) {
  size_t done = 0;
  for (size_t step = bytes; done < bytes; step = std::min(step, bytes - done)) {
    uffdio_copy args{to + done, reinterpret_cast<uint64_t>(from) + done, step, 0, 0};
    if (ioctl(uffd, UFFDIO_COPY, &args) == 0) {
      done += step;
      step *= 2;
    } else if (args.copy > 0) {
      done += static_cast<size_t>(args.copy);
    } else if (errno == ENOMEM) {
      const timespec moment{0, 1000000};
      nanosleep(&moment, nullptr);
    } else if (errno != EAGAIN) {
      if (step == kPage) { done += kPage; }  // there already, or unmapped
      step = std::max(kPage, step / 2 / kPage * kPage);
    }
  }
  uffdio_range range{to, bytes};
  ioctl(uffd, UFFDIO_WAKE, &range);
}

void PutZeros(uintptr_t page) {
  uffdio_zeropage args{};
  args.range = {page, kPage};
  if (ioctl(uffd, UFFDIO_ZEROPAGE, &args) != 0) { Wake(page); }
}

void Wake(uintptr_t page) {
  uffdio_range range{page, kPage};
  ioctl(uffd, UFFDIO_WAKE, &range);
}

}  // namespace dfo
