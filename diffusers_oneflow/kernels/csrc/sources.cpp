#include "sources.h"

#include "kernel.h"

namespace dfo {
namespace {

struct OfFilter : Source {
  math::Filter filter;
  const float* packed;
};

constexpr size_t kFloat = sizeof(float);

void Read(const Source* self, size_t at, size_t bytes, char* out) {
  const auto* s = static_cast<const OfFilter*>(self);
  ProductsMath().unpack_range(s->filter, s->packed, at / kFloat, bytes / kFloat, reinterpret_cast<float*>(out));
}

bool Same(const Source* self, size_t at, size_t bytes, const char* data) {
  const auto* s = static_cast<const OfFilter*>(self);
  return ProductsMath().same_range(s->filter, s->packed, at / kFloat, bytes / kFloat, reinterpret_cast<const float*>(data));
}

void Destroy(Source* self) { delete static_cast<OfFilter*>(self); }

}  // namespace

Source* FilterSource(const math::Filter& filter, const float* packed) {
  // Pages begin and end between two numbers only if the weight does.
  if (reinterpret_cast<uintptr_t>(filter.data) % kFloat != 0 || !ProductsMath().ordered(filter)) { return nullptr; }
  auto* made = new OfFilter;
  static_cast<Source&>(*made) = {Read, Same, Destroy};
  made->filter = filter;
  made->packed = packed;
  return made;
}

}  // namespace dfo
