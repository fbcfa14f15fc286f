// Backward through time, and the gradients of weights after it.
#pragma once
#include "layer.h"

namespace RNNKIT_ISA {

template <class S, class C> struct Backward : Layer<S, C> {
  using Base = Layer<S, C>;
  using Base::raw, Base::T, Base::B, Base::D, Base::H, Base::P, Base::N, Base::G, Base::STAGES;
  using Base::CELL, Base::COLUMNS, Base::projects, Base::zones, Base::reverse;
  using V = Vec<S>;
  static constexpr int L = LANES<S>;
  static constexpr int HIDDEN = COLUMNS - G;  // the first column of the gradients of W_hh h
  // Gradients that pass W_hh by: with zoneout that of h always does.
  static constexpr int hidden_carry = C::carry_hidden, cell_carry = C::carry_cell;

  S *weight_ih, *weight_hh[C::stages], *weight_hr;  // packed
  S* columns;    // gradients before activation, (N, COLUMNS, H)
  S* projected;  // of h as y has it, (N, P)
  S *carry_hidden, *carry_cell;      // (B, H)
  S *passed_hidden, *passed_cell;    // what zoneout hands on at once, where stages lie between
  const S** hidden_rows;             // h before, for each row
  S* operand;                        // of a later stage, (N, H)
  S* room_of[64];                    // of each thread, for the products with long sums

  explicit Backward(const RnnkitLayer& given) : Base(given) {}

  // dh of stage s: a product over the columns of stage s with its rows of W_hh.
  Panels hidden_panels(int s) const { return panels<S>(s == 0 ? P : H, Base::stage_gates(s) * H, 1); }
  Panels input_panels() const { return panels<S>(D, G * H, 1); }
  Panels projection_panels() const { return panels<S>(H, P, 1); }
  bool carries_hidden() const { return hidden_carry >= 0 || zones; }

  void plan(Room& room, int threads, bool wants_dx) {
    weight_ih = wants_dx ? room.take<S>(input_panels().size()) : nullptr;
    for (int s = 0; s < STAGES; s++) weight_hh[s] = room.take<S>(hidden_panels(s).size());
    weight_hr = projects ? room.take<S>(projection_panels().size()) : nullptr;
    columns = room.take<S>(N * COLUMNS * H);
    projected = projects ? room.take<S>(N * P) : nullptr;
    carry_hidden = carries_hidden() ? room.take<S>(B * H) : nullptr;
    carry_cell = cell_carry >= 0 ? room.take<S>(B * H) : nullptr;
    const bool passes = zones && STAGES > 1;
    passed_hidden = passes ? room.take<S>(B * H) : nullptr;
    passed_cell = passes && CELL ? room.take<S>(B * H) : nullptr;
    hidden_rows = room.take<const S*>(N);
    operand = STAGES > 1 ? room.take<S>(N * H) : nullptr;
    const int64_t widest = D > H ? (D > P ? D : P) : (H > P ? H : P);
    for (int i = 0; i < threads && i < 64; i++) room_of[i] = room.take<S>(transposed_room<S>(G * H > P ? G * H : P, widest));
  }

  S* column(int64_t row, int i) const { return columns + (row * COLUMNS + i) * H; }

  // ---- before the loop
  void pack(int me, int threads) {
    int64_t job = 0;
    for (int s = 0; s < STAGES; s++) {
      const Panels shape = hidden_panels(s);
      const S* W = (const S*)raw.weight_hh + C::gates_at[s] * H * P;
      for (int64_t p = 0; p < shape.count(); p++)
        if (job++ % threads == me)
          pack_columns<S>([&](int64_t k) { return W + k * shape.units; }, shape, p, weight_hh[s]);
    }
    if (weight_ih)
      for (int64_t p = 0; p < input_panels().count(); p++)
        if (job++ % threads == me)
          pack_columns<S>(
              [&](int64_t k) {  // in the order of the gradients' columns
                return (const S*)raw.weight_ih + (C::gate_of_column[k / H] * H + k % H) * D;
              },
              input_panels(), p, weight_ih);
    if (projects)
      for (int64_t p = 0; p < projection_panels().count(); p++)
        if (job++ % threads == me)
          pack_columns<S>([&](int64_t k) { return (const S*)raw.weight_hr + k * H; }, projection_panels(), p, weight_hr);
  }
  void start(int me, int threads) const {
    for (int64_t b = me; b < B; b += threads) {
      if (carry_hidden) memset(carry_hidden + b * H, 0, H * sizeof(S));
      if (carry_cell) {
        if (raw.dc_n)
          memcpy(carry_cell + b * H, (const S*)raw.dc_n + b * H, H * sizeof(S));
        else
          memset(carry_cell + b * H, 0, H * sizeof(S));
      }
      const int64_t many = Base::length(b);
      for (int64_t t = 0; t < T; t++) {
        const int64_t row = Base::offset(t) + b;
        if (t < many) {
          hidden_rows[row] = Base::hidden_before(t, b);
        } else if (Base::padded()) {  // rows of no step take no part in any sum
          hidden_rows[row] = (const S*)raw.h0 + b * P;
          memset(column(row, 0), 0, COLUMNS * H * sizeof(S));
          if (projected) memset(projected + row * P, 0, P * sizeof(S));
          if (operand) memset(operand + row * H, 0, H * sizeof(S));
        } else {
          break;
        }
      }
    }
  }

  // ---- a tile of a step
  struct Rows {
    int count;
    int64_t b[MOST_ROWS], row[MOST_ROWS], later[MOST_ROWS], t;
  };

  template <int s> void units(const Rows& rows, int r, int64_t u, V gradient) const {
    const int n = filled(H, u, L);
    const int64_t row = rows.row[r], b = rows.b[r];
    constexpr int KEPT = C::saved_at[STAGES];
    V saved[KEPT + 1], before[2], after[2], vectors[C::weights + 1], found[COLUMNS], carry[2], carried[2];
    for (int i = 0; i < KEPT; i++) saved[i] = load(Base::saved(row) + i * H + u, n);
    if (!projects) before[0] = load(hidden_rows[row] + u, n);
    if (zones || projects)
      after[0] = load(Base::state(row, zones ? Base::own_hidden() : Base::unprojected()) + u, n);
    else
      after[0] = load(Base::y(row) + u, n);
    if constexpr (CELL) {
      before[1] = load(Base::cell_before(rows.t, b) + u, n);
      after[1] = load(Base::state(row, zones ? Base::own_cell() : 0) + u, n);
    }
    for (int i = 0; i < C::weights; i++) vectors[i] = load((const S*)raw.cell_weights + i * H + u, n);
    S* hidden = carry_hidden + b * H + u;
    S* cell = carry_cell + b * H + u;
    V passed_h{}, passed_c{};
    if constexpr (hidden_carry >= 0) carry[hidden_carry] = load(hidden, n);
    if constexpr (cell_carry >= 0) carry[cell_carry] = load(cell, n);
    if (zones && s + 1 == STAGES) {
      // z of each gradient passes to the step before, 1 - z of it enters the cell.
      const V whole = gradient + (hidden_carry >= 0 ? carry[hidden_carry < 0 ? 0 : hidden_carry] : load(hidden, n));
      const V z = load(Base::zoneout(row, 0) + u, n);
      passed_h = z * whole;
      gradient = (S(1) - z) * whole;
      if constexpr (hidden_carry >= 0) carry[hidden_carry] = V{};
      if constexpr (cell_carry >= 0) {
        const V z_cell = load(Base::zoneout(row, 1) + u, n);
        passed_c = z_cell * carry[cell_carry];
        carry[cell_carry] = (S(1) - z_cell) * carry[cell_carry];
      }
      if (STAGES > 1) {
        store(passed_hidden + b * H + u, passed_h, n);
        if (CELL) store(passed_cell + b * H + u, passed_c, n);
      }
    }
    C::template backward<s, V>(saved, before, after, gradient, carry, vectors, found, carried);
    constexpr int at = C::columns_at[s], many = C::columns_at[s + 1] - at;
    for (int i = 0; i < many; i++) store(column(row, at + i) + u, found[i], n);
    if (zones && s == 0) {
      if (STAGES > 1) {
        passed_h = load(passed_hidden + b * H + u, n);
        if (CELL) passed_c = load(passed_cell + b * H + u, n);
      }
      if constexpr (hidden_carry >= 0) passed_h += carried[hidden_carry];
      store(hidden, passed_h, n);
    } else if constexpr (hidden_carry >= 0) {
      store(hidden, carried[hidden_carry], n);
    }
    if constexpr (cell_carry >= 0) store(cell, carried[cell_carry] + (s == 0 ? passed_c : V{}), n);
  }

  // sums[r][v] = what reaches h of this row through W_hh, from the step after it or from h_n.
  void from_later(const Rows& rows, int64_t panel, const Panels& shape, bool starts, S* sums, int64_t stride, int vectors, Ahead ahead) const {
    const int64_t unit = panel * shape.beside * L;
    const S* a[MOST_ROWS];
    for (int r = 0; r < rows.count; r++)
      for (int v = 0; v < vectors; v++) {
        const int n = filled(P, unit + v * L, L);
        V value{};
        if (rows.t >= 0 && raw.dy) value = load((const S*)raw.dy + rows.row[r] * raw.dy_stride + unit + v * L, n);
        if (starts && raw.dh_n) value += load((const S*)raw.dh_n + rows.b[r] * P + unit + v * L, n);
        store(sums + r * stride + v * L, value);
      }
    if (starts) return;
    for (int r = 0; r < rows.count; r++) a[r] = column(rows.later[r], HIDDEN);
    multiply<S>(rows.count, a, weight_hh[0] + shape.offset(panel), shape.K, vectors, sums, stride, ahead);
  }

  template <int s> void stage(int64_t t, const Place& place) const {
    // The last stage hears from the step after, the others from the stage after.
    constexpr bool last = s + 1 == STAGES;
    const Panels shape = last ? hidden_panels(0) : hidden_panels(s + 1);
    if (last && projects) {
      over_rows(t, place, shape, weight_hh[0], [&](const Rows& rows, int64_t panel, bool starts, Ahead ahead) {
        const int vectors = shape.wide(panel);
        const int64_t stride = (int64_t)vectors * L, unit = panel * shape.beside * L;
        alignas(64) S sums[MOST_ROWS * WIDEST * L];
        from_later(rows, panel, shape, starts, sums, stride, vectors, ahead);
        for (int r = 0; r < rows.count; r++)
          for (int v = 0; v < vectors; v++)
            store(projected + rows.row[r] * P + unit + v * L, load(sums + r * stride + v * L), filled(P, unit + v * L, L));
      });
      place.meet();
      const Panels wide = projection_panels();
      over_rows(t, place, wide, weight_hr, [&](const Rows& rows, int64_t panel, bool, Ahead ahead) {
        const S* a[MOST_ROWS];
        for (int r = 0; r < rows.count; r++) a[r] = projected + rows.row[r] * P;
        through<s>(rows, panel, wide, weight_hr, a, ahead);
      });
    } else if (last) {
      over_rows(t, place, shape, weight_hh[0], [&](const Rows& rows, int64_t panel, bool starts, Ahead ahead) {
        const int vectors = shape.wide(panel);
        const int64_t stride = (int64_t)vectors * L, unit = panel * shape.beside * L;
        alignas(64) S sums[MOST_ROWS * WIDEST * L];
        from_later(rows, panel, shape, starts, sums, stride, vectors, ahead);
        for (int r = 0; r < rows.count; r++)
          for (int v = 0; v < vectors; v++) units<s>(rows, r, unit + v * L, load(sums + r * stride + v * L));
      });
    } else {
      over_rows(t, place, shape, weight_hh[s + 1], [&](const Rows& rows, int64_t panel, bool, Ahead ahead) {
        const S* a[MOST_ROWS];
        for (int r = 0; r < rows.count; r++) a[r] = column(rows.row[r], HIDDEN + C::gates_at[s + 1]);
        through<s>(rows, panel, shape, weight_hh[s + 1], a, ahead);
      });
    }
    place.meet();
    if constexpr (s > 0) stage<s - 1>(t, place);
  }
  template <int s>
  void through(const Rows& rows, int64_t panel, const Panels& shape, const S* packed, const S* const* a, Ahead ahead) const {
    const int vectors = shape.wide(panel);
    const int64_t stride = (int64_t)vectors * L, unit = panel * shape.beside * L;
    alignas(64) S sums[MOST_ROWS * WIDEST * L] = {};
    multiply<S>(rows.count, a, packed + shape.offset(panel), shape.K, vectors, sums, stride, ahead);
    for (int r = 0; r < rows.count; r++)
      for (int v = 0; v < vectors; v++) units<s>(rows, r, unit + v * L, load(sums + r * stride + v * L));
  }

  // Rows that go on come first, then those whose last step t is: `starts`. With t = -1 what is left
  // after the first step, for h0.
  template <class Each>
  void over_rows(int64_t t, const Place& place, const Panels& shape, const S* packed, Each each) const {
    const int64_t panels = shape.count();
    const int64_t first = place.first_panel(panels), last = place.last_panel(panels);
    const int64_t later = reverse ? t - 1 : t + 1;
    const int64_t all = t < 0 ? B : Base::count(t), go_on = t < 0 ? (T ? Base::count(0) : 0) : later < 0 || later >= T ? 0 : Base::count(later) < all ? Base::count(later) : all;
    const int64_t mine = place.rows(all), most = shape.rows(), bytes = shape.offset(1) * sizeof(S);
    const int64_t split = place.rows(go_on);
    const bool near = bytes * (last - first) < 1500000;
    for (int part = 0; part < 2; part++) {
      const int64_t low = part ? split : 0, many = part ? mine - split : split;
      const int64_t blocks = (many + most - 1) / most;
      for (int64_t panel = first; panel < last; panel++) {
        const int64_t next = panel + 1 < last ? panel + 1 : first;
        for (int64_t block = 0; block < blocks; block++) {
          const int64_t from = low + share(many, (int)block, (int)blocks), to = low + share(many, (int)block + 1, (int)blocks);
          Rows rows;
          rows.count = (int)(to - from);
          rows.t = t;
          for (int r = 0; r < rows.count; r++) {
            const int64_t b = place.first_row() + (from + r) * place.row_step();
            rows.b[r] = b;
            rows.row[r] = t < 0 ? -1 : Base::offset(t) + b;
            rows.later[r] = part ? -1 : t < 0 ? Base::end_row(b, false) : Base::offset(later) + b;
          }
          Ahead ahead{(const char*)(packed + shape.offset(next)), 0};
          if (!near) {
            ahead.at += bytes / blocks / 64 * 64 * block;
            ahead.step = (bytes / blocks / shape.K + 63) / 64 * 64;
          }
          each(rows, panel, part == 1, ahead);
        }
      }
    }
  }

  void loop(const Place& place) const {
    for (int64_t i = 0; i < T; i++) {
      const int64_t t = reverse ? i : T - 1 - i;
      if (Base::count(t) == 0) continue;
      stage<STAGES - 1>(t, place);
    }
    // h0: through W_hh of the step that was processed first, and past it.
    const Panels shape = hidden_panels(0);
    over_rows(-1, place, shape, weight_hh[0], [&](const Rows& rows, int64_t panel, bool starts, Ahead ahead) {
      const int vectors = shape.wide(panel);
      const int64_t stride = (int64_t)vectors * L, unit = panel * shape.beside * L;
      alignas(64) S sums[MOST_ROWS * WIDEST * L];
      from_later(rows, panel, shape, starts, sums, stride, vectors, ahead);
      for (int r = 0; r < rows.count; r++)
        for (int v = 0; v < vectors; v++) {
          const int64_t u = unit + v * L;
          const int n = filled(P, u, L);
          V value = load(sums + r * stride + v * L);
          if (carry_hidden) value += load(carry_hidden + rows.b[r] * H + u, n);
          store((S*)raw.d_h0 + rows.b[r] * P + u, value, n);
        }
    });
    if (raw.d_c0) {
      place.meet();
      for (int64_t b = place.me; b < B; b += place.threads)
        memcpy((S*)raw.d_c0 + b * H, carry_cell + b * H, H * sizeof(S));
    }
  }

  // ---- after the loop
  // C (H units of a gate, width) = A^T B: threads take columns of A.
  template <class Left, class Right>
  void weight_gradient(int me, int threads, Left left, int64_t columns_of_gate, Right right, int64_t width, S* out, S* sums) const {
    // Whole tiles, so that a column is summed alike by any number of threads.
    const int64_t tiles = (columns_of_gate + TALL - 1) / TALL;
    const int64_t first = share(tiles, me, threads) * TALL;
    int64_t last = share(tiles, me + 1, threads) * TALL;
    if (last > columns_of_gate) last = columns_of_gate;
    if (first >= last) return;
    transposed_product<S>([&](int64_t k) { return left(k) + first; }, last - first, right, width, N,
                          out + first * width, width, sums ? sums + first : nullptr, room_of[me]);
  }
  // Gates whose columns lie side by side are one product.
  static constexpr int together(const int* columns_of_gates, int gate, int end) {
    int next = gate + 1;
    while (next < end && columns_of_gates[next] == columns_of_gates[next - 1] + 1) next++;
    return next;
  }
  void weights(int me, int threads) const {
    for (int g = 0; g < G;) {
      const int end = together(C::input_columns, g, G);
      weight_gradient(me, threads, [&](int64_t n) { return column(n, C::input_columns[g]); }, (end - g) * H,
                      [&](int64_t n) { return Base::x(n); }, D, (S*)raw.d_weight_ih + g * H * D,
                      raw.d_bias_ih ? (S*)raw.d_bias_ih + g * H : nullptr);
      g = end;
    }
    for (int s = 0; s < STAGES; s++) {
      const int g = C::gates_at[s];
      weight_gradient(me, threads, [&](int64_t n) { return column(n, HIDDEN + g); }, Base::stage_gates(s) * H,
                      [&](int64_t n) { return s ? operand + n * H : hidden_rows[n]; }, s ? H : P,
                      (S*)raw.d_weight_hh + g * H * P, raw.d_bias_hh ? (S*)raw.d_bias_hh + g * H : nullptr);
    }
    if (projects)
      weight_gradient(me, threads, [&](int64_t n) { return projected + n * P; }, P,
                      [&](int64_t n) { return Base::state(n, Base::unprojected()); }, H, (S*)raw.d_weight_hr, nullptr);
  }
  // What a later stage multiplied: made again, row by row.
  void operands(int me, int threads) const {
    if constexpr (STAGES > 1)
      for (int64_t b = me; b < B; b += threads)
        for (int64_t t = 0; t < Base::length(b); t++) {
          const int64_t row = Base::offset(t) + b;
          for (int64_t u = 0; u < H; u += L) {
            const int n = filled(H, u, L);
            V saved[Base::SAVED + 1];
            for (int i = 0; i < Base::SAVED; i++) saved[i] = load(Base::saved(row) + i * H + u, n);
            store(operand + row * H + u, C::template operand<V>(saved, load(hidden_rows[row] + u, n)), n);
          }
        }
  }
  // The cell's own vectors: sums over rows, parts of DEPTH rows at a time.
  void cell_weights(int me, int threads) const {
    if constexpr (C::weights > 0) {
      const int64_t vectors = (H + L - 1) / L;
      for (int64_t v = share(vectors, me, threads); v < share(vectors, me + 1, threads); v++) {
        const int64_t u = v * L;
        const int n = filled(H, u, L);
        V total[C::weights] = {};
        for (int64_t b = 0; b < B; b++) {
          V part[C::weights] = {};
          for (int64_t t = 0; t < Base::length(b); t++) {
            const int64_t row = Base::offset(t) + b;
            V found[COLUMNS], before[2], after[2], values[C::weights];
            for (int i = 0; i < COLUMNS; i++) found[i] = load(column(row, i) + u, n);
            if (!projects) before[0] = load(hidden_rows[row] + u, n);
            after[0] = zones || projects ? load(Base::state(row, zones ? Base::own_hidden() : Base::unprojected()) + u, n) : load(Base::y(row) + u, n);
            if constexpr (CELL) {
              before[1] = load(Base::cell_before(t, b) + u, n);
              after[1] = load(Base::state(row, zones ? Base::own_cell() : 0) + u, n);
            }
            C::template weight_gradients<V>(found, before, after, values);
            for (int i = 0; i < C::weights; i++) part[i] += values[i];
          }
          for (int i = 0; i < C::weights; i++) total[i] += part[i];
        }
        for (int i = 0; i < C::weights; i++) store((S*)raw.d_cell_weights + i * H + u, total[i], n);
      }
    }
  }
  // dx (+)= gradients of W_ih x times W_ih.
  void input_gradient(int me, int threads, S* dx, int64_t stride, bool add) const {
    long_product<S>([&](int64_t n) { return column(n, C::first_input_column); }, weight_ih, input_panels(), (const S*)nullptr,
                    [&](int64_t n) { return dx + n * stride; }, share(N, me, threads), share(N, me + 1, threads), add);
  }
};

}  // namespace RNNKIT_ISA
