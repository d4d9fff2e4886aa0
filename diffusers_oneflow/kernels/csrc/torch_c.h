// torch's stable C interface (torch/csrc/inductor/aoti_torch/c): plain C symbols, so that OneFlow's old C++ ABI
// does not matter. They are looked up in the libtorch_cpu that Python has loaded; nothing is linked.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "math/math.h"

namespace dfo::torch_c {

using Handle = void*;  // an at::Tensor*
using Error = int32_t;

struct Api {
  Error (*create_tensor_from_blob)(void*, int64_t, const int64_t*, const int64_t*, int64_t, int32_t, int32_t, int32_t, Handle*);
  Error (*delete_tensor_object)(Handle);
  Error (*get_data_ptr)(Handle, void**);
  Error (*convolution)(Handle x, Handle w, Handle* b, const int64_t* padding, int64_t, const int64_t* stride, int64_t,
                       const int64_t* dilation, int64_t, int64_t groups, const char* attr, const double** scalars, int64_t,
                       const char** algorithm, Handle* result);
  Error (*linear)(Handle x, Handle w, Handle* b, const char* attr, const double** scalars, int64_t, const char** algorithm,
                  Handle* result);
  Error (*attention)(Handle q, Handle k, Handle v, double dropout, int32_t causal, Handle* mask, double* scale, Handle* result,
                     Handle* logsumexp);
  int32_t (*float32)();
  int32_t (*bfloat16)();
  int32_t (*float16)();
};

// Looks the functions up; returns the name of one that this torch lacks, or "".
std::string Load();
const Api& Get();

// Throws std::runtime_error if `error` says that torch refused.
void Check(Error error, const char* what);

// A tensor of torch's, or a view of memory that is not.
class Tensor {
 public:
  Tensor() = default;
  explicit Tensor(Handle owned) : handle_(owned) {}
  // A view of `data`; nothing is copied.
  Tensor(const void* data, math::Type type, const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides);
  ~Tensor();
  Tensor(Tensor&& other) noexcept : handle_(other.handle_) { other.handle_ = nullptr; }
  Tensor& operator=(Tensor&& other) noexcept;
  Tensor(const Tensor&) = delete;

  Handle get() const { return handle_; }
  Handle* out();  // for a function that makes a tensor
  const void* data() const;

 private:
  Handle handle_ = nullptr;
};

// Weights: Python keeps torch tensors, packed or not, in numbered slots, and may replace one between two runs.
void SetSlot(int64_t slot, Handle owned);
Handle Slot(int64_t slot);

}  // namespace dfo::torch_c
