// One vector of numbers, on whatever the processor has: GCC's and Clang's vector extensions, with
// the few instructions that these lack. Compiled once for every instruction set, each time in a
// namespace of its own; nothing of the C++ library is used, or the linker might hand code of the
// widest set to a processor that lacks it.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#define INLINE_MEMBER inline __attribute__((always_inline))
#define INLINE_LAMBDA __attribute__((always_inline))

namespace RNNKIT_ISA {

#if defined(__AVX512F__)
constexpr int BYTES = 64, REGISTERS = 32;
#elif defined(__AVX2__)
constexpr int BYTES = 32, REGISTERS = 16;
#elif defined(__x86_64__)
constexpr int BYTES = 16, REGISTERS = 16;
#else
constexpr int BYTES = 16, REGISTERS = 32;  // NEON
#endif

template <class S> struct Types;
template <> struct Types<float> {
  typedef float Vector __attribute__((vector_size(BYTES)));
  typedef float Loose __attribute__((vector_size(BYTES), aligned(4), may_alias));
  typedef int32_t Integers __attribute__((vector_size(BYTES)));
  typedef int32_t Integer;
};
template <> struct Types<double> {
  typedef double Vector __attribute__((vector_size(BYTES)));
  typedef double Loose __attribute__((vector_size(BYTES), aligned(8), may_alias));
  typedef int64_t Integers __attribute__((vector_size(BYTES)));
  typedef int64_t Integer;
};
template <class S> using Vec = typename Types<S>::Vector;
template <class S> constexpr int LANES = BYTES / sizeof(S);

template <class S> INLINE Vec<S> all(S x) { return x - Vec<S>{}; }
template <class S> INLINE Vec<S> load(const S* p) {
  return *(const typename Types<S>::Loose*)p;
}
template <class S> INLINE void store(S* p, Vec<S> v) { *(typename Types<S>::Loose*)p = v; }

// The first n lanes, zeros beyond; what lies beyond in memory is not touched.
template <class S> INLINE Vec<S> load(const S* p, int n) {
  if (n >= LANES<S>) return load(p);
#if defined(__AVX512F__)
  if constexpr (sizeof(S) == 4)
    return (Vec<S>)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
  else
    return (Vec<S>)_mm512_maskz_loadu_pd((__mmask8)((1u << n) - 1), p);
#else
  Vec<S> v{};
  for (int i = 0; i < n; i++) v[i] = p[i];
  return v;
#endif
}
template <class S> INLINE void store(S* p, Vec<S> v, int n) {
  if (n >= LANES<S>) return store(p, v);
#if defined(__AVX512F__)
  if constexpr (sizeof(S) == 4)
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v);
  else
    _mm512_mask_storeu_pd(p, (__mmask8)((1u << n) - 1), (__m512d)v);
#else
  for (int i = 0; i < n; i++) p[i] = v[i];
#endif
}

template <class S> INLINE S sum(Vec<S> v) {
  S s = v[0];
  for (int i = 1; i < LANES<S>; i++) s += v[i];
  return s;
}
#if defined(__AVX512F__)
template <> INLINE_MEMBER float sum<float>(Vec<float> v) {
  return _mm512_reduce_add_ps((__m512)v);
}
#endif

INLINE void prefetch(const void* p) { __builtin_prefetch(p, 0, 2); }

// Denormal numbers cost a hundred times a product. They count as zero while the engine runs, in its
// threads alone.
struct FlushDenormals {
#if defined(__x86_64__)
  unsigned before = _mm_getcsr();
  FlushDenormals() { _mm_setcsr(before | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(before); }
#elif defined(__aarch64__)
  uint64_t before;
  FlushDenormals() {
    __asm__ volatile("mrs %0, fpcr" : "=r"(before));
    __asm__ volatile("msr fpcr, %0" : : "r"(before | (1ull << 24)));
  }
  ~FlushDenormals() { __asm__ volatile("msr fpcr, %0" : : "r"(before)); }
#else
  FlushDenormals() {}
  ~FlushDenormals() {}
#endif
};

}  // namespace RNNKIT_ISA
