// Backward through time, and the gradients of weights after it.
#pragma once
#include "layer.h"

namespace RNNKIT_ISA {

template <class S, class C> struct Backward : Layer<S, C> {
  using Base = Layer<S, C>;
  using Base::raw, Base::T, Base::B, Base::D, Base::H, Base::P, Base::N, Base::G, Base::STAGES;
  using Base::CELL, Base::COLUMNS, Base::projects, Base::zones, Base::reverse;
  using V = Vec<S>;
  using T2 = Two<S>;
  static constexpr int L = LANES<S>;
  static constexpr bool PRODUCT_FIRST = false;
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
  int64_t* gate_rows;                // rows of W_ih in the order of the gradients' columns
  S* room_of[64];                    // of each thread, for the products with long sums

  explicit Backward(const RnnkitLayer& given) : Base(given) {}

  // dh of stage s: a product over the columns of stage s with its rows of W_hh.
  Panels hidden_panels(int s) const { return panels<S>(s == 0 ? P : H, Base::stage_gates(s) * H, 1); }
  Panels input_panels() const { return panels<S>(D, G * H, 1); }
  Panels projection_panels() const { return panels<S>(H, P, 1); }
  bool carries_hidden() const { return hidden_carry >= 0 || zones; }

  void plan(Room& room, int threads, bool wants_dx) {
    Base::plan_rows(room);
    gate_rows = wants_dx ? room.take<int64_t>(G * H) : nullptr;
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
    for (int i = 0; i < threads && i < 64; i++) room_of[i] = room.take<S>(transposed_room<S>(G * H > P ? G * H : P));
  }

  S* state_gradient(void* base, int64_t row, int64_t stride) const { return (S*)base + row * stride; }
  S* column(int64_t row, int i) const { return columns + (row * COLUMNS + i) * H; }

  void arrange() {
    Base::arrange();
    for (int64_t k = 0; gate_rows && k < G * H; k++) gate_rows[k] = C::gate_of_column[k / H] * H + k % H;
  }

  // ---- before the loop
  void pack(int me, int threads) {
    int64_t job = 0;
    for (int s = 0; s < STAGES; s++) {
      const Panels shape = hidden_panels(s);
      const S* W = (const S*)raw.weight_hh + C::gates_at[s] * H * P;
      for (int64_t p = 0; p < shape.count; p++)
        if (job++ % threads == me)
          pack_columns<S>({W, shape.units, nullptr}, shape, p, weight_hh[s]);
    }
    if (weight_ih)
      for (int64_t p = 0; p < input_panels().count; p++)
        if (job++ % threads == me)
          pack_columns<S>({(const S*)raw.weight_ih, D, gate_rows}, input_panels(), p, weight_ih);
    if (projects)
      for (int64_t p = 0; p < projection_panels().count; p++)
        if (job++ % threads == me)
          pack_columns<S>({(const S*)raw.weight_hr, H, nullptr}, projection_panels(), p, weight_hr);
  }
  void start(int me, int threads) const {
    for (int64_t b = me; b < B; b += threads) {
      const int64_t at = Base::at(b);
      if (carry_hidden) memset(carry_hidden + at * H, 0, H * sizeof(S));
      if (carry_cell && raw.dc_n)
        memcpy(carry_cell + at * H, (const S*)raw.dc_n + at * H, H * sizeof(S));
      else if (carry_cell)
        memset(carry_cell + at * H, 0, H * sizeof(S));
      for (int64_t t = 0; t < Base::length(b); t++)
        hidden_rows[Base::offset(t) + at] = Base::step_before(t).hidden(b);
    }
  }

  // ---- a tile of a step
  struct Rows {
    int count;
    int64_t b[MOST_ROWS], row[MOST_ROWS], later[MOST_ROWS], t;
    const S* cell[MOST_ROWS];  // c before
  };

  // A vector of units of two rows; the second may be the first once more.
  template <int s> void units(const Rows& rows, int q, int r, int64_t u, T2 gradient) const {
    const int n = filled(H, u, L);
    const int64_t row_q = rows.row[q], row_r = rows.row[r], q_at = rows.b[q] * H + u, r_at = rows.b[r] * H + u;
    T2 saved[Base::SAVED + 1], before[2], after[2], vectors[C::weights + 1], found[COLUMNS], carry[2], carried[2];
    for (int i = 0; i < Base::SAVED; i++) saved[i] = load(Base::saved(row_q) + i * H + u, Base::saved(row_r) + i * H + u, n);
    if (!projects) before[0] = load(hidden_rows[row_q] + u, hidden_rows[row_r] + u, n);
    after[0] = load(Base::hidden_after(row_q) + u, Base::hidden_after(row_r) + u, n);
    if constexpr (CELL) {
      before[1] = load(rows.cell[q] + u, rows.cell[r] + u, n);
      after[1] = load(Base::cell_after(row_q) + u, Base::cell_after(row_r) + u, n);
    }
    for (int i = 0; i < C::weights; i++) {
      const V vector = load((const S*)raw.cell_weights + i * H + u, n);
      vectors[i] = {vector, vector};
    }
    if constexpr (hidden_carry >= 0) carry[hidden_carry] = load(carry_hidden + q_at, carry_hidden + r_at, n);
    if constexpr (cell_carry >= 0) carry[cell_carry] = load(carry_cell + q_at, carry_cell + r_at, n);
    if constexpr (s + 1 == STAGES) {
      if (raw.d_hidden && !projects)
        store(state_gradient(raw.d_hidden, row_q, raw.d_hidden_stride) + u, state_gradient(raw.d_hidden, row_r, raw.d_hidden_stride) + u,
              carry_hidden ? gradient + load(carry_hidden + q_at, carry_hidden + r_at, n) : gradient, n);
      if constexpr (cell_carry >= 0)
        if (raw.d_cell)
          store(state_gradient(raw.d_cell, row_q, raw.d_cell_stride) + u, state_gradient(raw.d_cell, row_r, raw.d_cell_stride) + u, carry[cell_carry], n);
    }
    T2 passed_h{}, passed_c{};
    if (zones && s + 1 == STAGES) {
      // z of each gradient passes to the step before, 1 - z of it enters the cell.
      const T2 one = number<T2>(1), z = load(Base::zoneout(row_q, 0) + u, Base::zoneout(row_r, 0) + u, n);
      const T2 whole = gradient + load(carry_hidden + q_at, carry_hidden + r_at, n);
      passed_h = z * whole;
      gradient = (one - z) * whole;
      if constexpr (hidden_carry >= 0) carry[hidden_carry] = T2{};
      if constexpr (cell_carry >= 0) {
        const T2 z_cell = load(Base::zoneout(row_q, 1) + u, Base::zoneout(row_r, 1) + u, n);
        passed_c = z_cell * carry[cell_carry];
        carry[cell_carry] = (one - z_cell) * carry[cell_carry];
      }
      if (STAGES > 1) {
        store(passed_hidden + q_at, passed_hidden + r_at, passed_h, n);
        if (CELL) store(passed_cell + q_at, passed_cell + r_at, passed_c, n);
      }
    }
    C::template backward<s, T2>(saved, before, after, gradient, carry, vectors, found, carried);
    constexpr int at = C::columns_at[s], many = C::columns_at[s + 1] - at;
    for (int i = 0; i < many; i++) store(column(row_q, at + i) + u, column(row_r, at + i) + u, found[i], n);
    if (zones && s == 0) {
      if (STAGES > 1) {
        passed_h = load(passed_hidden + q_at, passed_hidden + r_at, n);
        if (CELL) passed_c = load(passed_cell + q_at, passed_cell + r_at, n);
      }
      if constexpr (hidden_carry >= 0) passed_h += carried[hidden_carry];
      store(carry_hidden + q_at, carry_hidden + r_at, passed_h, n);
      if constexpr (cell_carry >= 0) carried[cell_carry] += passed_c;
    } else if constexpr (hidden_carry >= 0) {
      store(carry_hidden + q_at, carry_hidden + r_at, carried[hidden_carry], n);
    }
    if constexpr (cell_carry >= 0) store(carry_cell + q_at, carry_cell + r_at, carried[cell_carry], n);
  }
  template <int s> void all_units(const Rows& rows, int64_t unit, int vectors, const S* sums, int64_t stride) const {
    for (int q = 0; q < rows.count; q += 2) {
      const int r = q + 1 < rows.count ? q + 1 : q;
      for (int v = 0; v < vectors; v++)
        units<s>(rows, q, r, unit + v * L, load(sums + q * stride + v * L, sums + r * stride + v * L, L));
    }
  }

  // sums[r][v] = what reaches h of this row: from y, and through W_hh from the step after it, or
  // from h_n.
  void from_later(const Rows& rows, int64_t panel, const Panels& shape, bool starts, S* sums, int64_t stride, int vectors, Ahead ahead) const {
    const int64_t unit = shape.unit(panel);
    if (!starts) {
      const S* a[MOST_ROWS];
      for (int r = 0; r < rows.count; r++) a[r] = column(rows.later[r], HIDDEN);
      multiply<S>(rows.count, a, weight_hh[0] + shape.offset(panel), shape.K, vectors, sums, stride, ahead, true);
    }
    for (int r = 0; r < rows.count; r++)
      for (int v = 0; v < vectors; v++) {
        const int n = filled(P, unit + v * L, L);
        V value{};
        if (!starts)
          value = load(sums + r * stride + v * L);
        else if (raw.dh_n)
          value = load((const S*)raw.dh_n + rows.b[r] * P + unit + v * L, n);
        if (rows.t >= 0 && raw.dy) value += load((const S*)raw.dy + rows.row[r] * raw.dy_stride + unit + v * L, n);
        store(sums + r * stride + v * L, value);
      }
  }

  template <int s> void stage(int64_t t, const Place& place) const {
    // The last stage hears from the step after, the others from the stage after.
    constexpr bool last = s + 1 == STAGES;
    const Panels shape = last ? hidden_panels(0) : hidden_panels(s + 1);
    if (last && projects) {
      over_rows(t, place, shape, weight_hh[0], [&](const Rows& rows, int64_t panel, bool starts, Ahead ahead) {
        const int vectors = shape.wide(panel);
        const int64_t stride = (int64_t)vectors * L, unit = shape.unit(panel);
        alignas(64) S sums[MOST_ROWS * WIDEST * L];
        from_later(rows, panel, shape, starts, sums, stride, vectors, ahead);
        for (int r = 0; r < rows.count; r++)
          for (int v = 0; v < vectors; v++) {
            const int64_t u = unit + v * L;
            const int n = filled(P, u, L);
            const V value = load(sums + r * stride + v * L);
            store(projected + rows.row[r] * P + u, value, n);
            if (raw.d_hidden) store(state_gradient(raw.d_hidden, rows.row[r], raw.d_hidden_stride) + u, value, n);
          }
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
        const int64_t stride = (int64_t)vectors * L, unit = shape.unit(panel);
        alignas(64) S sums[MOST_ROWS * WIDEST * L];
        from_later(rows, panel, shape, starts, sums, stride, vectors, ahead);
        all_units<s>(rows, unit, vectors, sums, stride);
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
    const int64_t stride = (int64_t)vectors * L, unit = shape.unit(panel);
    alignas(64) S sums[MOST_ROWS * WIDEST * L];
    multiply<S>(rows.count, a, packed + shape.offset(panel), shape.K, vectors, sums, stride, ahead, true);
    all_units<s>(rows, unit, vectors, sums, stride);
  }

  // Rows that go on come first, then those whose last step t is: `starts`. With t = -1 what is left
  // after the first step, for h0.
  template <class Each>
  void over_rows(int64_t t, const Place& place, const Panels& shape, const S* packed, Each each) const {
    const int64_t panels = shape.count;
    const int64_t first = place.first_panel(panels), last = place.last_panel(panels);
    const int64_t later = reverse ? t - 1 : t + 1;
    const int64_t all = t < 0 ? B : Base::count(t), go_on = t < 0 ? (T ? Base::count(0) : 0) : later < 0 || later >= T ? 0 : Base::count(later) < all ? Base::count(later) : all;
    const int64_t mine = place.rows(all), bytes = shape.longest() * sizeof(S);
    const int64_t split = place.rows(go_on);
    const auto earlier = Base::step_before(t < 0 ? 0 : t);
    const bool near = bytes * (last - first) < 1500000;
    for (int part = 0; part < 2; part++) {
      const int64_t low = part ? split : 0, many = part ? mine - split : split;
      for (int64_t panel = first; panel < last; panel++) {
        const int64_t next = panel + 1 < last ? panel + 1 : first;
        const int64_t blocks = (many + shape.rows(panel) - 1) / shape.rows(panel);
        for (int64_t block = 0; block < blocks; block++) {
          const int64_t from = low + share(many, block, blocks), to = low + share(many, block + 1, blocks);
          Rows rows;
          rows.count = (int)(to - from);
          rows.t = t;
          for (int r = 0; r < rows.count; r++) {
            const int64_t b = place.first_row() + (from + r) * place.row_step();
            const int64_t at = Base::at(b);
            rows.b[r] = at;
            rows.row[r] = t < 0 ? -1 : Base::offset(t) + at;
            rows.later[r] = part ? -1 : t < 0 ? Base::end_row(b, false) : Base::offset(later) + at;
            if (CELL && t >= 0) rows.cell[r] = earlier.cell(b);
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
      const int64_t stride = (int64_t)vectors * L, unit = shape.unit(panel);
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
        memcpy((S*)raw.d_c0 + Base::at(b) * H, carry_cell + Base::at(b) * H, H * sizeof(S));
    }
  }

  // ---- after the loop
  // Products A^T B that share A, whose columns threads share.
  void weight_gradients(int me, int threads, Lines<const S> left, int64_t many, Beside<S> one, Beside<S> other, int count) const {
    const int64_t tiles = (many + TALL - 1) / TALL;
    const int64_t first = share(tiles, me, threads) * TALL;
    int64_t last = share(tiles, me + 1, threads) * TALL;
    if (last > many) last = many;
    if (first >= last) return;
    left.base += first;
    Beside<S> products[2] = {one, other};
    for (Beside<S>& product : products) {
      product.C += first * product.N;
      if (product.sums) product.sums += first;
    }
    transposed_product<S>(left, last - first, Base::real_rows, products, count, room_of[me]);
  }
  Lines<const S> column_rows(int i) const { return {column(0, i), COLUMNS * H, Base::real}; }
  // The gradients of gate g in W_ih, and in W_hh.
  Beside<S> of_input(int g) const {
    return {Base::x_rows(), D, (S*)raw.d_weight_ih + g * H * D, raw.d_bias_ih ? (S*)raw.d_bias_ih + g * H : nullptr};
  }
  Beside<S> of_hidden(int g) const {
    const bool later = g >= C::gates_at[1];
    const Lines<const S> first{nullptr, 0, Base::real, hidden_rows}, second{operand, H, Base::real};
    return {later ? second : first, later ? H : P, (S*)raw.d_weight_hh + g * H * P, raw.d_bias_hh ? (S*)raw.d_bias_hh + g * H : nullptr};
  }
  static constexpr int stage_end(int g) {
    int s = 0;
    while (C::gates_at[s + 1] <= g) s++;
    return C::gates_at[s + 1];
  }
  void weights(int me, int threads) const {
    // Gates of a stage whose columns lie side by side are one product, and both weights' one where
    // they have the same columns.
    for (int g = 0; g < G;) {
      int end = g + 1;
      while (end < stage_end(g) && C::input_columns[end] == C::input_columns[end - 1] + 1) end++;
      const int64_t many = (end - g) * H;
      const Beside<S> input = of_input(g), hidden = of_hidden(g);
      const int column = C::input_columns[g];
      if (column == HIDDEN + g) {
        weight_gradients(me, threads, column_rows(column), many, input, hidden, 2);
      } else {
        weight_gradients(me, threads, column_rows(column), many, input, input, 1);
        weight_gradients(me, threads, column_rows(HIDDEN + g), many, hidden, hidden, 1);
      }
      g = end;
    }
    if (projects) {
      const Beside<S> projection{{Base::state(0, Base::unprojected()), raw.states_stride, Base::real}, H, (S*)raw.d_weight_hr, nullptr};
      weight_gradients(me, threads, {projected, P, Base::real}, P, projection, projection, 1);
    }
  }
  // What a later stage multiplied: made again, row by row.
  void finish(int me, int threads) const {
    if constexpr (STAGES > 1)
      for (int64_t b = me; b < B; b += threads)
        for (int64_t t = 0; t < Base::length(b); t++) {
          const int64_t row = Base::offset(t) + Base::at(b);
          for (int64_t u = 0; u < H; u += L) {
            const int n = filled(H, u, L);
            const auto twice = [&](const S* p) { return load(p + u, p + u, n); };
            T2 saved[Base::SAVED + 1];
            for (int i = 0; i < Base::SAVED; i++) saved[i] = twice(Base::saved(row) + i * H);
            store(operand + row * H + u, C::template operand<T2>(saved, twice(hidden_rows[row])).a, n);
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
            const int64_t row = Base::offset(t) + Base::at(b);
            T2 found[COLUMNS], before[2], after[2], values[C::weights];
            const auto twice = [&](const S* p) { return load(p + u, p + u, n); };
            for (int i = 0; i < COLUMNS; i++) found[i] = twice(column(row, i));
            if (!projects) before[0] = twice(hidden_rows[row]);
            after[0] = twice(Base::hidden_after(row));
            if constexpr (CELL) {
              before[1] = twice(Base::step_before(t).cell(b));
              after[1] = twice(Base::cell_after(row));
            }
            C::template weight_gradients<T2>(found, before, after, values);
            for (int i = 0; i < C::weights; i++) part[i] += values[i].a;
          }
          for (int i = 0; i < C::weights; i++) total[i] += part[i];
        }
        for (int i = 0; i < C::weights; i++) store((S*)raw.d_cell_weights + i * H + u, total[i], n);
      }
    }
  }
  // dx (+)= gradients of W_ih x times W_ih; zero in rows of no step.
  void input_gradient(int me, int threads, S* dx, bool add) const {
    const int64_t rows = Base::real_rows;
    long_product<S>(column_rows(C::first_input_column), weight_ih, input_panels(), (const S*)nullptr,
                    {dx, D, Base::real}, share(rows, me, threads), share(rows, me + 1, threads), add);
    if (!Base::real || add) return;
    for (int64_t b = me; b < B; b += threads)
      for (int64_t t = Base::length(b); t < T; t++) memset(dx + (Base::offset(t) + Base::at(b)) * D, 0, D * sizeof(S));
  }
  void gradients(int me, int threads, void* dx, bool add) const {
    if (dx) input_gradient(me, threads, (S*)dx, add);
    weights(me, threads);
    cell_weights(me, threads);
  }
};

}  // namespace RNNKIT_ISA
