// Two vectors at once. The maths of a step is one long chain of operations, each waiting for the one
// before; two rows beside each other keep the processor busy.
#pragma once
#include "activations.h"

namespace RNNKIT_ISA {

template <class S> struct Two {
  using V = Vec<S>;
  V a, b;
  friend INLINE_MEMBER Two operator+(Two x, Two y) { return {x.a + y.a, x.b + y.b}; }
  friend INLINE_MEMBER Two operator-(Two x, Two y) { return {x.a - y.a, x.b - y.b}; }
  friend INLINE_MEMBER Two operator*(Two x, Two y) { return {x.a * y.a, x.b * y.b}; }
  friend INLINE_MEMBER Two operator/(Two x, Two y) { return {x.a / y.a, x.b / y.b}; }
  friend INLINE_MEMBER Two operator-(Two x) { return {-x.a, -x.b}; }
  INLINE_MEMBER Two& operator+=(Two y) { return *this = *this + y; }
};

// What the printed cells call.
template <class S> INLINE Two<S> sigmoid(Two<S> x) { return {sigmoid_of<S>(x.a), sigmoid_of<S>(x.b)}; }
template <class S> INLINE Two<S> tanh(Two<S> x) { return {tanh_of<S>(x.a), tanh_of<S>(x.b)}; }
template <class S> INLINE Two<S> relu(Two<S> x) { return {relu_of<S>(x.a), relu_of<S>(x.b)}; }
template <class T> struct Number;
template <class S> struct Number<Two<S>> { typedef S Type; };
template <class T> INLINE T number(double x) {
  const auto v = all<typename Number<T>::Type>((typename Number<T>::Type)x);
  return {v, v};
}
#define RNNKIT_COMPARISON(name, op)                                              \
  template <class S> INLINE Two<S> name(Two<S> x, Two<S> y) {                     \
    return {x.a op y.a ? all(S(1)) : Vec<S>{}, x.b op y.b ? all(S(1)) : Vec<S>{}}; \
  }
RNNKIT_COMPARISON(greater, >)
RNNKIT_COMPARISON(greater_equal, >=)
RNNKIT_COMPARISON(less, <)
RNNKIT_COMPARISON(less_equal, <=)
RNNKIT_COMPARISON(equal, ==)
RNNKIT_COMPARISON(unequal, !=)
#undef RNNKIT_COMPARISON

template <class S> INLINE Two<S> load(const S* a, const S* b, int n) { return {load(a, n), load(b, n)}; }
template <class S> INLINE void store(S* a, S* b, Two<S> x, int n) {
  store(a, x.a, n);
  store(b, x.b, n);
}

}  // namespace RNNKIT_ISA
