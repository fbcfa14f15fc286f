// exp, σ, tanh and ReLU of vectors, each within 2 ulp where its value is a normal number. NaN stays
// NaN, infinities give the limits; where a value would be denormal it may be zero.
#pragma once
#include "vector.h"

namespace RNNKIT_ISA {

// 1 / d for 1 <= d.
INLINE Vec<float> reciprocal(Vec<float> d) {
#if defined(__AVX512F__)
  Vec<float> y = (Vec<float>)_mm512_rcp14_ps((__m512)d);
  return y + y * (1.0f - d * y);
#else
  return 1.0f / d;
#endif
}
INLINE Vec<double> reciprocal(Vec<double> d) { return 1.0 / d; }

template <class S> INLINE Vec<S> limited(Vec<S> x, S low, S high) {  // NaN fails both questions
  x = x > high ? all(high) : x;
  return x < low ? all(low) : x;
}

// x = n ln 2 + r with |r| <= ln 2 / 2. Adding 1.5 · 2^(bits of the mantissa) rounds to an integer,
// which then stands in the lowest bits. `scale` is 2^n.
template <class S> struct Reduced { Vec<S> r, scale; };
INLINE Reduced<float> reduced(Vec<float> x) {
  const Vec<float> shift = all(12582912.0f);
  Vec<float> n = x * 1.44269504f + shift;
  Types<float>::Integers scale = ((Types<float>::Integers)n + 127) << 23;
  n = n - shift;
  // ln 2 in two parts, the first with so few digits that its product with n is exact.
  return {(x - n * 0.693359375f) + n * 2.12194440e-4f, (Vec<float>)scale};
}
INLINE Reduced<double> reduced(Vec<double> x) {
  const Vec<double> shift = all(6755399441055744.0);
  Vec<double> n = x * 1.4426950408889634 + shift;
  Types<double>::Integers scale = ((Types<double>::Integers)n + 1023) << 52;
  n = n - shift;
  return {(x - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10, (Vec<double>)scale};
}

// (e^r - 1 - r) / r^2: for float the polynomial of Cephes, for double Taylor's, whose next term is
// below 2^-57.
INLINE Vec<float> tail(Vec<float> r) {
  Vec<float> p = all(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  return p * r + 5.0000001201e-1f;
}
INLINE Vec<double> tail(Vec<double> r) {
  Vec<double> p = all(1.0 / 6227020800.0);
  p = p * r + 1.0 / 479001600.0;
  p = p * r + 1.0 / 39916800.0;
  p = p * r + 1.0 / 3628800.0;
  p = p * r + 1.0 / 362880.0;
  p = p * r + 1.0 / 40320.0;
  p = p * r + 1.0 / 5040.0;
  p = p * r + 1.0 / 720.0;
  p = p * r + 1.0 / 120.0;
  p = p * r + 1.0 / 24.0;
  p = p * r + 1.0 / 6.0;
  return p * r + 0.5;
}

// The largest and smallest x for which both e^x and its reciprocal are normal numbers.
template <class S> constexpr S LARGE = sizeof(S) == 4 ? S(88.0) : S(709.0);
template <class S> constexpr S SMALL = sizeof(S) == 4 ? S(-87.0) : S(-708.0);

template <class S> INLINE Vec<S> bounded_exp(Vec<S> x) {  // SMALL <= x <= LARGE
  Reduced<S> part = reduced(x);
  return (tail(part.r) * (part.r * part.r) + part.r + S(1)) * part.scale;
}
template <class S> INLINE Vec<S> exp_of(Vec<S> x) {
  Vec<S> y = bounded_exp<S>(limited<S>(x, SMALL<S>, LARGE<S>));
  y = x < SMALL<S> ? Vec<S>{} : y;
  constexpr S over = sizeof(S) == 4 ? S(88.72283) : S(709.782712893384);
  // Between LARGE and what overflows, e^x = e^(x - 1) e.
  Vec<S> near = bounded_exp<S>(limited<S>(x - S(1), SMALL<S>, LARGE<S>)) * S(2.718281828459045);
  y = x > LARGE<S> ? near : y;
  return x > over ? all(S(__builtin_inf())) : y;
}
template <class S> INLINE Vec<S> sigmoid_of(Vec<S> x) {
  return reciprocal(S(1) + bounded_exp<S>(limited<S>(-x, SMALL<S>, LARGE<S>)));
}
INLINE Vec<float> magnitude(Vec<float> x) {
  return (Vec<float>)((Types<float>::Integers)x & 0x7fffffff);
}
INLINE Vec<double> magnitude(Vec<double> x) {
  return (Vec<double>)((Types<double>::Integers)x & 0x7fffffffffffffffLL);
}
template <class S> INLINE Vec<S> with_sign_of(Vec<S> x, Vec<S> positive) {
  using I = typename Types<S>::Integers;
  return (Vec<S>)((I)positive | ((I)x ^ (I)magnitude(x)));
}
INLINE Vec<float> tanh_of(Vec<float> x) {
  Vec<float> size = magnitude(x), square = x * x;
  Vec<float> e = bounded_exp<float>(limited<float>(size + size, 0.0f, 44.0f));
  Vec<float> far = with_sign_of<float>(x, 1.0f - 2.0f * reciprocal(e + 1.0f));
  // Cephes' polynomial near 0, where the difference above would lose digits.
  Vec<float> p = all(-5.70498872745e-3f);
  p = p * square + 2.06390887954e-2f;
  p = p * square - 5.37397155531e-2f;
  p = p * square + 1.33314422036e-1f;
  p = p * square - 3.33332819422e-1f;
  return size < 0.625f ? p * square * x + x : far;
}
INLINE Vec<double> tanh_of(Vec<double> x) {
  Vec<double> size = magnitude(x);
  Reduced<double> part = reduced(limited<double>(size + size, 0.0, 44.0));
  // e^2x - 1 without its loss of digits near 0.
  Vec<double> less_one = tail(part.r) * (part.r * part.r) + part.r;
  less_one = less_one * part.scale + (part.scale - 1.0);
  return with_sign_of<double>(x, less_one / (less_one + 2.0));
}
template <class S> INLINE Vec<S> relu_of(Vec<S> x) { return x < S(0) ? Vec<S>{} : x; }

}  // namespace RNNKIT_ISA
