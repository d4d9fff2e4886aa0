// Where torch's copy of a packed weight comes from once it was dropped (runtime/csrc/dropped.h).
#pragma once

#include "../../runtime/csrc/source.h"
#include "math/product.h"

namespace dfo {

// Of a packed filter, which outlives it; null for a filter that does not lie in memory in order.
Source* FilterSource(const math::Filter& filter, const float* packed);

}  // namespace dfo
