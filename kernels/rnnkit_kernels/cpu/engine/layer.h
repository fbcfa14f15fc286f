// One direction of one layer as the loops see it: typed pointers, rows of a step, rows before.
#pragma once
#include "activations.h"
#include "interface.h"
#include "product.h"
#include "two.h"

namespace RNNKIT_ISA {

// A meeting of threads: bounded spinning, then the processor is left to others.
struct Meeting {
  int waiting = 0, round = 0;
  void join(int threads, const RnnkitHost& host) {
    if (threads == 1) return;
    const int now = __atomic_load_n(&round, __ATOMIC_RELAXED);
    if (__atomic_add_fetch(&waiting, 1, __ATOMIC_ACQ_REL) == threads) {
      __atomic_store_n(&waiting, 0, __ATOMIC_RELAXED);
      __atomic_store_n(&round, now + 1, __ATOMIC_RELEASE);
      return;
    }
    for (int i = 0; __atomic_load_n(&round, __ATOMIC_ACQUIRE) == now; i++) {
#if defined(__x86_64__)
      _mm_pause();
#endif
      if (i > 2000) host.give_way();
    }
  }
};

// What one thread has to do: its place among those of the same direction of a layer.
struct Place {
  int me, threads;
  bool units;  // whether threads share units, and meet, or rows
  Meeting* meeting;
  const RnnkitHost* host;
  void meet() const {
    if (units) meeting->join(threads, *host);
  }
  // The panels and rows that are this thread's; rows go round, for they are sorted by length.
  int64_t first_panel(int64_t panels) const { return units ? share(panels, me, threads) : 0; }
  int64_t last_panel(int64_t panels) const { return units ? share(panels, me + 1, threads) : panels; }
  int64_t row_step() const { return units ? 1 : threads; }
  int64_t first_row() const { return units ? 0 : me; }
  int64_t rows(int64_t of) const {
    const int64_t first = first_row(), step = row_step();
    return of > first ? (of - first + step - 1) / step : 0;
  }
};

// Memory, handed out piece by piece; without a base it only counts.
struct Room {
  char* base;
  size_t used = 0;
  template <class S> S* take(int64_t count) {
    const size_t at = used;
    used += ((size_t)count * sizeof(S) + 63) / 64 * 64;
    return base ? (S*)(base + at) : nullptr;
  }
};

template <class S, class C> struct Layer {
  RnnkitLayer raw;
  int64_t T, B, D, H, P, N;
  bool reverse, keeps, save, projects, zones;  // keeps what the cell saves; saves its states

  explicit Layer(const RnnkitLayer& given)
      : raw(given), T(given.steps), B(given.batch), D(given.features), H(given.hidden),
        P(given.outputs), N(given.rows), reverse(given.reverse), keeps(given.saved), save(given.save),
        projects(given.weight_hr), zones(given.zoneout) {}

  static constexpr int G = C::gates_at[C::stages], STAGES = C::stages;
  static constexpr int SAVED = C::saved_at[STAGES], COLUMNS = C::columns_at[STAGES];
  static constexpr bool CELL = C::has_cell_state;
  static constexpr int stage_gates(int s) { return C::gates_at[s + 1] - C::gates_at[s]; }

  // Sequences are numbered by falling length; `at` is where one lies in memory.
  const int64_t *sizes, *order, *real;
  int64_t real_rows;  // those that belong to a step

  int64_t count(int64_t t) const { return sizes ? sizes[t] : B; }
  int64_t offset(int64_t t) const { return raw.offsets ? raw.offsets[t] : t * B; }
  int64_t at(int64_t b) const { return order ? order[b] : b; }
  int64_t row(int64_t n) const { return real ? real[n] : n; }

  void plan_rows(Room& room) {
    sizes = raw.lengths ? room.take<int64_t>(T) : raw.batch_sizes;
    order = raw.lengths ? room.take<int64_t>(B) : nullptr;
    const bool spread = (raw.lengths || raw.batch_sizes) && N == T * B;  // may hold rows of no step
    real = spread ? room.take<int64_t>(N) : nullptr;
  }
  // Whether what Python says of the rows can be: a wrong number would be an address.
  bool fits() const {
    for (int64_t b = 0; raw.lengths && b < B; b++)
      if (raw.lengths[b] < 0 || raw.lengths[b] > T) return false;
    int64_t all = 0;
    for (int64_t t = 0; raw.batch_sizes && t < T; t++) {
      const int64_t many = raw.batch_sizes[t], most = t ? raw.batch_sizes[t - 1] : B;
      if (many < 0 || many > most || raw.offsets[t] < 0 || raw.offsets[t] + many > N) return false;
      all += many;
    }
    return !raw.batch_sizes || all == N || N == T * B;
  }
  void arrange() {
    if (raw.lengths) {
      int64_t *counts = (int64_t*)sizes, *sorted = (int64_t*)order;
      memset(counts, 0, T * sizeof(int64_t));
      for (int64_t b = 0; b < B; b++)
        if (raw.lengths[b] > 0) counts[raw.lengths[b] - 1]++;
      for (int64_t t = T - 2; t >= 0; t--) counts[t] += counts[t + 1];  // those longer than t
      int64_t b = 0;
      for (int64_t length = T; length >= 0; length--)
        if (length == 0 || counts[length - 1] != (length < T ? counts[length] : 0))
          for (int64_t i = 0; i < B; i++)
            if (raw.lengths[i] == length) sorted[b++] = i;
    }
    real_rows = N;
    if (!real) return;
    real_rows = 0;
    for (int64_t t = 0; t < T; t++)
      for (int64_t b = 0; b < sizes[t]; b++) ((int64_t*)real)[real_rows++] = offset(t) + at(b);
  }

  const S* x(int64_t row) const { return (const S*)raw.x + row * raw.x_stride; }
  S* y(int64_t row) const { return (S*)raw.y + row * raw.y_stride; }
  S* saved(int64_t row) const { return (S*)raw.saved + row * raw.saved_stride; }
  // States: c', with zoneout the cell's own h and c, and h before its projection.
  S* state(int64_t row, int slot) const { return (S*)raw.states + row * raw.states_stride + slot * H; }
  int unprojected() const { return CELL + (zones ? 1 + CELL : 0); }
  // What the cell gave, before zoneout and projection.
  const S* hidden_after(int64_t row) const {
    return zones ? state(row, CELL) : projects ? state(row, unprojected()) : y(row);
  }
  const S* cell_after(int64_t row) const { return state(row, zones ? CELL + 1 : 0); }
  const S* zoneout(int64_t row, int state) const {
    return (const S*)raw.zoneout + row * raw.zoneout_stride + state * H;
  }

  // The step that was processed before one: sequence b is at row `offset + b`, or starts here.
  struct Before {
    const Layer& layer;
    int64_t offset, count;
    const S* hidden(int64_t b) const {
      const int64_t at = layer.at(b);
      return b < count ? layer.y(offset + at) : (const S*)layer.raw.h0 + at * layer.P;
    }
    const S* cell(int64_t b) const {
      const int64_t at = layer.at(b);
      return b < count ? layer.state(offset + at, 0) : (const S*)layer.raw.c0 + at * layer.H;
    }
  };
  Before step_before(int64_t t) const {
    const int64_t earlier = reverse ? t + 1 : t - 1;
    if (earlier < 0 || earlier >= T) return {*this, 0, 0};
    return {*this, offset(earlier), count(earlier)};
  }
  Lines<const S> x_rows() const { return {(const S*)raw.x, raw.x_stride, real}; }
  // Steps of sequence b.
  int64_t length(int64_t b) const {
    if (!sizes) return T;
    if (raw.lengths) return raw.lengths[at(b)];
    int64_t low = 0, high = T;  // batch sizes fall
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (sizes[middle] > b) low = middle + 1; else high = middle;
    }
    return low;
  }
  // The first or last row that was processed of sequence b, or -1.
  int64_t end_row(int64_t b, bool last) const {
    const int64_t many = length(b);
    return many == 0 ? -1 : offset(last != reverse ? many - 1 : 0) + at(b);
  }
};

INLINE int filled(int64_t units, int64_t from, int lanes) {
  const int64_t left = units - from;
  return left < lanes ? (int)left : lanes;
}

}  // namespace RNNKIT_ISA
