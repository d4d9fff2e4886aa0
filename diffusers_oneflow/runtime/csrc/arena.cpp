#include "arena.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "oneflow/core/job/plan.pb.h"
#include "linux.h"
#include "plt.h"

namespace dfo {
namespace {

using oneflow::MemoryCase;
using oneflow::Plan;
using oneflow::RegstDescProto;
using oneflow::TaskProto;

// The arena is one range of addresses, reserved once: every graph's activations start at its first
// byte, and graphs never run at the same time. An odd size tells its allocation from all others.
constexpr size_t kReserved = (size_t{1} << 38) + 4096;
constexpr int64_t kArenaChunk = int64_t{1} << 50;
constexpr size_t kAlign = 512;  // of OneFlow's blobs, and room for a header
constexpr size_t kPage = 4096;
constexpr size_t kHeaders = size_t{1} << 16;  // bytes taken for blob headers at a time

struct Mapping {
  void* address;
  size_t size;
};

struct Graph {
  size_t planned = 0;
  std::vector<Mapping> mappings;
  char* header = nullptr;  // the next free place for a blob's header
  size_t headers_left = 0;
};

std::mutex mutex;
std::map<int64_t, Graph> graphs;
char* arena = nullptr;
size_t arena_writable = 0;
int64_t next_block = kArenaChunk + 1;
// One graph is built at a time, but OneFlow makes its blobs on a thread of its own.
std::atomic<int64_t> current{-1};
int64_t current_block = -1;
GraphMemory report;

using InferFn = void (*)(Plan*, const std::function<bool(const std::string&, const std::string&)>&);
using GenerateFn = void (*)(Plan*, const std::unordered_set<std::string>&);
using AllocateFn = char* (*)(void*, const MemoryCase&, size_t);
using BlobFn = void (*)(void*, const MemoryCase&, const void*, char*, char*);
InferFn infer_original;
GenerateFn generate_original;
AllocateFn allocate_original;
BlobFn blob_original;

size_t RoundUp(size_t n, size_t to) { return (n + to - 1) / to * to; }

size_t ElementSize(oneflow::DataType type) {
  switch (type) {
    case oneflow::kDouble:
    case oneflow::kInt64: return 8;
    case oneflow::kFloat:
    case oneflow::kInt32: return 4;
    case oneflow::kFloat16:
    case oneflow::kBFloat16: return 2;
    case oneflow::kChar:
    case oneflow::kBool:
    case oneflow::kInt8:
    case oneflow::kUInt8: return 1;
    default: return 0;
  }
}

// Bytes of a register, rounded to OneFlow's alignment; 0 where it cannot be planned.
size_t Size(const RegstDescProto& regst) {
  const auto& blobs = regst.regst_desc_type().data_regst_desc().lbi2blob_desc();
  if (blobs.size() != 1) { return 0; }
  size_t bytes = ElementSize(blobs.Get(0).blob_desc().data_type());
  for (const auto dim : blobs.Get(0).blob_desc().shape().dim()) { bytes *= static_cast<size_t>(dim); }
  return bytes == 0 ? 0 : RoundUp(bytes, kAlign) + kAlign;
}

bool Reusable(const RegstDescProto& regst) {
  return regst.regst_desc_type().has_data_regst_desc() && regst.enable_reuse_mem() && regst.register_num() == 1
         && regst.mem_block_id() == -1 && regst.mem_case().device_type() == oneflow::kCPU
         && !regst.mem_case().has_pinned_device_type()
         && regst.inplace_info_type_case() == RegstDescProto::INPLACE_INFO_TYPE_NOT_SET
         && regst.inplace_consumed_regst_desc_id() == -1;
}

struct Interval {
  std::vector<RegstDescProto*> regsts;  // one, and the views of it
  size_t size;
  int first, last;  // positions of the tasks that write it and that read it last
  size_t offset = 0;
};

// The tasks that run one after the other, in that order: each next one waits for the one before,
// by an edge of data or of control. Empty where the ops are not in such a chain.
std::vector<TaskProto*> LinearTasks(Plan* plan) {
  std::vector<TaskProto*> tasks;
  for (auto& task : *plan->mutable_task()) {
    bool computes = false;
    for (const auto& item : task.produced_regst_desc()) { computes |= Reusable(item.second); }
    if (computes) { tasks.push_back(&task); }
  }
  std::sort(tasks.begin(), tasks.end(), [](const TaskProto* a, const TaskProto* b) {
    return a->task_set_info().order_in_graph() < b->task_set_info().order_in_graph();
  });
  for (size_t i = 0; i + 1 < tasks.size(); ++i) {
    bool joined = false;
    for (const auto& item : tasks[i]->produced_regst_desc()) {
      const auto& consumers = item.second.consumer_task_id();
      joined |= std::find(consumers.begin(), consumers.end(), tasks[i + 1]->task_id()) != consumers.end();
    }
    if (!joined) { return {}; }
  }
  return tasks;
}

// The register that a task only looks at in another shape (an op of the kernel pack), or -1.
int64_t Viewed(const TaskProto& task) {
  if (task.exec_sequence().exec_node_size() != 1) { return -1; }
  const auto& node = task.exec_sequence().exec_node(0);
  const auto& kernel = node.kernel_conf();
  const std::string& op = kernel.has_op_attribute() ? kernel.op_attribute().op_conf().name() : kernel.op_attribute_ref();
  if (op.rfind("dfo_view-", 0) != 0) { return -1; }
  const auto found = node.bn_in_op2regst_desc_id().find("in_0");
  return found == node.bn_in_op2regst_desc_id().end() ? -1 : found->second;
}

std::vector<Interval> Lifetimes(const std::vector<TaskProto*>& tasks) {
  std::unordered_map<int64_t, int> position;
  for (size_t i = 0; i < tasks.size(); ++i) { position[tasks[i]->task_id()] = static_cast<int>(i); }
  std::vector<Interval> intervals;
  std::unordered_map<int64_t, size_t> interval_of;
  for (size_t i = 0; i < tasks.size(); ++i) {
    for (auto& item : *tasks[i]->mutable_produced_regst_desc()) {
      RegstDescProto& regst = item.second;
      if (!Reusable(regst)) { continue; }
      int last = static_cast<int>(i);
      for (const auto consumer : regst.consumer_task_id()) {
        const auto found = position.find(consumer);
        // A reader outside the chain (an output) may come any time later.
        last = std::max(last, found == position.end() ? static_cast<int>(tasks.size()) : found->second);
      }
      const size_t size = Size(regst);
      if (size == 0) { continue; }
      const auto viewed = interval_of.find(Viewed(*tasks[i]));
      if (viewed == interval_of.end()) {
        interval_of[regst.regst_desc_id()] = intervals.size();
        intervals.push_back({{&regst}, size, static_cast<int>(i), last});
        continue;
      }
      Interval& interval = intervals[viewed->second];
      interval_of[regst.regst_desc_id()] = viewed->second;
      interval.regsts.push_back(&regst);
      interval.last = std::max(interval.last, last);
    }
  }
  return intervals;
}

// Greedy by size (Pisarchyk and Lee, 2020): the largest first, each at the lowest offset that is free
// during its lifetime. Returns the bytes needed in all.
size_t Place(std::vector<Interval>* intervals) {
  std::stable_sort(intervals->begin(), intervals->end(), [](const Interval& a, const Interval& b) { return a.size > b.size; });
  std::vector<const Interval*> placed;  // by offset
  size_t total = 0;
  for (Interval& interval : *intervals) {
    size_t offset = 0;
    for (const Interval* other : placed) {
      if (other->last < interval.first || interval.last < other->first) { continue; }
      if (offset + interval.size <= other->offset) { break; }
      offset = std::max(offset, other->offset + other->size);
    }
    interval.offset = offset;
    total = std::max(total, offset + interval.size);
    const auto at = std::upper_bound(placed.begin(), placed.end(), offset,
                                     [](size_t o, const Interval* p) { return o < p->offset; });
    placed.insert(at, &interval);
  }
  return total;
}

void* Map(size_t size, int protection) {
  void* address = mmap(nullptr, size, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return address == MAP_FAILED ? nullptr : address;
}

// Makes the first `bytes` of the arena usable.
void GrowArena(size_t bytes) {
  std::lock_guard<std::mutex> lock(mutex);
  if (arena == nullptr) {
    const auto reserved = reinterpret_cast<uintptr_t>(Map(kReserved + kHuge, PROT_NONE));
    arena = reserved == 0 ? nullptr : reinterpret_cast<char*>(RoundUp(reserved, kHuge));
  }
  bytes = RoundUp(bytes, kPage);
  if (arena == nullptr || bytes <= arena_writable) { return; }
  mprotect(arena, bytes, PROT_READ | PROT_WRITE);
  madvise(arena, bytes, MADV_HUGEPAGE);  // rows of activations lie in pages far apart
  arena_writable = bytes;
}

void InferMemBlock(Plan* plan, const std::function<bool(const std::string&, const std::string&)>& reachable) {
  infer_original(plan, reachable);
  if (current < 0) { return; }
  const std::vector<TaskProto*> tasks = LinearTasks(plan);
  std::vector<Interval> intervals = Lifetimes(tasks);
  report.linear = !tasks.empty();
  report.planned = Place(&intervals);
  GrowArena(report.planned);
  report.unplanned = 0;
  std::unordered_set<const RegstDescProto*> in_arena;
  current_block = intervals.empty() ? -1 : next_block++;
  for (const Interval& interval : intervals) {
    report.unplanned += interval.size;
    for (RegstDescProto* regst : interval.regsts) {
      regst->set_mem_block_id(current_block);
      regst->set_mem_block_offset(static_cast<int64_t>(interval.offset));
      in_arena.insert(regst);
    }
  }
  // Nothing else may ask for reuse, or OneFlow would place it in the arena by its own rules.
  for (auto& task : *plan->mutable_task()) {
    for (auto& item : *task.mutable_produced_regst_desc()) {
      if (Reusable(item.second) && in_arena.count(&item.second) == 0) { item.second.set_enable_reuse_mem(false); }
    }
  }
}

void GenerateBlocks(Plan* plan, const std::unordered_set<std::string>& variables) {
  generate_original(plan, variables);
  if (current < 0 || current_block < 0) { return; }
  auto* list = plan->mutable_block_chunk_list();
  for (auto& block : *list->mutable_mem_block()) {
    if (block.mem_block_id() != current_block) { continue; }
    oneflow::ChunkProto chunk;
    chunk.set_chunk_id(kArenaChunk);
    chunk.add_job_id(block.job_id(0));
    chunk.set_machine_id(block.machine_id());
    *chunk.mutable_mem_case() = block.mem_case();
    chunk.set_mem_size(static_cast<int64_t>(kReserved));
    block.set_chunk_id(kArenaChunk);
    block.set_chunk_offset(0);
    list->clear_chunk();
    *list->add_chunk() = chunk;
  }
}

char* Allocate(void* self, const MemoryCase& mem_case, size_t size) {
  if (current < 0 || mem_case.device_type() != oneflow::kCPU || mem_case.has_pinned_device_type()) {
    return allocate_original(self, mem_case, size);
  }
  std::lock_guard<std::mutex> lock(mutex);
  if (size == kReserved) { return arena; }
  // Fresh pages are zero, as OneFlow's own allocator leaves them, but cost nothing until touched.
  void* address = Map(RoundUp(size, kPage), PROT_READ | PROT_WRITE);
  graphs[current].mappings.push_back({address, RoundUp(size, kPage)});
  report.owned += size;
  return static_cast<char*>(address);
}

char* HeaderLocked(Graph* graph) {
  if (graph->headers_left == 0) {
    graph->header = static_cast<char*>(Map(kHeaders, PROT_READ | PROT_WRITE));
    graph->headers_left = kHeaders;
    graph->mappings.push_back({graph->header, kHeaders});
    report.owned += kHeaders;
  }
  char* header = graph->header;
  graph->header += kAlign;
  graph->headers_left -= kAlign;
  return header;
}

// A CPU blob keeps its shape in front of its body, where the arena's next tenant would overwrite it:
// in the arena every shape gets a place of its own.
void NewBlob(void* self, const MemoryCase& mem_case, const void* desc, char* header, char* body) {
  if (current >= 0 && arena != nullptr && header >= arena && header < arena + kReserved) {
    std::lock_guard<std::mutex> lock(mutex);
    header = HeaderLocked(&graphs[current]);
  }
  blob_original(self, mem_case, desc, header, body);
}

size_t NeededLocked() {
  size_t needed = 0;
  for (const auto& item : graphs) { needed = std::max(needed, item.second.planned); }
  return needed;
}

}  // namespace

bool InstallArena() {
  infer_original = reinterpret_cast<InferFn>(
      Redirect("_ZN7oneflow22IntraJobMemSharingUtil30InferMemBlockId4MemReusedRegstEPNS_4PlanERKSt8functionIFbRKSsS5_EE",
               reinterpret_cast<void*>(&InferMemBlock)));
  generate_original = reinterpret_cast<GenerateFn>(
      Redirect("_ZN7oneflow8PlanUtil43GenMemBlockAndChunkWithVariableOpNames4PlanEPNS_4PlanERKSt13unordered_setISsSt4hashISs"
               "ESt8equal_toISsESaISsEE",
               reinterpret_cast<void*>(&GenerateBlocks)));
  allocate_original = reinterpret_cast<AllocateFn>(
      Redirect("_ZN7oneflow15MemoryAllocator8AllocateERKNS_10MemoryCaseEm", reinterpret_cast<void*>(&Allocate)));
  blob_original = reinterpret_cast<BlobFn>(
      Redirect("_ZN7oneflow4BlobC1ERKNS_10MemoryCaseEPKNS_8BlobDescEPcS7_", reinterpret_cast<void*>(&NewBlob)));
  return blob_original != nullptr && infer_original != nullptr && generate_original != nullptr && allocate_original != nullptr;
}

void BeginGraph(int64_t graph) {
  current = graph;
  current_block = -1;
  report = GraphMemory();
}

GraphMemory EndGraph() {
  std::lock_guard<std::mutex> lock(mutex);
  graphs[current].planned = report.planned;
  current = -1;
  return report;
}

void ReleaseGraph(int64_t graph) {
  std::lock_guard<std::mutex> lock(mutex);
  const auto found = graphs.find(graph);
  if (found == graphs.end()) { return; }
  for (const Mapping& mapping : found->second.mappings) { munmap(mapping.address, mapping.size); }
  graphs.erase(found);
  const size_t needed = RoundUp(NeededLocked(), kPage);
  if (arena != nullptr && needed < arena_writable) {
    madvise(arena + needed, arena_writable - needed, MADV_DONTNEED);
    mprotect(arena + needed, arena_writable - needed, PROT_NONE);
    arena_writable = needed;
  }
}

size_t ArenaBytes() {
  std::lock_guard<std::mutex> lock(mutex);
  return NeededLocked();
}

}  // namespace dfo
