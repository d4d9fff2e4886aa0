// The cure of a race in OneFlow 0.9.0's nn.Graph.
//
// LaunchLazyJobInstructionPolicy::Compute hands a job to its actors before it puts the graph into
// LazyJobStreamPolicy's queue. A job that ends first makes DequeueNNGraph pop an empty queue, which
// corrupts memory. The replacement waits until there is something to pop.
#include "race.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <queue>
#include <thread>

#include "plt.h"

namespace dfo {
namespace {

// The members of oneflow::vm::LazyJobStreamPolicy in the cp310 wheel of 0.9.0.
struct LazyJobStreamPolicy {
  void* vtable;
  std::queue<std::weak_ptr<void>> queue;
  std::mutex mutex;
  std::condition_variable condition;
};

std::atomic<long> waits{0};

void DequeueNNGraph(LazyJobStreamPolicy* self) {
  std::unique_lock<std::mutex> lock(self->mutex);
  if (self->queue.empty()) { waits.fetch_add(1); }
  while (self->queue.empty()) {
    // EnqueueNNGraph notifies nobody, so this looks again soon; the gap it bridges is microseconds.
    lock.unlock();
    std::this_thread::sleep_for(std::chrono::microseconds(20));
    lock.lock();
  }
  self->queue.pop();
  self->condition.notify_all();
}

}  // namespace

bool InstallRaceCure() {
  return Redirect("_ZN7oneflow2vm19LazyJobStreamPolicy14DequeueNNGraphEv", reinterpret_cast<void*>(&DequeueNNGraph)) != nullptr;
}

long RaceWaits() { return waits.load(); }

}  // namespace dfo
