// The engine for one instruction set, RNNKIT_ISA; the compiler's options decide what it is.
#define RNNKIT_NAME2(x) #x
#define RNNKIT_NAME(x) RNNKIT_NAME2(x)
#include "backward.h"
#include "forward.h"
#include "peak.h"
#include RNNKIT_CELLS

namespace RNNKIT_ISA {

constexpr int MOST_THREADS = 64;

// Directions that have a thread or more each run side by side, the threads shared among them;
// else one after another.
struct Crew {
  int members, threads;
  bool together() const { return members > 1 && threads >= members && threads % members == 0; }
  int each() const { return together() ? threads / members : threads; }
};

// A pass over all directions of a layer, by one thread of several: what comes before its loop, the
// loop, what ends a direction, and what takes the threads of all.
template <class Pass> struct Run {
  const RnnkitCall& call;
  const RnnkitHost& host;
  Pass* layer;
  Meeting all, own[2];

  static void work(void* self, int me, int count) {
    auto& that = *(Run*)self;
    FlushDenormals flush;
    const int members = (int)that.call.members;
    for (int m = 0; m < members; m++) {
      that.layer[m].pack(me, count);
      that.layer[m].start(me, count);
    }
    that.all.join(count, that.host);
    if constexpr (Pass::PRODUCT_FIRST) {
      for (int m = 0; m < members; m++) that.layer[m].input_product(me, count);
      that.all.join(count, that.host);
    }
    const Crew crew{members, count};
    for (int m = 0; m < members; m++) {
      const bool together = crew.together();
      if (together && me / crew.each() != m) continue;
      const Place place{together ? me % crew.each() : me, crew.each(), that.call.split == 1, &that.own[m], &that.host};
      that.layer[m].loop(place);
      that.layer[m].finish(place.me, place.threads);
    }
    if constexpr (!Pass::PRODUCT_FIRST) {
      that.all.join(count, that.host);
      for (int m = 0; m < members; m++) that.layer[m].gradients(me, count, that.call.dx, m > 0);
    }
  }
};

static int threads_of(const RnnkitCall& call) {
  const int64_t asked = call.threads < MOST_THREADS ? call.threads : MOST_THREADS;
  return asked < 1 ? 1 : (int)asked;
}

template <class Pass> int run(const RnnkitCall& call, const RnnkitHost& host) {
  Pass layers[2] = {Pass(call.layer[0]), Pass(call.layer[call.members - 1])};
  const int threads = threads_of(call);
  Room sizes{nullptr};
  for (int m = 0; m < call.members; m++) {
    if (!layers[m].fits()) return 4;
    layers[m].plan(sizes, threads, call.dx);
  }
  Room room{(char*)host.room(sizes.used)};
  if (!room.base) return 1;
  for (int m = 0; m < call.members; m++) {
    layers[m].plan(room, threads, call.dx);
    layers[m].arrange();
  }
  Run<Pass> work{call, host, layers, {}, {}};
  host.run(&Run<Pass>::work, &work, threads);
  return 0;
}

static int forward(const RnnkitCall* call, const RnnkitHost* host) {
  int64_t index = 0;
#define RNNKIT_CALL(name) \
  if (call->cell == index++) return call->size == 8 ? run<Forward<double, name>>(*call, *host) : run<Forward<float, name>>(*call, *host);
  RNNKIT_EACH_CELL(RNNKIT_CALL)
#undef RNNKIT_CALL
  return 2;
}
static int backward(const RnnkitCall* call, const RnnkitHost* host) {
  int64_t index = 0;
#define RNNKIT_CALL(name) \
  if (call->cell == index++) return call->size == 8 ? run<Backward<double, name>>(*call, *host) : run<Backward<float, name>>(*call, *host);
  RNNKIT_EACH_CELL(RNNKIT_CALL)
#undef RNNKIT_CALL
  return 2;
}

template <class S> static void activate(int which, const S* x, S* y, int64_t n) {
  for (int64_t i = 0; i < n; i += LANES<S>) {
    const int many = filled(n, i, LANES<S>);
    const Vec<S> v = load(x + i, many);
    store(y + i, which == 0 ? exp_of<S>(v) : which == 1 ? sigmoid_of<S>(v) : which == 2 ? tanh_of<S>(v) : relu_of<S>(v), many);
  }
}
static int activation(int which, int size, const void* x, void* y, int64_t n) {
  if (size == 8) activate<double>(which, (const double*)x, (double*)y, n);
  else activate<float>(which, (const float*)x, (float*)y, n);
  return 0;
}
static int supported() {
#if defined(__AVX512F__)
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("fma");
#elif defined(__AVX2__)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
  return 1;
#endif
}

extern const RnnkitEngine engine;
const RnnkitEngine engine = {RNNKIT_NAME(RNNKIT_ISA), supported, forward, backward, activation,
                             exercise};

}  // namespace RNNKIT_ISA
