// Where torch's tensors lie: addresses, sizes and strides, read through torch's stable C interface.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace dfo {

// Remembers the layouts of tensors. A `.data = ...` changes a tensor in place, and so is seen.
class Layouts {
 public:
  using Handle = void*;  // an at::Tensor*, owned

  Layouts() = default;
  ~Layouts();
  Layouts(const Layouts&) = delete;

  // Looks the interface up; returns the name of a function that this torch lacks, or "".
  static std::string Load();

  void Add(Handle owned);
  // Remembers the layouts as they are now.
  void Remember();
  // True if one is not what was remembered.
  bool Changed() const;
  // Starts fetching what `Changed` reads: after a graph has run, nothing of it is in the caches.
  void Prefetch() const;

 private:
  // Calls visit(number) for every address, size and stride; stops when it returns false.
  template <typename Visit>
  bool Read(const Visit& visit) const;

  std::vector<Handle> tensors_;
  std::vector<int64_t> known_;
};

}  // namespace dfo
