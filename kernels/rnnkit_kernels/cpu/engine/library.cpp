// The library's door: compiled for any processor of its kind. It finds the engine that the one at
// hand can run, and gives it threads and memory.
#include "interface.h"

#include <atomic>
#include <chrono>
#include <new>
#include <stdlib.h>
#include <string.h>
#include <thread>
#include <vector>
#if !defined(_WIN32)
#include <pthread.h>
#include <sched.h>
#endif
#include RNNKIT_CELLS

#define RNNKIT_DECLARE(isa) namespace isa { extern const RnnkitEngine engine; }
RNNKIT_ISAS(RNNKIT_DECLARE)

namespace {

// torch's own OpenMP, where Python found it: one pool of threads for both, or two would fight for
// the processors. Its threads do not survive a fork; a child starts its own for every call.
typedef void (*Parallel)(void (*)(void*), void*, unsigned, unsigned);
Parallel openmp_parallel = nullptr;
int (*openmp_count)() = nullptr;
int (*openmp_me)() = nullptr;
std::atomic<bool> in_child{false};

struct Job { RnnkitWork work; void* data; };
void openmp_body(void* given) {
  const Job& job = *(Job*)given;
  job.work(job.data, openmp_me(), openmp_count());
}

void run(RnnkitWork work, void* data, int threads) {
  if (threads <= 1) return work(data, 0, 1);
  if (openmp_parallel && !in_child.load(std::memory_order_relaxed)) {
    Job job{work, data};
    return openmp_parallel(openmp_body, &job, (unsigned)threads, 0);
  }
  // Work must start with as many threads as it is told of: first all of them, or none.
  std::atomic<int> go{0};
  std::vector<std::thread> others;
  try {
    for (int i = 1; i < threads; i++)
      others.emplace_back([&, i] {
        int told;
        while ((told = go.load(std::memory_order_acquire)) == 0) std::this_thread::yield();
        if (told > 0) work(data, i, threads);
      });
  } catch (...) {
    go.store(-1, std::memory_order_release);
    for (auto& other : others) other.join();
    return work(data, 0, 1);
  }
  go.store(1, std::memory_order_release);
  work(data, 0, threads);
  for (auto& other : others) other.join();
}

void give_way() { std::this_thread::yield(); }

// One buffer a thread, kept while it is small: fresh memory costs a fault for every page.
constexpr size_t KEPT = size_t(128) << 20;
struct Buffer {
  void* memory = nullptr;
  size_t size = 0;
  void release() {
    free(memory);
    memory = nullptr;
    size = 0;
  }
  ~Buffer() { release(); }
};
thread_local Buffer buffer;

void* room(size_t bytes) {
  if (bytes > PTRDIFF_MAX / 2) return nullptr;
  if (bytes > buffer.size || !buffer.memory) {
    buffer.release();
    const size_t wanted = (bytes + 4096) / 64 * 64;
    if (posix_memalign(&buffer.memory, 64, wanted) != 0) {
      buffer.memory = nullptr;
      return nullptr;
    }
    buffer.size = wanted;
  }
  return buffer.memory;
}

const RnnkitHost host{run, give_way, room};

const RnnkitEngine* find() {
  const char* wanted = getenv("RNNKIT_ISA");
#define RNNKIT_TRY(isa)                                                             \
  if (isa::engine.supported() && (!wanted || !*wanted || !__builtin_strcmp(wanted, isa::engine.name))) \
    return &isa::engine;
  RNNKIT_ISAS(RNNKIT_TRY)
#undef RNNKIT_TRY
  return nullptr;
}
const RnnkitEngine* best() {
  static const RnnkitEngine* const found = find();
  return found;
}

// All threads at once: the same work for each, or each its share of the memory.
struct Exercise {
  const RnnkitEngine& engine;
  int what;
  const char* memory;
  int64_t own, passes;  // own: bytes of each
  std::vector<double> done;

  static void work(void* self, int me, int) {
    auto& that = *(Exercise*)self;
    that.done[me] = that.engine.exercise(that.what, that.memory + me * that.own, that.own, that.passes);
  }
};
double seconds(RnnkitWork work, void* data, int threads) {
  const auto begin = std::chrono::steady_clock::now();
  run(work, data, threads);
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

int finished(int result) {
  if (buffer.size > KEPT) buffer.release();
  return result;
}

}  // namespace

#define RNNKIT_PUBLIC extern "C" __attribute__((visibility("default")))

// What the library was built from, and what it can do.
RNNKIT_PUBLIC const char* rnnkit_sources() { return RNNKIT_SOURCES; }
RNNKIT_PUBLIC const char* rnnkit_cells() {
#define RNNKIT_LIST(name) #name " "
  return RNNKIT_EACH_CELL(RNNKIT_LIST) "";
#undef RNNKIT_LIST
}
RNNKIT_PUBLIC const char* rnnkit_isa() {
  const RnnkitEngine* engine = best();
  return engine ? engine->name : "";
}
RNNKIT_PUBLIC int rnnkit_call_size() { return (int)sizeof(RnnkitCall); }

RNNKIT_PUBLIC void rnnkit_use_openmp(void* parallel, void* count, void* me) {
  openmp_parallel = (Parallel)parallel;
  openmp_count = (int (*)())count;
  openmp_me = (int (*)())me;
#if !defined(_WIN32)
  static std::atomic<bool> once{false};
  if (!once.exchange(true)) pthread_atfork(nullptr, nullptr, [] { in_child.store(true); });
#endif
}

// 0; 1: memory ran out; 2: no such cell; 3: no engine for this processor; 4: rows that can't be.
RNNKIT_PUBLIC int rnnkit_forward(const RnnkitCall* call) {
  const RnnkitEngine* engine = best();
  return engine ? finished(engine->forward(call, &host)) : 3;
}
RNNKIT_PUBLIC int rnnkit_backward(const RnnkitCall* call) {
  const RnnkitEngine* engine = best();
  return engine ? finished(engine->backward(call, &host)) : 3;
}
// exp, sigmoid, tanh and relu, for tests.
RNNKIT_PUBLIC int rnnkit_activation(int which, int size, const void* x, void* y, int64_t n) {
  const RnnkitEngine* engine = best();
  return engine ? engine->activation(which, size, x, y, n) : 3;
}
// For the floor of benchmarks: multiply-adds of 4 or 8 bytes (0 or 1), each two operations, or bytes
// read (2) of so many that the threads share; in a second, of all threads together. 0 where memory
// ran out or there is no engine.
RNNKIT_PUBLIC double rnnkit_rate(int what, int64_t bytes, int threads) {
  constexpr double LONG = 0.004;  // starting threads takes a hundredth of it
  constexpr int REPEATS = 20;     // the best counts: seldom is a processor alone
  const RnnkitEngine* engine = best();
  void* memory = nullptr;
  if (!engine || threads < 1 || bytes < 0 || posix_memalign(&memory, 64, bytes + 64)) return 0;
  memset(memory, 1, bytes + 64);  // pages that nobody wrote would all be the same one
  double most = 0;
  try {
    Exercise all{*engine, what, (char*)memory, bytes / threads / 64 * 64, 1, std::vector<double>(threads)};
    while (seconds(Exercise::work, &all, 1) < LONG) all.passes *= 2;
    for (int i = 0; i < REPEATS; i++) {
      const double taken = seconds(Exercise::work, &all, threads);
      double amount = 0;
      for (const double each : all.done) amount += each;
      if (amount > most * taken) most = amount / taken;
    }
  } catch (...) {  // room for a few numbers
    most = 0;
  }
  free(memory);
  return most;
}
