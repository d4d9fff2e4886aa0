// From one floating-point type to another.
#include <cstring>
#include <type_traits>

#include "kernels.h"
#include "parallel.h"
#include "vec.h"

namespace dfo::math {

void Cast(Type from, Type to, const void* x, void* y, int64_t count) {
  WithType(from, [&](auto source) {
    WithType(to, [&](auto target) {
      using S = decltype(source);
      using T = decltype(target);
      ForRanges(count, count, [&](int64_t begin, int64_t end) {
        const S* in = static_cast<const S*>(x) + begin;
        T* out = static_cast<T*>(y) + begin;
        if constexpr (std::is_same_v<S, T>) {
          std::memcpy(out, in, (end - begin) * sizeof(T));
        } else {
          ForVectors(end - begin, [&](int64_t i, auto lanes) { Store(out + i, Load(in + i, lanes), lanes); });
        }
      });
    });
  });
}

}  // namespace dfo::math
