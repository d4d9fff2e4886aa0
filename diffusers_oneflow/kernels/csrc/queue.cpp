#include "queue.h"

#include <chrono>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <vector>

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
std::vector<Measured> measured;

int64_t Now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
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
    if (item.after != After::kPack) { finished.notify_all(); }
  }
  serving = false;
  return failure;
}

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
