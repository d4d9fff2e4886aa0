// Stands in for glog's header, which OneFlow's headers include and its wheel lacks. Nothing that the pack
// instantiates from them logs; a failed check still ends the process with its message, as glog's does.
#pragma once
#include <cstdlib>
#include <iostream>

namespace dfo {

class LogLine {
 public:
  explicit LogLine(bool fatal) : fatal_(fatal) {}
  ~LogLine() {
    if (fatal_) {
      std::cerr << std::endl;
      std::abort();
    }
  }
  template <typename T>
  LogLine& operator<<(const T& value) {
    if (fatal_) { std::cerr << value; }
    return *this;
  }

 private:
  bool fatal_;
};

struct Voidify {
  void operator&(const LogLine&) {}
};

}  // namespace dfo

#define DFO_LOG_IF(fatal, wanted) !(wanted) ? (void)0 : ::dfo::Voidify() & ::dfo::LogLine(fatal)
#define DFO_FATAL_INFO false
#define DFO_FATAL_WARNING false
#define DFO_FATAL_ERROR false
#define DFO_FATAL_FATAL true
#define LOG(severity) ::dfo::LogLine(DFO_FATAL_##severity)
#define LOG_IF(severity, condition) DFO_LOG_IF(DFO_FATAL_##severity, condition)
#define DLOG(severity) LOG(severity)
#define PLOG(severity) LOG(severity)
#define VLOG(level) ::dfo::LogLine(false)
#define CHECK(condition) DFO_LOG_IF(true, !(condition)) << "check failed: " #condition " "
#define PCHECK(condition) CHECK(condition)
#define DCHECK(condition) CHECK(true || (condition))
#define CHECK_EQ(a, b) CHECK((a) == (b))
#define CHECK_NE(a, b) CHECK((a) != (b))
#define CHECK_LT(a, b) CHECK((a) < (b))
#define CHECK_LE(a, b) CHECK((a) <= (b))
#define CHECK_GT(a, b) CHECK((a) > (b))
#define CHECK_GE(a, b) CHECK((a) >= (b))
#define CHECK_STREQ(a, b) CHECK(std::string(a) == std::string(b))
#define CHECK_STRNE(a, b) CHECK(std::string(a) != std::string(b))
#define DCHECK_EQ(a, b) DCHECK((a) == (b))
#define DCHECK_NE(a, b) DCHECK((a) != (b))
#define DCHECK_LT(a, b) DCHECK((a) < (b))
#define DCHECK_LE(a, b) DCHECK((a) <= (b))
#define DCHECK_GT(a, b) DCHECK((a) > (b))
#define DCHECK_GE(a, b) DCHECK((a) >= (b))
#define CHECK_NOTNULL(pointer) (pointer)
