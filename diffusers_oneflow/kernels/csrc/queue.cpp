#include "queue.h"

#include <sched.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <vector>

#include "../../runtime/csrc/plt.h"

namespace dfo {
namespace {

struct Item {
  std::function<void()> work;
  const std::string* name;
  After after;
};

std::mutex mutex;
std::condition_variable arrived, finished;
std::deque<Item> items;
int64_t queued = 0, done = 0;
bool serving = false;
std::string failure;
bool profiling = false;
// From the first kernel of a graph, when nothing is left to schedule, to the end of its last one.
std::atomic<bool> working{false};
std::condition_variable rest;
thread_local bool runs_actors = false;
std::vector<Measured> measured;

int64_t Now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// In the place of liboneflow's sched_yield().
int Yield() {
  if (!working || runs_actors) { return sched_yield(); }
  std::unique_lock<std::mutex> lock(mutex);
  // Not for long, whoever it is that waits here.
  rest.wait_for(lock, std::chrono::milliseconds(1), [] { return !working; });
  return 0;
}

// After a failure the rest is passed over: its inputs were never made.
void Do(const Item& item) {
  if (!failure.empty()) { return; }
  const int64_t start = profiling ? Now() : 0;
  try {
    item.work();
  } catch (const std::exception& error) { failure = *item.name + ": " + error.what(); }
  if (profiling) { measured.push_back({*item.name, Now() - start}); }
}

}  // namespace

void Open() {
  std::lock_guard<std::mutex> lock(mutex);
  serving = true;
  failure.clear();
}

void Queue(std::function<void()> work, const std::string& name, After after) {
  std::unique_lock<std::mutex> lock(mutex);
  if (!serving) {
    lock.unlock();
    work();
    return;
  }
  runs_actors = working = true;
  items.push_back({std::move(work), &name, after});
  const int64_t mine = ++queued;
  arrived.notify_one();
  if (after != After::kPack) {
    finished.wait(lock, [mine] { return done >= mine; });
  }
}

std::string Serve() {
  std::unique_lock<std::mutex> lock(mutex);
  for (bool more = true; more;) {
    arrived.wait(lock, [] { return !items.empty(); });
    const Item item = std::move(items.front());
    items.pop_front();
    lock.unlock();
    Do(item);
    lock.lock();
    ++done;
    more = item.after != After::kEnd;
    if (!more) {
      working = false;
      rest.notify_all();
    }
    if (item.after != After::kPack) { finished.notify_all(); }
  }
  serving = false;
  return failure;
}

bool InstallYield() { return Redirect("sched_yield", reinterpret_cast<void*>(&Yield)) != nullptr; }

void SetProfiling(bool on) {
  std::lock_guard<std::mutex> lock(mutex);
  profiling = on;
  measured.clear();
}

void TakeMeasured(std::function<void(const Measured&)> visit) {
  std::lock_guard<std::mutex> lock(mutex);
  for (const Measured& item : measured) { visit(item); }
  measured.clear();
}

}  // namespace dfo
