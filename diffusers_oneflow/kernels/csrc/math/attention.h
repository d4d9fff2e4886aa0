// Attention in float32, on processors that have AMX.
#pragma once
#include <cstdint>

namespace dfo::math {

// y[b, i, h, :] = sum over j of softmax over j of (scale * q[b, i, h, :] . k[b, j, h, :] + mask[b, h, i, j]) * v[b, j, h, :]
struct AttentionCall {
  const float *q, *k, *v;  // (b, m or n, heads, d), by strides in elements of batch, token, head
  const float* mask;       // (b, heads, m, n) by strides, or null
  float* y;                // (b, m, heads, d), dense
  int64_t b, m, n, heads, d;
  int64_t q_strides[3], k_strides[3], v_strides[3], mask_strides[4];
  bool causal;  // row i sees the keys j <= i
  float scale;
};

#if defined(__AMX_BF16__)
bool RunAttention(const AttentionCall& call);
#endif

}  // namespace dfo::math
