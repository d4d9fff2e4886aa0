#include "torch_c.h"

#include <mutex>
#include <stdexcept>
#include <unordered_map>

#include "../../runtime/csrc/torch_symbols.h"

namespace dfo::torch_c {
namespace {

Api api;
std::mutex mutex;
std::unordered_map<int64_t, Handle> slots;

int32_t Dtype(math::Type type) {
  switch (type) {
    case math::Type::kBFloat16: return api.bfloat16();
    case math::Type::kHalf: return api.float16();
    default: return api.float32();
  }
}

}  // namespace

const Api& Get() { return api; }

std::string Load() {
  return FindInTorch({
      {"aoti_torch_create_tensor_from_blob", reinterpret_cast<void**>(&api.create_tensor_from_blob)},
      {"aoti_torch_delete_tensor_object", reinterpret_cast<void**>(&api.delete_tensor_object)},
      {"aoti_torch_get_data_ptr", reinterpret_cast<void**>(&api.get_data_ptr)},
      {"aoti_torch_cpu_mkldnn__convolution_pointwise", reinterpret_cast<void**>(&api.convolution)},
      {"aoti_torch_cpu__linear_pointwise", reinterpret_cast<void**>(&api.linear)},
      {"aoti_torch_cpu__scaled_dot_product_flash_attention_for_cpu", reinterpret_cast<void**>(&api.attention)},
      {"aoti_torch_dtype_float32", reinterpret_cast<void**>(&api.float32)},
      {"aoti_torch_dtype_bfloat16", reinterpret_cast<void**>(&api.bfloat16)},
      {"aoti_torch_dtype_float16", reinterpret_cast<void**>(&api.float16)},
  });
}

void Check(Error error, const char* what) {
  if (error != 0) { throw std::runtime_error(std::string("torch refuses ") + what); }
}

Tensor::Tensor(const void* data, math::Type type, const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides) {
  Check(api.create_tensor_from_blob(const_cast<void*>(data), static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(), 0,
                                    Dtype(type), /*cpu*/ 0, 0, &handle_),
        "a view of memory");
}

Tensor::~Tensor() {
  if (handle_ != nullptr) { api.delete_tensor_object(handle_); }
}

Tensor& Tensor::operator=(Tensor&& other) noexcept {
  std::swap(handle_, other.handle_);
  return *this;
}

Handle* Tensor::out() {
  if (handle_ != nullptr) { api.delete_tensor_object(handle_); }
  handle_ = nullptr;
  return &handle_;
}

const void* Tensor::data() const {
  void* pointer = nullptr;
  Check(api.get_data_ptr(handle_, &pointer), "the address of a result");
  return pointer;
}

void SetSlot(int64_t slot, Handle owned) {
  std::lock_guard<std::mutex> lock(mutex);
  auto& place = slots[slot];
  if (place != nullptr) { api.delete_tensor_object(place); }
  place = owned;
  if (owned == nullptr) { slots.erase(slot); }
}

Handle Slot(int64_t slot) {
  std::lock_guard<std::mutex> lock(mutex);
  const auto found = slots.find(slot);
  if (found == slots.end()) { throw std::runtime_error("the weight was given back"); }
  return found->second;
}

}  // namespace dfo::torch_c
