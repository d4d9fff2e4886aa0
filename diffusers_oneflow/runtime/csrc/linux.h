// What several files need of Linux.
#pragma once

#include <signal.h>

#include <cstddef>
#include <cstdint>

namespace dfo {

constexpr size_t kHuge = size_t{2} << 20;  // bytes of a huge page, x86-64

// While it lives, the calling thread gets no signals, and neither do threads that it starts: handlers would run Python's code
// on them.
class SignalsBlocked {
 public:
  SignalsBlocked() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;

 private:
  sigset_t before_;
};

}  // namespace dfo
