// A product of few rows, turned: the filter's rows times the pixels as columns.
#pragma once
#include "product.h"

namespace dfo::math {
#if defined(__AMX_BF16__)

// Whether this is the faster way: the filter lies in torch's memory, where the numbers of an output channel are side by side,
// so that they are split as they are, without being turned; instead x is, and the result.
bool Turns(const Product& p);

// False where a number is not finite or there is no memory; y is undefined then.
bool RunTurned(const Product& p);

#endif
}  // namespace dfo::math
