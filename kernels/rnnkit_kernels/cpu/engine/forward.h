// Forward through time.
#pragma once
#include "layer.h"

namespace RNNKIT_ISA {

template <class S, class C> struct Forward : Layer<S, C> {
  using Base = Layer<S, C>;
  using Base::raw, Base::T, Base::B, Base::D, Base::H, Base::P, Base::N, Base::G, Base::STAGES;
  using Base::CELL, Base::keeps, Base::save, Base::projects, Base::zones, Base::reverse;
  using V = Vec<S>;
  using T2 = Two<S>;
  static constexpr int L = LANES<S>;
  static constexpr bool PRODUCT_FIRST = true;
  static constexpr int FEW = 12;  // packing costs what so many rows do

  bool few;    // rows in all: dot products with the weights as they lie
  bool fused;    // the input product is made step by step, with W_ih beside W_hh in the cache
  S *weight_ih[C::stages], *weight_hh[C::stages], *weight_hr;  // packed
  S* gates;                                                    // W_ih x + b_ih, unless fused
  int64_t gates_stride;
  S* operand;    // of the stage that comes, (B, H)
  S* kept_rows;  // what it reads of the stages before, (B, S, H), where that is not saved
  S* wide_hidden;  // h before its projection, (B, H), where states don't keep it
  S* cell;     // c, (B, H)

  explicit Forward(const RnnkitLayer& given) : Base(given) {}

  Panels input_panels(int s) const { return panels<S>(H, D, Base::stage_gates(s)); }
  Panels hidden_panels(int s) const { return panels<S>(H, s == 0 ? P : H, Base::stage_gates(s)); }
  Panels projection_panels() const { return panels<S>(P, H, 1); }

  void plan(Room& room, int, bool) {
    Base::plan_rows(room);
    few = N < FEW;
    // Both weights are read at every step: that must not drive each other out of the second cache.
    // Many rows make up for it.
    fused = !few && B > 1 && REGISTERS == 32 && (B >= 32 || G * (D + P) * H * (int64_t)sizeof(S) < 1500000);
    for (int s = 0; s < STAGES; s++) {
      weight_ih[s] = !few ? room.take<S>(input_panels(s).size()) : nullptr;
      weight_hh[s] = few ? nullptr : room.take<S>(hidden_panels(s).size());
    }
    weight_hr = projects && !few ? room.take<S>(projection_panels().size()) : nullptr;
    gates = nullptr;
    if (!fused) {
      // Where they are overwritten anyway: what is saved, or y, takes their place row by row.
      if (keeps && C::gates_fit_saved) {
        gates = (S*)raw.saved;
        gates_stride = raw.saved_stride;
      } else {
        gates = room.take<S>(N * G * H);
        gates_stride = G * H;
      }
    }
    operand = STAGES > 1 ? room.take<S>(B * H) : nullptr;
    kept_rows = STAGES > 1 && !keeps ? room.take<S>(B * Base::SAVED * H) : nullptr;
    wide_hidden = projects && !save ? room.take<S>(B * H) : nullptr;
    cell = (S*)raw.c_n;
  }

  // ---- before the loop
  void pack(int me, int threads) {
    int64_t job = 0;
    for (int s = 0; s < STAGES; s++) {
      const int64_t gate = C::gates_at[s];
      const Panels in = input_panels(s), hidden = hidden_panels(s);
      for (int64_t p = 0; !few && p < in.count; p++)
        if (job++ % threads == me)
          pack_rows<S>((const S*)raw.weight_ih + gate * H * D, in, p, weight_ih[s]);
      for (int64_t p = 0; !few && p < hidden.count; p++)
        if (job++ % threads == me)
          pack_rows<S>((const S*)raw.weight_hh + gate * H * P, hidden, p, weight_hh[s]);
    }
    if (weight_hr)
      for (int64_t p = 0; p < projection_panels().count; p++)
        if (job++ % threads == me) pack_rows<S>((const S*)raw.weight_hr, projection_panels(), p, weight_hr);
  }

  void input_product(int me, int threads) {
    if (fused) return;
    const int64_t rows = Base::real_rows, first = share(rows, me, threads), last = share(rows, me + 1, threads);
    if (few) {
      const int64_t begin = share(G * H, me, threads), end = share(G * H, me + 1, threads);
      for (int64_t m = begin; m < end; m++) {
        const S* w = (const S*)raw.weight_ih + m * D;
        const S bias = raw.bias_ih ? ((const S*)raw.bias_ih)[m] : S(0);
        for (int64_t n = 0; n < rows; n += MOST_DOTS) {
          const int some = rows - n < MOST_DOTS ? (int)(rows - n) : MOST_DOTS;
          const S* a[MOST_DOTS];
          for (int r = 0; r < some; r++) a[r] = Base::x(Base::row(n + r));
          dots<S>(some, w, a, D, [&](int r, S value) { gates[Base::row(n + r) * gates_stride + m] = value + bias; });
        }
      }
      return;
    }
    for (int s = 0; s < STAGES; s++) {
      const int64_t gate = C::gates_at[s];
      long_product<S>(Base::x_rows(), weight_ih[s], input_panels(s),
                      raw.bias_ih ? (const S*)raw.bias_ih + gate * H : nullptr,
                      {gates + gate * H, gates_stride, Base::real}, first, last, false);
    }
  }

  // ---- a tile of a step
  struct Rows {
    int count;
    int64_t b[MOST_ROWS], row[MOST_ROWS];
    const S* before[MOST_ROWS];  // h of the step before
  };

  // A vector of units of two rows: the cell, zoneout, and all that is kept. The second may be the
  // first once more.
  template <int s> void units(const Rows& rows, int q, int r, int64_t u, const T2* x, const T2* h) const {
    const int n = filled(H, u, L);
    const int64_t row_q = rows.row[q], row_r = rows.row[r], q_at = rows.b[q] * H + u, r_at = rows.b[r] * H + u;
    T2 state[2], result[2], kept[Base::SAVED + 1], vectors[C::weights + 1];
    if (!projects) state[0] = load(rows.before[q] + u, rows.before[r] + u, n);
    if (CELL) state[1] = load(cell + q_at, cell + r_at, n);
    constexpr int old = C::saved_at[s], now = C::saved_at[s + 1];
    for (int i = 0; i < old; i++) kept[i] = load(kept_at(row_q, rows.b[q], i) + u, kept_at(row_r, rows.b[r], i) + u, n);
    for (int i = 0; i < C::weights; i++) {
      const V vector = load((const S*)raw.cell_weights + i * H + u, n);
      vectors[i] = {vector, vector};
    }
    C::template forward<s, T2>(x, h, kept, state, vectors, kept + old, result);
    if (keeps || s + 1 < STAGES)
      for (int i = old; i < now; i++) store(kept_at(row_q, rows.b[q], i) + u, kept_at(row_r, rows.b[r], i) + u, kept[i], n);
    if constexpr (s + 1 < STAGES) {
      store(operand + q_at, operand + r_at, result[0], n);
      return;
    }
    if (zones) {
      for (int i = 0; save && i < 1 + CELL; i++)
        store(Base::state(row_q, CELL + i) + u, Base::state(row_r, CELL + i) + u, result[i], n);
      for (int i = 0; i < 1 + CELL; i++) {
        const T2 z = load(Base::zoneout(row_q, i) + u, Base::zoneout(row_r, i) + u, n);
        result[i] = z * state[i] + (number<T2>(1) - z) * result[i];
      }
    }
    if (CELL) {
      store(cell + q_at, cell + r_at, result[1], n);
      if (save) store(Base::state(row_q, 0) + u, Base::state(row_r, 0) + u, result[1], n);
    }
    if (projects)
      store(wide_at(row_q, rows.b[q]) + u, wide_at(row_r, rows.b[r]) + u, result[0], n);
    else
      store(Base::y(row_q) + u, Base::y(row_r) + u, result[0], n);
  }
  S* wide_at(int64_t row, int64_t b) const {
    return save ? Base::state(row, Base::unprojected()) : wide_hidden + b * H;
  }
  S* kept_at(int64_t row, int64_t b, int i) const {
    return keeps ? Base::saved(row) + i * H : kept_rows + (b * C::saved_at[STAGES] + i) * H;
  }

  T2 bias(const void* values, int gate, int64_t u) const {
    const V found = values ? load((const S*)values + gate * H + u, filled(H, u, L)) : V{};
    return {found, found};
  }
  T2 input(int64_t row_q, int64_t row_r, int gate, int64_t u) const {
    const S* from = gates + gate * H + u;
    return load(from + row_q * gates_stride, from + row_r * gates_stride, filled(H, u, L));
  }

  template <int s> void tile_of_step(const Rows& rows, int64_t panel, const Panels& shape, Ahead ahead) const {
    static_assert(Base::stage_gates(s) <= MOST_VECTORS, "a panel holds all gates of a unit");
    constexpr int gates_here = C::gates_at[s + 1] - C::gates_at[s], gate0 = C::gates_at[s];
    const int vectors = shape.wide(panel) * gates_here;
    const int64_t unit = shape.unit(panel), stride = (int64_t)vectors * L;
    alignas(64) S sums[MOST_ROWS * MOST_VECTORS * L], inputs[MOST_ROWS * MOST_VECTORS * L];
    const S* a[MOST_ROWS];
    // Where the cell adds both products anyway one sum holds them; the GRU needs them apart.
    const bool one_sum = fused && !C::apart[s];
    if (fused) {
      for (int r = 0; r < rows.count; r++) a[r] = Base::x(rows.row[r]);
      multiply<S>(rows.count, a, weight_ih[s] + input_panels(s).offset(panel), D, vectors, one_sum ? sums : inputs, stride, {ahead.at, 0}, true);
    }
    for (int r = 0; r < rows.count; r++) a[r] = s == 0 ? rows.before[r] : operand + rows.b[r] * H;
    multiply<S>(rows.count, a, weight_hh[s] + shape.offset(panel), shape.K, vectors, sums, stride, ahead, !one_sum);
    for (int w = 0; w < shape.wide(panel); w++) {
      const int64_t u = unit + w * L;
      T2 bias_ih[gates_here], bias_hh[gates_here];
      for (int g = 0; g < gates_here; g++) {
        bias_hh[g] = bias(raw.bias_hh, gate0 + g, u);
        if (fused) bias_ih[g] = bias(raw.bias_ih, gate0 + g, u);
      }
      for (int q = 0; q < rows.count; q += 2) {
        const int r = q + 1 < rows.count ? q + 1 : q;
        T2 x[gates_here], h[gates_here];
        for (int g = 0; g < gates_here; g++) {
          const int64_t q_at = q * stride + (w * gates_here + g) * L, r_at = r * stride + (w * gates_here + g) * L;
          h[g] = load(sums + q_at, sums + r_at, L) + bias_hh[g];
          x[g] = fused ? bias_ih[g] : input(rows.row[q], rows.row[r], gate0 + g, u);
          if (fused && !one_sum) x[g] += load(inputs + q_at, inputs + r_at, L);
        }
        units<s>(rows, q, r, u, x, h);
      }
    }
  }

  // One vector of units of few rows.
  template <int s> void few_of_step(const Rows& rows, int64_t vector) const {
    constexpr int gates_here = C::gates_at[s + 1] - C::gates_at[s], gate0 = C::gates_at[s];
    const int64_t u = vector * L, K = s == 0 ? P : H;
    const int n = filled(H, u, L);
    alignas(64) S found[MOST_DOTS][gates_here][L] = {};
    const S* a[MOST_DOTS];
    for (int r = 0; r < rows.count; r++) a[r] = s == 0 ? rows.before[r] : operand + rows.b[r] * H;
    for (int g = 0; g < gates_here; g++)
      for (int i = 0; i < n; i++)
        dots<S>(rows.count, (const S*)raw.weight_hh + ((gate0 + g) * H + u + i) * K, a, K, [&](int r, S value) { found[r][g][i] = value; });
    for (int q = 0; q < rows.count; q += 2) {
      const int r = q + 1 < rows.count ? q + 1 : q;
      T2 x[gates_here], h[gates_here];
      for (int g = 0; g < gates_here; g++) {
        h[g] = load(found[q][g], found[r][g], L) + bias(raw.bias_hh, gate0 + g, u);
        x[g] = input(rows.row[q], rows.row[r], gate0 + g, u);
      }
      units<s>(rows, q, r, u, x, h);
    }
  }

  template <int s> void stage(int64_t t, const Place& place) const {
    const Panels shape = hidden_panels(s);
    over_rows(t, place, shape, weight_hh[s], [&](const Rows& rows, int64_t panel, Ahead ahead) {
      if (few) few_of_step<s>(rows, panel); else tile_of_step<s>(rows, panel, shape, ahead);
    });
    place.meet();
    if constexpr (s + 1 < STAGES) stage<s + 1>(t, place);
  }

  // Panel by panel, so that one stays in the cache for all rows; the next is fetched meanwhile.
  template <class Each>
  void over_rows(int64_t t, const Place& place, const Panels& shape, const S* packed, Each each) const {
    const int64_t panels = few ? shape.vectors : shape.count;
    const int64_t first = place.first_panel(panels), last = place.last_panel(panels);
    const int64_t mine = place.rows(Base::count(t)), start = Base::offset(t);
    const auto before = Base::step_before(t);
    const int64_t bytes = few ? 0 : shape.longest() * sizeof(S);
    const bool near = bytes * (last - first) < 1500000;  // the weights stay in the second cache
    for (int64_t panel = first; panel < last; panel++) {
      const int64_t next = panel + 1 < last ? panel + 1 : first;
      const int64_t most = few ? MOST_DOTS : shape.rows(panel), blocks = (mine + most - 1) / most;
      for (int64_t block = 0; block < blocks; block++) {
        const int64_t from = share(mine, block, blocks), to = share(mine, block + 1, blocks);
        Rows rows;
        rows.count = (int)(to - from);
        for (int r = 0; r < rows.count; r++) {
          const int64_t b = place.first_row() + (from + r) * place.row_step();
          rows.b[r] = Base::at(b);
          rows.row[r] = start + Base::at(b);
          rows.before[r] = before.hidden(b);
        }
        Ahead ahead{(const char*)(packed + (few ? 0 : shape.offset(next))), 0};
        if (!near) {
          ahead.at += bytes / blocks / 64 * 64 * block;
          ahead.step = (bytes / blocks / shape.K + 63) / 64 * 64;
        }
        each(rows, panel, ahead);
      }
    }
  }

  void project(int64_t t, const Place& place) const {
    const Panels shape = projection_panels();
    over_rows(t, place, shape, weight_hr, [&](const Rows& rows, int64_t panel, Ahead ahead) {
      const S* a[MOST_ROWS];
      for (int r = 0; r < rows.count; r++) a[r] = wide_at(rows.row[r], rows.b[r]);
      if (few) {
        for (int64_t p = panel * L; p < P && p < (panel + 1) * L; p++)
          dots<S>(rows.count, (const S*)raw.weight_hr + p * H, a, H, [&](int r, S value) { Base::y(rows.row[r])[p] = value; });
        return;
      }
      const int vectors = shape.wide(panel);
      const int64_t stride = (int64_t)vectors * L, unit = shape.unit(panel);
      alignas(64) S sums[MOST_ROWS * MOST_VECTORS * L];
      multiply<S>(rows.count, a, weight_hr + shape.offset(panel), H, vectors, sums, stride, ahead, true);
      for (int r = 0; r < rows.count; r++)
        for (int v = 0; v < vectors; v++)
          store(Base::y(rows.row[r]) + unit + v * L, load(sums + r * stride + v * L), filled(P, unit + v * L, L));
    });
    place.meet();
  }

  void loop(const Place& place) const {
    for (int64_t i = 0; i < T; i++) {
      const int64_t t = reverse ? T - 1 - i : i;
      if (Base::count(t) == 0) continue;  // the same for all threads
      stage<0>(t, place);
      if (projects) project(t, place);
    }
  }

  // The state at each sequence's end. Rows of no step are zero, for sums run over all rows.
  void finish(int me, int threads) const {
    for (int64_t b = me; b < B; b += threads) {
      const int64_t row = Base::end_row(b, true), at = Base::at(b);
      memcpy((S*)raw.h_n + at * P, row < 0 ? (const S*)raw.h0 + at * P : Base::y(row), P * sizeof(S));
      if (!Base::real) continue;
      const int slots = Base::unprojected() + projects;
      for (int64_t t = Base::length(b); t < T; t++) {
        const int64_t none = Base::offset(t) + at;
        memset(Base::y(none), 0, P * sizeof(S));
        if (save && slots) memset(Base::state(none, 0), 0, slots * H * sizeof(S));
        if (keeps && Base::SAVED) memset(Base::saved(none), 0, Base::SAVED * H * sizeof(S));
      }
    }
  }
  void start(int me, int threads) const {
    if constexpr (CELL)
      for (int64_t b = me; b < B; b += threads) {
        const int64_t at = Base::at(b) * H;
        memcpy(cell + at, (const S*)raw.c0 + at, H * sizeof(S));
      }
  }
};

}  // namespace RNNKIT_ISA
