#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace dfo {

// Adds a node to the graph that OneFlow is building.
//
// `tuple` is the address of a oneflow::one::TensorTuple with the inputs; the output is put behind them.
// `dtype` is a number of OneFlow's DataType. Returns "" or what OneFlow says against it.
std::string AddNode(const std::string& kind, void* tuple, const std::vector<int64_t>& shape, int64_t dtype,
                    const std::vector<int64_t>& params);

}  // namespace dfo
