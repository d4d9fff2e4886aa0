// Convolutions and linear layers in float32: the rows of an image times a matrix of weights.
//
// oneDNN's convolution on channels-last images adds up all of kh * kw * c products in one chain, an error of 4 to 7 times
// that of torch's contiguous convolution (5e-7 to 1.8e-6 against 2e-7 of the result). Here a chain has at most 144
// links, so results are as near to float64 as torch's; weights may be read from torch's own memory as well, and what
// follows is computed before the result leaves the cache. A library of its own table, as dfo_math().
#pragma once
#include <cstdint>

#include "attention.h"
#include "math.h"

namespace dfo::math {

// A convolution's weight (n, c, kh, kw) by its strides in elements, or a linear layer's (n, c), with a kernel of 1 x 1.
struct Filter {
  const float* data;
  int64_t n, c, kh, kw;
  int64_t strides[4];
};

struct Product {
  const float* x;  // (batch, h, w, c), dense; a matrix is one image of one row of pixels
  int64_t batch, h, w, oh, ow;
  int64_t stride[2], padding[2], dilation[2];
  Filter filter;
  const float* packed;    // what Pack made of the filter, or null: then it is packed piece by piece in every call
  const float* bias;      // (n), or null
  const float* residual;  // like y, or null
  Act act;
  bool act_first;  // act(product) + residual; otherwise act(product + residual)
  Act gate;        // y = the first half of the columns * gate(second half); only without act and residual, n a multiple of 64
  float* y;        // (batch, oh, ow, n), or n / 2 with a gate
};

struct Products {
  int64_t (*packed_bytes)(const Filter& filter);
  // Either way without loss: a packed filter has the same numbers.
  void (*pack)(const Filter& filter, float* packed);
  void (*unpack)(const Filter& filter, const float* packed, float* data);
  // Whether its memory is dense, with all taps of a channel side by side, or all channels of a tap.
  bool (*ordered)(const Filter& filter);
  // `count` numbers of an ordered filter's memory, from the `first` on. On the calling thread; nothing is allocated.
  void (*unpack_range)(const Filter& filter, const float* packed, int64_t first, int64_t count, float* out);
  // Whether they are `data`, to the bit.
  bool (*same_range)(const Filter& filter, const float* packed, int64_t first, int64_t count, const float* data);
  // False if there is no memory for its scratch; y is undefined then.
  bool (*run)(const Product& product);
  // Null where the processor has no AMX. False where q, k or v are not finite, or there is no memory; y is undefined then.
  bool (*attention)(const AttentionCall& call);
};

}  // namespace dfo::math

extern "C" const dfo::math::Products* dfo_products();
