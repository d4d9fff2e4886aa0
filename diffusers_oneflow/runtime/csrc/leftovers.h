// Gives back what OneFlow keeps of a graph's build once the graph can run.
#pragma once

#include <string>

namespace dfo {

bool InstallLeftovers();

// To be called after the graph of that job was built, on the thread that built it: frees the job as OneFlow
// inferred it and the plan that its actors were made from. The graph keeps running and can be destroyed.
void DropLeftovers(const std::string& job_name);

// To be called when the graph's C++ object is gone: frees the descriptions of its registers.
void DropRegisters(const std::string& job_name);

}  // namespace dfo
