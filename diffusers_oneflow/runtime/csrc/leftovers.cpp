// What a graph's build leaves behind, and nothing reads again.
//
// LazyJobBuildAndInferCtxMgr holds the job of every graph ever built until the process ends, and NNGraph
// its plan: together about 40 MB for a UNet of 200 layers, and half a gigabyte for that of SD 1.5.
// A build that fails also leaves the names of its tensors, by their addresses, which tensors of a later
// build may have, and its graph of ops: both end the process then.
#include "leftovers.h"

#include <malloc.h>
#include <unistd.h>

#include <cstdio>
#include <memory>
#include <unordered_map>
#include <vector>

#include "oneflow/core/job/job_set.pb.h"
#include "oneflow/core/job/plan.pb.h"
#include "plt.h"

namespace dfo {

// Not in the unnamed namespace, where the compiler would know every class derived from it: none.
struct Polymorphic {
  virtual ~Polymorphic();
};
Polymorphic::~Polymorphic() = default;

namespace {

// The members of oneflow::JobBuildAndInferCtxMgr in the cp310 wheel of 0.9.0.
struct JobManager {
  void* vtable;
  oneflow::JobSet jobs;
  bool has_current;
  std::string current;
  std::unordered_map<std::string, std::unique_ptr<Polymorphic>> contexts;
};

// oneflow::Maybe<T*>: the pointer if `ok`.
struct MaybePointer {
  signed char ok;
  void* pointer;
  void* count;
};

extern "C++" MaybePointer JobManagerOrError() asm("_ZN7oneflow28GlobalJobBuildAndInferCtxMgrEv");

extern "C++" void* TensorNames() asm("_ZN7oneflow3one15TensorNameScope6GlobalEv");
extern "C++" void ClearTensorNames(void* names) asm("_ZN7oneflow3one15TensorNameScope5ClearEv");
extern "C++" void DeleteOpGraph() asm("_ZN7oneflow9SingletonINS_7OpGraphEvE6DeleteEv");

// The first member of oneflow::RegstMgr. Nothing ever takes a register's description out of it.
using Registers = std::unordered_map<int64_t, void*>;
extern "C++" void DestroyDescription(void* description) asm("_ZN7oneflow11RtRegstDescD1Ev");

using AddPlanFn = void (*)(Registers*, const oneflow::Plan&, const void*);
AddPlanFn add_plan_original;
Registers* registers = nullptr;
std::unordered_map<std::string, std::vector<int64_t>> registers_of_job;

void AddPlan(Registers* self, const oneflow::Plan& plan, const void* variables) {
  registers = self;
  add_plan_original(self, plan, variables);
}

using RuntimeFn = void (*)(void*, const oneflow::Plan&, const void*);
RuntimeFn runtime_original;
thread_local oneflow::Plan* last_plan = nullptr;

// Each kernel interns its op's conf, for good. Ops alike share one, but not when each names another op to
// wait for (the plan has edges for that by now) or a scope of its graph's own (which only placed it).
void ShareConfs(oneflow::Plan* plan) {
  static int64_t scope = 0;
  for (auto& task : *plan->mutable_task()) {
    for (auto& node : *task.mutable_exec_sequence()->mutable_exec_node()) {
      if (!node.kernel_conf().has_op_attribute()) { continue; }
      auto* conf = node.mutable_kernel_conf()->mutable_op_attribute()->mutable_op_conf();
      conf->clear_ctrl_in_op_name();
      if (!conf->has_scope_symbol_id()) { continue; }
      if (scope == 0) { scope = conf->scope_symbol_id(); }
      conf->set_scope_symbol_id(scope);
    }
  }
}

// Once the runtime is made, every actor has a copy of its task.
void NewRuntime(void* self, const oneflow::Plan& plan, const void* variables) {
  last_plan = const_cast<oneflow::Plan*>(&plan);
  ShareConfs(last_plan);
  runtime_original(self, plan, variables);
}

// Unlike Clear(), which keeps the memory for later.
template <typename Message>
void Empty(Message* message) {
  Message fresh;
  message->Swap(&fresh);
}

// Bytes of the process in memory; 0 where Linux does not say.
size_t Resident() {
  FILE* file = std::fopen("/proc/self/statm", "r");
  if (file == nullptr) { return 0; }
  unsigned long long pages = 0;
  const bool read = std::fscanf(file, "%*u %llu", &pages) == 1;
  std::fclose(file);
  return read ? pages * static_cast<size_t>(sysconf(_SC_PAGESIZE)) : 0;
}

// Gives freed memory back to the system, but only where it is much: a page given back whose neighbours stay
// in use is faulted in again by the next build, elsewhere, and memory creeps up from graph to graph.
// How much that is takes a walk over all free memory, a fifth of the time of a small build: so it is asked now and then only,
// and where the process has grown.
void Trim() {
  constexpr size_t kMuch = size_t{512} << 20;
  static int calls = 0;
  static size_t known = 0;
  if (++calls % 16 != 0 && Resident() < known + kMuch / 8) { return; }
  if (mallinfo2().fordblks > kMuch) { malloc_trim(0); }
  known = Resident();
}

std::vector<int64_t> RegistersOf(const oneflow::Plan& plan) {
  std::vector<int64_t> ids;
  for (const auto& task : plan.task()) {
    for (const auto& item : task.produced_regst_desc()) { ids.push_back(item.second.regst_desc_id()); }
  }
  return ids;
}

void DropJob(const std::string& name) {
  const MaybePointer found = JobManagerOrError();
  if (!found.ok) { return; }
  auto* manager = static_cast<JobManager*>(found.pointer);
  if (manager->has_current && manager->current == name) { return; }
  // The context points into the job: it goes first.
  if (manager->contexts.erase(name) == 0) { return; }
  auto* jobs = manager->jobs.mutable_job();
  for (int i = 0; i < jobs->size(); ++i) {
    // An empty one stays: OneFlow numbers jobs by how many there are.
    if (jobs->Get(i).job_conf().job_name() == name) { return Empty(jobs->Mutable(i)); }
  }
}

}  // namespace

bool InstallLeftovers() {
  runtime_original = reinterpret_cast<RuntimeFn>(
      Redirect("_ZN7oneflow7RuntimeC1ERKNS_4PlanERKSt13unordered_mapISsPNS_2vm15EagerBlobObjectESt4hashISsESt8equal_toISsESa"
               "ISt4pairIKSsS7_EEE",
               reinterpret_cast<void*>(&NewRuntime)));
  add_plan_original = reinterpret_cast<AddPlanFn>(
      Redirect("_ZN7oneflow8RegstMgr7AddPlanERKNS_4PlanERKSt13unordered_mapISsPNS_2vm15EagerBlobObjectESt4hashISsESt8equal_t"
               "oISsESaISt4pairIKSsS7_EEE",
               reinterpret_cast<void*>(&AddPlan)));
  return runtime_original != nullptr && add_plan_original != nullptr;
}

void DropLeftovers(const std::string& job_name) {
  if (runtime_original == nullptr) { return; }
  if (last_plan != nullptr) {
    registers_of_job[job_name] = RegistersOf(*last_plan);
    Empty(last_plan);
  }
  last_plan = nullptr;
  ClearTensorNames(TensorNames());
  DeleteOpGraph();
  DropJob(job_name);
  Trim();
}

void DropRegisters(const std::string& job_name) {
  const auto found = registers_of_job.find(job_name);
  if (found == registers_of_job.end() || registers == nullptr) { return; }
  for (const int64_t id : found->second) {
    const auto entry = registers->find(id);
    if (entry == registers->end()) { continue; }
    DestroyDescription(entry->second);
    operator delete(entry->second);
    registers->erase(entry);
  }
  registers_of_job.erase(found);
  Trim();
}

}  // namespace dfo
