// Functions of a vector, to about 1 to 2 units in the last place, and right at infinity and for NaN.
#pragma once
#include <cmath>

#include "vec.h"

namespace dfo::math {

inline F Polynomial(F, F p) { return p; }
template <class... Rest>
inline F Polynomial(F x, F p, float next, Rest... rest) {
  return Polynomial(x, Fma(p, x, Set(next)), rest...);
}

template <class Function>
inline F EachLane(F x, const Function& function) {
  for (int i = 0; i < kWidth; ++i) { x[i] = function(x[i]); }
  return x;
}

// exp(r) for |r| <= log(2) / 2.
inline F ExpOfFraction(F r) {
  return Polynomial(r, Set(1.37805939e-3f), 8.37312452e-3f, 4.16695364e-2f, 1.66664720e-1f, 4.99999851e-1f, 1.0f, 1.0f);
}

inline F Exp(F x) {
  // Outside of these bounds the result is 0 or infinite; a NaN goes through.
  x = MinOrB(Set(104.0f), MaxOrB(Set(-104.0f), x));
  const F n = Round(x * 1.44269504f);
  F r = Fma(n, Set(-0x1.62e400p-1f), x);
  r = Fma(n, Set(-0x1.7f7d1cp-20f), r);
  return Scale(ExpOfFraction(r), n);
}

// 1 - erf(t) for t > 0.92: not by way of erf, which is 1 to the last bit from 4 on.
inline F ErfcOfLarge(F t) {
  F r = Polynomial(t, Set(-1.72853470e-5f), 3.83197126e-4f, -3.88396438e-3f, 2.42546219e-2f, -1.06777877e-1f, -6.34846687e-1f,
                   -1.28717512e-1f);
  return Exp(Fma(r, t, -t));
}

inline F ErfOfSmall(F x) {
  const F p = Polynomial(x * x, Set(-5.96761703e-4f), 4.99119423e-3f, -2.67681349e-2f, 1.12819925e-1f, -3.76125336e-1f,
                         1.28379166e-1f);
  return Fma(p, x, x);
}

constexpr float kErfBound = 0.927734375f;

inline F Erf(F x) {
  const F t = Abs(x);
  return t > kErfBound ? CopySign(1.0f - ErfcOfLarge(t), x) : ErfOfSmall(x);
}

inline F Tanh(F x) {
  const F t = Abs(x), z = x * x;
  const F p = Polynomial(z, Set(-5.70498872745e-3f), 2.06390887954e-2f, -5.37397155531e-2f, 1.33314422036e-1f,
                         -3.33332819422e-1f);
  return t > 0.625f ? CopySign(1.0f - 2.0f / (Exp(t + t) + 1.0f), x) : Fma(p * z, x, x);
}

// sin(x) for phase 0, cos(x) for phase 1.
template <int phase>
inline F SinCos(F x) {
  // Beyond, pi / 2 in three parts is not enough. Such arguments, infinity and NaN are rare.
  if (!AllWithin(x, 30000.0f)) {
    return EachLane(x, [](float v) { return phase == 0 ? std::sin(v) : std::cos(v); });
  }
  const F n = Round(x * 0.636619772f);
  F r = Fma(n, Set(-0x1.921fb6p+0f), x);
  r = Fma(n, Set(0x1.777a5cp-25f), r);
  r = Fma(n, Set(0x1.ee59dap-50f), r);
  const F z = r * r;
  const F s = Fma(Polynomial(z, Set(2.86567956e-6f), -1.98559923e-4f, 8.33338592e-3f, -1.66666672e-1f) * z, r, r);
  const F c = Polynomial(z, Set(2.44677067e-5f), -1.38877297e-3f, 4.16666567e-2f, -0.5f, 1.0f);
  const auto quadrant = __builtin_convertvector(n, decltype(n < n)) + phase;
  const F value = (quadrant & 1) != 0 ? c : s;
  return (quadrant & 2) != 0 ? -value : value;
}

inline F Max(F a, F b) { return a != a ? a : MaxOrB(a, b); }
inline F Min(F a, F b) { return a != a ? a : MinOrB(a, b); }

// x * sigmoid(k): NaN where x is infinite and k is -inf, as torch. A division costs less here than an estimate that is refined.
inline F TimesSigmoid(F x, F k) { return x / (1.0f + Exp(-k)); }

template <Act act>
inline F Apply(F x) {
  switch (act) {
    case Act::kNone: return x;
    case Act::kSilu: return TimesSigmoid(x, x);
    case Act::kGelu: {
      const F u = x * 0.707106781f, t = Abs(u);
      const F c = ErfcOfLarge(t);
      return 0.5f * x * (t > kErfBound ? (u < 0.0f ? c : 2.0f - c) : 1.0f + ErfOfSmall(u));
    }
    case Act::kGeluTanh:  // (1 + tanh(u)) / 2 = sigmoid(2 * u)
      return TimesSigmoid(x, x * Fma(Set(2 * 0.7978845608f * 0.044715f), x * x, Set(2 * 0.7978845608f)));
    case Act::kQuickGelu: return TimesSigmoid(x, x * 1.702f);
    case Act::kRelu: return MaxOrB(Set(0.0f), x);
    case Act::kSigmoid: return 1.0f / (1.0f + Exp(-x));
    case Act::kTanh: return Tanh(x);
  }
  return x;
}

template <Act act>
struct Activation {
  F operator()(F x) const { return Apply<act>(x); }
};

// body(f) where f(x) is what `act` makes of a vector.
template <class Body>
inline void WithAct(Act act, const Body& body) {
  switch (act) {
    case Act::kNone: return body(Activation<Act::kNone>());
    case Act::kSilu: return body(Activation<Act::kSilu>());
    case Act::kGelu: return body(Activation<Act::kGelu>());
    case Act::kGeluTanh: return body(Activation<Act::kGeluTanh>());
    case Act::kQuickGelu: return body(Activation<Act::kQuickGelu>());
    case Act::kRelu: return body(Activation<Act::kRelu>());
    case Act::kSigmoid: return body(Activation<Act::kSigmoid>());
    case Act::kTanh: return body(Activation<Act::kTanh>());
  }
}

}  // namespace dfo::math
