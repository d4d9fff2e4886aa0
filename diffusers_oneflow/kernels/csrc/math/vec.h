// One vector of floats as wide as the instruction set of this build, and how it is read from and written to memory.
//
// Arithmetic and comparisons are GCC's own operators on vectors. The last, short piece of a row is read and written
// by the same code as the others: it takes `lanes`, which is All or First.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "math.h"

namespace dfo::math {

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

struct All {};  // the lanes of a whole vector
struct First {  // the first `count` ones: the others read as 0 and are not written
  int count;
};

#if defined(__AVX512F__)

constexpr int kWidth = 16;
using F = __m512;
using I = __m512i;

inline F Set(float v) { return _mm512_set1_ps(v); }
inline F Fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
// As in the instruction: b where either is NaN.
inline F MinOrB(F a, F b) { return _mm512_min_ps(a, b); }
inline F MaxOrB(F a, F b) { return _mm512_max_ps(a, b); }
inline F Sqrt(F a) { return _mm512_sqrt_ps(a); }
inline F Round(F a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline F Abs(F a) { return _mm512_abs_ps(a); }
inline F CopySign(F a, F sign) { return _mm512_or_ps(Abs(a), _mm512_and_ps(Set(-0.0f), sign)); }
// a * 2^n for an integral n, rounded once.
inline F Scale(F a, F n) { return _mm512_scalef_ps(a, n); }
inline bool AllWithin(F a, float limit) { return _mm512_cmp_ps_mask(Abs(a), Set(limit), _CMP_LE_OQ) == 0xFFFF; }

inline __mmask16 Mask(First lanes) { return static_cast<__mmask16>((1u << lanes.count) - 1); }
inline F Choose(F a, F other, First lanes) { return _mm512_mask_mov_ps(other, Mask(lanes), a); }

using Bits16 = __m256i;  // a vector of a half type
inline Bits16 LoadBits(const void* p, All) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline Bits16 LoadBits(const void* p, First lanes) { return _mm256_maskz_loadu_epi16(Mask(lanes), p); }
inline void StoreBits(void* p, Bits16 bits, All) { _mm256_storeu_si256(static_cast<__m256i*>(p), bits); }
inline void StoreBits(void* p, Bits16 bits, First lanes) { _mm256_mask_storeu_epi16(p, Mask(lanes), bits); }

inline F FromBFloat16(Bits16 bits) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16)); }
inline F FromHalf(Bits16 bits) { return _mm512_cvtph_ps(bits); }
inline Bits16 ToHalf(F a) { return _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
#if defined(__AVX512BF16__)
// The instruction takes numbers below 1.2e-38 for 0.
inline Bits16 ToBFloat16(F a) { return reinterpret_cast<Bits16>(_mm512_cvtneps_pbh(a)); }
#else
inline Bits16 ToBFloat16(F a) {
  const I u = _mm512_castps_si512(a);
  const I odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  I rounded = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
  rounded = _mm512_mask_or_epi32(rounded, _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), u, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
}
#endif

inline F Load(const float* p, All) { return _mm512_loadu_ps(p); }
inline F Load(const float* p, First lanes) { return _mm512_maskz_loadu_ps(Mask(lanes), p); }
inline void Store(float* p, F a, All) { _mm512_storeu_ps(p, a); }
inline void Store(float* p, F a, First lanes) { _mm512_mask_storeu_ps(p, Mask(lanes), a); }

inline float Sum(F a) { return _mm512_reduce_add_ps(a); }
inline float Largest(F a) { return _mm512_reduce_max_ps(a); }

#else  // AVX2, FMA, F16C

constexpr int kWidth = 8;
using F = __m256;
using I = __m256i;

inline F Set(float v) { return _mm256_set1_ps(v); }
inline F Fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
inline F MinOrB(F a, F b) { return _mm256_min_ps(a, b); }
inline F MaxOrB(F a, F b) { return _mm256_max_ps(a, b); }
inline F Sqrt(F a) { return _mm256_sqrt_ps(a); }
inline F Round(F a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline F Abs(F a) { return _mm256_andnot_ps(Set(-0.0f), a); }
inline F CopySign(F a, F sign) { return _mm256_or_ps(Abs(a), _mm256_and_ps(Set(-0.0f), sign)); }
// In two steps, since 2^n itself may be out of range where the result is not.
inline F Scale(F a, F n) {
  const I whole = _mm256_cvtps_epi32(n);
  const I half = _mm256_srai_epi32(whole, 1);
  const auto power = [](I e) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(e, _mm256_set1_epi32(127)), 23)); };
  return a * power(half) * power(_mm256_sub_epi32(whole, half));
}
inline bool AllWithin(F a, float limit) { return _mm256_movemask_ps(_mm256_cmp_ps(Abs(a), Set(limit), _CMP_LE_OQ)) == 0xFF; }

inline I Mask(First lanes) {
  alignas(32) static constexpr int32_t kMasks[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kMasks + 8 - lanes.count));
}
inline F Choose(F a, F other, First lanes) { return _mm256_blendv_ps(other, a, _mm256_castsi256_ps(Mask(lanes))); }

using Bits16 = __m128i;
inline Bits16 LoadBits(const void* p, All) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
inline Bits16 LoadBits(const void* p, First lanes) {
  alignas(16) uint16_t buffer[8] = {};
  std::memcpy(buffer, p, lanes.count * sizeof(uint16_t));
  return _mm_load_si128(reinterpret_cast<const __m128i*>(buffer));
}
inline void StoreBits(void* p, Bits16 bits, All) { _mm_storeu_si128(static_cast<__m128i*>(p), bits); }
inline void StoreBits(void* p, Bits16 bits, First lanes) {
  alignas(16) uint16_t buffer[8];
  _mm_store_si128(reinterpret_cast<__m128i*>(buffer), bits);
  std::memcpy(p, buffer, lanes.count * sizeof(uint16_t));
}

inline F FromBFloat16(Bits16 bits) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16)); }
inline F FromHalf(Bits16 bits) { return _mm256_cvtph_ps(bits); }
inline Bits16 ToHalf(F a) { return _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline Bits16 ToBFloat16(F a) {
  const I u = _mm256_castps_si256(a);
  const I odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  const I rounded = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
  const I quiet = _mm256_or_si256(u, _mm256_set1_epi32(0x400000));
  const F kept = _mm256_blendv_ps(_mm256_castsi256_ps(rounded), _mm256_castsi256_ps(quiet), _mm256_cmp_ps(a, a, _CMP_UNORD_Q));
  const I high = _mm256_srli_epi32(_mm256_castps_si256(kept), 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
}

inline F Load(const float* p, All) { return _mm256_loadu_ps(p); }
inline F Load(const float* p, First lanes) { return _mm256_maskload_ps(p, Mask(lanes)); }
inline void Store(float* p, F a, All) { _mm256_storeu_ps(p, a); }
inline void Store(float* p, F a, First lanes) { _mm256_maskstore_ps(p, Mask(lanes), a); }

inline float Sum(F a) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
inline float Largest(F a) {
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}

#endif

// `other` in the lanes that are not there.
inline F Choose(F a, F, All) { return a; }

template <class Lanes>
inline F Load(const BFloat16* p, Lanes lanes) {
  return FromBFloat16(LoadBits(p, lanes));
}
template <class Lanes>
inline F Load(const Half* p, Lanes lanes) {
  return FromHalf(LoadBits(p, lanes));
}
template <class Lanes>
inline void Store(BFloat16* p, F a, Lanes lanes) {
  StoreBits(p, ToBFloat16(a), lanes);
}
template <class Lanes>
inline void Store(Half* p, F a, Lanes lanes) {
  StoreBits(p, ToHalf(a), lanes);
}

inline float ToFloat(float v) { return v; }
inline float ToFloat(BFloat16 v) {
  const uint32_t bits = static_cast<uint32_t>(v.bits) << 16;
  float f;
  std::memcpy(&f, &bits, sizeof(f));
  return f;
}
inline float ToFloat(Half v) { return _cvtsh_ss(v.bits); }

// body(i, lanes) for each vector of a row of `count` elements.
template <class Body>
inline void ForVectors(int64_t count, const Body& body) {
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) { body(i, All{}); }
  if (i < count) { body(i, First{static_cast<int>(count - i)}); }
}

// The sum over a row of what term(i, lanes) gives: 4 sums at a time, and doubles for what these have added up to, so that
// the error does not grow with the row.
template <class Term>
inline double SumOf(int64_t count, const Term& term) {
  constexpr int64_t kBlock = 4096;
  double total = 0;
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t end = begin + kBlock < count ? begin + kBlock : count;
    F s0 = Set(0), s1 = s0, s2 = s0, s3 = s0;
    int64_t i = begin;
    for (; i + 4 * kWidth <= end; i += 4 * kWidth) {
      s0 += term(i, All{});
      s1 += term(i + kWidth, All{});
      s2 += term(i + 2 * kWidth, All{});
      s3 += term(i + 3 * kWidth, All{});
    }
    for (; i + kWidth <= end; i += kWidth) { s0 += term(i, All{}); }
    if (i < end) {
      const First lanes{static_cast<int>(end - i)};
      s1 += Choose(term(i, lanes), Set(0), lanes);
    }
    total += Sum((s0 + s1) + (s2 + s3));
  }
  return total;
}

// body(float{}), body(BFloat16{}) or body(Half{}).
template <class Body>
inline void WithType(Type type, const Body& body) {
  switch (type) {
    case Type::kFloat: return body(float{});
    case Type::kBFloat16: return body(BFloat16{});
    case Type::kHalf: return body(Half{});
  }
}

}  // namespace dfo::math
