// Memory of nn.Graph on the CPU: one arena for the activations of all graphs, and what else a graph
// allocates freed with it. OneFlow 0.9.0 gives each activation memory of its own and frees none.
#pragma once
#include <cstddef>
#include <cstdint>

namespace dfo {

struct GraphMemory {
  size_t planned = 0;    // bytes of the arena that the graph uses
  size_t unplanned = 0;  // bytes the same activations take without reuse
  size_t owned = 0;      // bytes allocated for this graph alone (inputs, outputs, ticks)
  bool linear = false;   // the ops run in one order, so reuse was possible
};

// Redirects OneFlow's planning and allocation; false where one of the calls is missing.
bool InstallArena();

// Between BeginGraph and EndGraph this thread compiles one graph: what OneFlow allocates is its own.
void BeginGraph(int64_t graph);
GraphMemory EndGraph();

// Frees what `graph` owns, and the part of the arena that no other graph needs.
// The graph's C++ object must be gone.
void ReleaseGraph(int64_t graph);

// Bytes of the arena that the graphs alive need.
size_t ArenaBytes();

}  // namespace dfo
