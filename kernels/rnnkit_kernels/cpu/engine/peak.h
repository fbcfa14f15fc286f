// What a processor gives at best, for the floor of benchmarks: multiply-adds in registers, and
// reading memory. `library.cpp` has the threads and the clock.
#pragma once
#include "vector.h"

namespace RNNKIT_ISA {

// More sums side by side than a multiply-add takes cycles times those that begin in one: none waits
// for another. With their two factors they fit 16 registers.
constexpr int SUMS = 12, ROUNDS = 1024;

// Operations done, each multiply-add two; all sums stay 1.
template <class S> static double multiply(int64_t passes, volatile double* kept) {
  const Vec<S> half = all((S)kept[0]);
  Vec<S> sums[SUMS];
  for (int i = 0; i < SUMS; i++) sums[i] = half + half;
  for (int64_t pass = 0; pass < passes * ROUNDS; pass++) {
#pragma GCC unroll 12
    for (int i = 0; i < SUMS; i++) sums[i] = sums[i] * half + half;
  }
  for (int i = 0; i < SUMS; i++) kept[1] = kept[1] + sum<S>(sums[i]);
  return 2.0 * SUMS * LANES<S> * ROUNDS * (double)passes;
}

// Bytes read, from the front again in every pass.
static double read(const char* memory, int64_t bytes, int64_t passes, volatile double* kept) {
  constexpr int MANY = 8, BLOCK = MANY * BYTES;
  Vec<float> sums[MANY] = {};
  const int64_t blocks = bytes / BLOCK;
  for (int64_t pass = 0; pass < passes; pass++) {
    for (int64_t block = 0; block < blocks; block++) {
      const float* at = (const float*)(memory + block * BLOCK);
#pragma GCC unroll 8
      for (int i = 0; i < MANY; i++) sums[i] += load(at + i * LANES<float>);
    }
    __asm__ volatile("" : : : "memory");  // what was read may have changed
  }
  for (int i = 0; i < MANY; i++) kept[1] = kept[1] + sum<float>(sums[i]);
  return (double)BLOCK * (double)blocks * (double)passes;
}

// What `rnnkit_rate` asks of each thread.
static double exercise(int what, const void* memory, int64_t bytes, int64_t passes) {
  volatile double kept[2] = {0.5, 0};  // the compiler can neither know it nor leave it out
  if (what == 0) return multiply<float>(passes, kept);
  if (what == 1) return multiply<double>(passes, kept);
  return read((const char*)memory, bytes, passes, kept);
}

}  // namespace RNNKIT_ISA
