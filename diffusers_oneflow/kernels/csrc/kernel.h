// What a kernel of the pack is, apart from OneFlow: made once per node of a graph, run in every call.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "math/math.h"
#include "math/product.h"

namespace dfo {

using math::Act;
using math::Type;

// A node's parameters: a row of int64 numbers, read in the order in which Python wrote them.
class Params {
 public:
  explicit Params(std::vector<int64_t> values) : values_(std::move(values)) {}

  int64_t Int() {
    if (next_ >= values_.size()) { throw std::invalid_argument("a node has too few parameters"); }
    return values_[next_++];
  }
  // Python writes a float as the bits of its double.
  double Float() {
    const int64_t bits = Int();
    double value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
  }
  math::Type Type() { return static_cast<math::Type>(Int()); }
  math::Act Act() { return static_cast<math::Act>(Int()); }
  // A length, then so many numbers.
  std::vector<int64_t> Ints() {
    std::vector<int64_t> list(static_cast<size_t>(Int()));
    for (int64_t& value : list) { value = Int(); }
    return list;
  }

 private:
  std::vector<int64_t> values_;
  size_t next_ = 0;
};

struct Buffers {
  std::vector<const void*> in;
  void* out;
};

class Kernel {
 public:
  virtual ~Kernel() = default;
  virtual void Run(const Buffers& buffers) = 0;
};

using MakeKernel = std::unique_ptr<Kernel> (*)(Params);

struct KernelKind {
  const char* name;  // of OneFlow's op: "dfo_linear"
  MakeKernel make;
};

template <typename T>
std::unique_ptr<Kernel> Make(Params params) {
  return std::make_unique<T>(std::move(params));
}

// The kernels of each file.
std::vector<KernelKind> TorchKernels();
std::vector<KernelKind> ProductKernels();
std::vector<KernelKind> MathKernels();

// The functions for this processor; set when the pack is loaded.
const math::Table& Math();
const math::Products& ProductsMath();
void SetMath(const math::Table* table, const math::Products* products);

inline int64_t SizeOf(math::Type type) { return type == math::Type::kFloat ? 4 : 2; }

}  // namespace dfo
