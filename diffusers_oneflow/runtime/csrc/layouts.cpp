#include "layouts.h"

#include "torch_symbols.h"

namespace dfo {
namespace {

struct {
  int32_t (*delete_tensor_object)(void*);
  int32_t (*get_data_ptr)(void*, void**);
  int32_t (*get_dim)(void*, int64_t*);
  int32_t (*get_sizes)(void*, int64_t**);
  int32_t (*get_strides)(void*, int64_t**);
} api;

constexpr size_t kLine = 64;
// A tensor's own fields lie in its first lines, and its storage's address is one of its first words.
constexpr size_t kTensorBytes = 3 * kLine;
constexpr size_t kWords = 4;

// An at::Tensor is one pointer to what it is.
const char* Implementation(Layouts::Handle tensor) { return *static_cast<const char* const*>(tensor); }

}  // namespace

std::string Layouts::Load() {
  if (api.delete_tensor_object != nullptr) { return ""; }
  return FindInTorch({
      {"aoti_torch_get_data_ptr", reinterpret_cast<void**>(&api.get_data_ptr)},
      {"aoti_torch_get_dim", reinterpret_cast<void**>(&api.get_dim)},
      {"aoti_torch_get_sizes", reinterpret_cast<void**>(&api.get_sizes)},
      {"aoti_torch_get_strides", reinterpret_cast<void**>(&api.get_strides)},
      {"aoti_torch_delete_tensor_object", reinterpret_cast<void**>(&api.delete_tensor_object)},
  });
}

Layouts::~Layouts() {
  for (Handle tensor : tensors_) { api.delete_tensor_object(tensor); }
}

void Layouts::Add(Handle owned) { tensors_.push_back(owned); }

void Layouts::Remember() {
  known_.clear();
  Read([this](int64_t number) {
    known_.push_back(number);
    return true;
  });
}

bool Layouts::Changed() const {
  size_t next = 0;
  const bool same = Read([this, &next](int64_t number) { return next < known_.size() && known_[next++] == number; });
  return !same || next != known_.size();
}

void Layouts::Prefetch() const {
  for (Handle tensor : tensors_) {
    for (size_t i = 0; i < kTensorBytes; i += kLine) { __builtin_prefetch(Implementation(tensor) + i); }
  }
  for (Handle tensor : tensors_) {
    // To fetch what is no address does nothing.
    const auto* words = reinterpret_cast<const char* const*>(Implementation(tensor));
    for (size_t i = 1; i < kWords; ++i) { __builtin_prefetch(words[i]); }
  }
}

template <typename Visit>
bool Layouts::Read(const Visit& visit) const {
  for (Handle tensor : tensors_) {
    void* data = nullptr;
    int64_t dim = 0, *sizes = nullptr, *strides = nullptr;
    // What torch does not tell (of a tensor without storage) stays 0.
    api.get_data_ptr(tensor, &data);
    if (api.get_dim(tensor, &dim) != 0 || api.get_sizes(tensor, &sizes) != 0 || api.get_strides(tensor, &strides) != 0) {
      dim = 0;
    }
    if (!visit(reinterpret_cast<int64_t>(data)) || !visit(dim)) { return false; }
    for (int64_t i = 0; i < dim; ++i) {
      if (!visit(sizes[i]) || !visit(strides[i])) { return false; }
    }
  }
  return true;
}

}  // namespace dfo
