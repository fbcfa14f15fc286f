// exp, σ, tanh and ReLU of vectors, each within 2 ulp where its value is a normal number. NaN stays
// NaN, infinities give the limits; where a value would be denormal it may be zero.
#pragma once
#include "vector.h"

namespace RNNKIT_ISA {

// a / b for 1 <= b.
INLINE Vec<float> quotient(Vec<float> a, Vec<float> b) {
#if defined(__AVX512F__)
  // 14 bits, and one correction by what is left of a.
  const Vec<float> y = (Vec<float>)_mm512_rcp14_ps((__m512)b), q = a * y;
  return q + (a - q * b) * y;
#else
  return a / b;
#endif
}
INLINE Vec<double> quotient(Vec<double> a, Vec<double> b) { return a / b; }

// Limits that let NaN through: an instruction's answer to it is the second operand.
template <class S> INLINE Vec<S> at_most(Vec<S> x, S high) {
#if defined(__AVX512F__)
  if constexpr (sizeof(S) == 4) return (Vec<S>)_mm512_min_ps((__m512)all(high), (__m512)x);
#elif defined(__AVX2__)
  if constexpr (sizeof(S) == 4) return (Vec<S>)_mm256_min_ps((__m256)all(high), (__m256)x);
#endif
  return x > high ? all(high) : x;
}
template <class S> INLINE Vec<S> at_least(Vec<S> x, S low) {
#if defined(__AVX512F__)
  if constexpr (sizeof(S) == 4) return (Vec<S>)_mm512_max_ps((__m512)all(low), (__m512)x);
#elif defined(__AVX2__)
  if constexpr (sizeof(S) == 4) return (Vec<S>)_mm256_max_ps((__m256)all(low), (__m256)x);
#endif
  return x < low ? all(low) : x;
}

// x = n ln 2 + r with |r| <= ln 2 / 2. Adding 1.5 · 2^(bits of the mantissa) rounds to an integer,
// which then stands in the lowest bits. `power` is 2^n, or n where an instruction takes that.
template <class S> struct Reduced { Vec<S> r, power; };
INLINE Reduced<float> reduced(Vec<float> x) {
#if defined(__AVX512F__)
  Vec<float> n = (Vec<float>)_mm512_roundscale_ps((__m512)(x * 1.44269504f), 8), power = n;
#else
  const Vec<float> shift = all(12582912.0f);
  Vec<float> n = x * 1.44269504f + shift;
  Vec<float> power = (Vec<float>)(((Types<float>::Integers)n + 127) << 23);
  n = n - shift;
#endif
  // ln 2 in two parts, the first with so few digits that its product with n is exact.
  return {(x - n * 0.693359375f) + n * 2.12194440e-4f, power};
}
INLINE Vec<float> times_power(Vec<float> x, Vec<float> power) {
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_scalef_ps((__m512)x, (__m512)power);
#else
  return x * power;
#endif
}
INLINE Reduced<double> reduced(Vec<double> x) {
  const Vec<double> shift = all(6755399441055744.0);
  Vec<double> n = x * 1.4426950408889634 + shift;
  Types<double>::Integers power = ((Types<double>::Integers)n + 1023) << 52;
  n = n - shift;
  return {(x - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10, (Vec<double>)power};
}
INLINE Vec<double> times_power(Vec<double> x, Vec<double> power) { return x * power; }

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
template <class S> constexpr S LARGE = sizeof(S) == 4 ? S(87.3365) : S(708.396);

// e^x = (1 + q) p, with p a power of two: apart, for sums with 1 are rounded once that way.
template <class S> struct Exponential { Vec<S> q, p; };
template <class S> INLINE Exponential<S> exponential(Vec<S> x) {
  const Reduced<S> part = reduced(x);
  return {tail(part.r) * (part.r * part.r) + part.r, times_power(all(S(1)), part.power)};
}
template <class S> INLINE Vec<S> exp_of(Vec<S> x) {
  const Exponential<S> e = exponential<S>(at_least<S>(at_most<S>(x, LARGE<S>), -LARGE<S>));
  Vec<S> y = e.q * e.p + e.p;
  y = x < -LARGE<S> ? Vec<S>{} : y;
  // Between LARGE and what overflows, e^x = e^(x - 2) e^2.
  const Exponential<S> less = exponential<S>(at_least<S>(at_most<S>(x - S(2), LARGE<S>), -LARGE<S>));
  y = x > LARGE<S> ? (less.q * less.p + less.p) * S(7.38905609893065) : y;
  constexpr S over = sizeof(S) == 4 ? S(88.722839) : S(709.782712893384);
  return x > over ? all(S(__builtin_inf())) : y;
}
template <class S> INLINE Vec<S> sigmoid_of(Vec<S> x) {
  const Exponential<S> e = exponential<S>(at_least<S>(at_most<S>(-x, LARGE<S>), -LARGE<S>));
  // 1 + e^-x, with what the sum of 1 and a large power would lose.
  const Vec<S> ends = e.p + S(1), lost = S(1) - (ends - e.p);
  const Vec<S> y = quotient(all(S(1)), (e.q * e.p + lost) + ends);
  return x < -LARGE<S> ? Vec<S>{} : y;
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
template <class S> INLINE Vec<S> tanh_of(Vec<S> x) {
  const Vec<S> size = magnitude(x);
  const Exponential<S> e = exponential<S>(at_most<S>(size + size, S(44)));
  const Vec<S> above = e.q * e.p + (e.p + S(1));
  if constexpr (sizeof(S) == 8) {
    // (e^2x - 1) / (e^2x + 1), without a loss of digits near 0. Far from it the difference of 2 is
    // exact, and one rounding is enough.
    const Vec<S> below = above > S(8) ? above - S(2) : e.q * e.p + (e.p - S(1));
    return with_sign_of<S>(x, quotient(below, above));
  } else {
    const Vec<S> far = S(1) - quotient(all(S(2)), above), square = x * x;
    // Cephes' polynomial near 0, where the difference would lose digits.
    Vec<S> p = all(-5.70498872745e-3f);
    p = p * square + 2.06390887954e-2f;
    p = p * square - 5.37397155531e-2f;
    p = p * square + 1.33314422036e-1f;
    p = p * square - 3.33332819422e-1f;
    return with_sign_of<S>(x, size < S(0.625) ? p * square * size + size : far);
  }
}
template <class S> INLINE Vec<S> relu_of(Vec<S> x) { return x < S(0) ? Vec<S>{} : x; }

}  // namespace RNNKIT_ISA
