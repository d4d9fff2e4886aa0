// Hands the pack's work from OneFlow's worker thread to the thread that called the graph.
//
// oneDNN and the kernels of the pack work on OpenMP teams, and every thread that opens one has a team of its
// own: run on OneFlow's thread, a second team would spin against torch's on the same cores. So a kernel's
// Compute only queues its work; the caller, which waits for the graph anyway, does it, on torch's own team and
// with torch's number of threads.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

namespace dfo {

// What comes after a kernel in its graph.
enum class After : int64_t {
  kPack = 0,   // another kernel of the pack, which is queued behind it
  kOther = 1,  // something that reads memory at once: wait until the work is done
  kEnd = 2,    // no more kernels of the pack: wait, and let the caller go on
};

// Called on OneFlow's thread. Where nobody serves (an op outside of a graph) the work is done at once.
// `name` must live as long as the graph; it is named if the work fails.
void Queue(std::function<void()> work, const std::string& name, After after);

// Called on the caller's thread, after it has started the graph: does all work up to that of kEnd.
// Returns "" or what failed first, after which nothing more was computed.
std::string Serve();

// From now on work is queued for Serve(). To be called before the graph is started.
void Open();

// Lets OneFlow's scheduler sleep while Serve() works. It waits for a graph by calling sched_yield() in a loop, a third
// thread that takes its share of two busy cores: a quarter of the time of a UNet's step. False if that call is not found.
bool InstallYield();

// Whether to measure each kernel (Profile), and what was measured since: nanoseconds in order of execution.
void SetProfiling(bool on);

struct Measured {
  std::string name;
  int64_t nanoseconds;
};
void TakeMeasured(std::function<void(const Measured&)> visit);

}  // namespace dfo
