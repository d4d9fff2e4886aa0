#pragma once

#include <string>
#include <vector>

namespace dfo {

// Registers all ops and kernels with OneFlow, before its first op runs: later it keeps pointers that this
// would invalidate. Returns their names; none if OneFlow refused.
std::vector<std::string> RegisterKernels();

}  // namespace dfo
