// The cells, printed from cells/*.py by `python -m rnnkit_kernels.cpu.build --header`. Not to be
// changed by hand: tests/kernels/cpu/test_printing.py compares it with what would be printed now.
#pragma once
#if defined(RNNKIT_ISA)
#include "two.h"

namespace RNNKIT_ISA {

struct lstm {
  static constexpr int stages = 1;
  static constexpr int gates_at[] = {0, 4};
  static constexpr int saved_at[] = {0, 4};
  static constexpr int columns_at[] = {0, 4};
  static constexpr int input_columns[] = {0, 1, 2, 3};
  static constexpr int gate_of_column[] = {0, 1, 2, 3};
  static constexpr int first_input_column = 0, weights = 0;
  static constexpr int carry_hidden = -1, carry_cell = 0;
  static constexpr bool has_cell_state = true;
  // Whether W_ih x may lie where the saved values will: each gate is read before.
  static constexpr bool gates_fit_saved = true;
  // Whether a stage needs W_ih x and W_hh h each by itself, and not their sum.
  static constexpr bool apart[] = {false};
  template <int stage, class V> INLINE void forward(const V* x, const V* h, const V* saved, const V* state, const V* weights, V* kept, V* result) {
    if constexpr (stage == 0) {
      const V t0 = x[0];
      const V t1 = x[1];
      const V t2 = x[2];
      const V t3 = x[3];
      const V t4 = h[0];
      const V t5 = h[1];
      const V t6 = h[2];
      const V t7 = h[3];
      const V t9 = state[1];
      const V t10 = t0 + t4;
      const V t11 = sigmoid(t10);
      const V t12 = t1 + t5;
      const V t13 = sigmoid(t12);
      const V t14 = t2 + t6;
      const V t15 = tanh(t14);
      const V t16 = t3 + t7;
      const V t17 = sigmoid(t16);
      const V t18 = t13 * t9;
      const V t19 = t11 * t15;
      const V t20 = t18 + t19;
      const V t21 = tanh(t20);
      const V t22 = t17 * t21;
      kept[0] = t11;
      kept[1] = t13;
      kept[2] = t15;
      kept[3] = t17;
      result[0] = t22;
      result[1] = t20;
    }
  }
  template <int stage, class V> INLINE void backward(const V* saved, const V* before, const V* after, V gradient, const V* carry, const V* weights, V* columns, V* carried) {
    if constexpr (stage == 0) {
      const V t0 = saved[0];
      const V t1 = saved[1];
      const V t2 = saved[2];
      const V t3 = saved[3];
      const V t5 = before[1];
      const V t7 = after[1];
      const V t8 = gradient;
      const V t9 = carry[0];
      const V t10 = tanh(t7);
      const V t11 = t8 * t3;
      const V t12 = t10 * t10;
      const V t13 = number<V>(1.0) - t12;
      const V t14 = t11 * t13;
      const V t15 = t9 + t14;
      const V t16 = t15 * t2;
      const V t17 = t16 * t0;
      const V t18 = number<V>(1.0) - t0;
      const V t19 = t17 * t18;
      const V t20 = t15 * t5;
      const V t21 = t20 * t1;
      const V t22 = number<V>(1.0) - t1;
      const V t23 = t21 * t22;
      const V t24 = t15 * t0;
      const V t25 = t2 * t2;
      const V t26 = number<V>(1.0) - t25;
      const V t27 = t24 * t26;
      const V t28 = t8 * t10;
      const V t29 = t28 * t3;
      const V t30 = number<V>(1.0) - t3;
      const V t31 = t29 * t30;
      const V t32 = t15 * t1;
      columns[0] = t19;
      columns[1] = t23;
      columns[2] = t27;
      columns[3] = t31;
      carried[0] = t32;
    }
  }
};

struct lstm_peephole {
  static constexpr int stages = 1;
  static constexpr int gates_at[] = {0, 4};
  static constexpr int saved_at[] = {0, 4};
  static constexpr int columns_at[] = {0, 4};
  static constexpr int input_columns[] = {0, 1, 2, 3};
  static constexpr int gate_of_column[] = {0, 1, 2, 3};
  static constexpr int first_input_column = 0, weights = 3;
  static constexpr int carry_hidden = -1, carry_cell = 0;
  static constexpr bool has_cell_state = true;
  // Whether W_ih x may lie where the saved values will: each gate is read before.
  static constexpr bool gates_fit_saved = true;
  // Whether a stage needs W_ih x and W_hh h each by itself, and not their sum.
  static constexpr bool apart[] = {false};
  template <int stage, class V> INLINE void forward(const V* x, const V* h, const V* saved, const V* state, const V* weights, V* kept, V* result) {
    if constexpr (stage == 0) {
      const V t0 = x[0];
      const V t1 = x[1];
      const V t2 = x[2];
      const V t3 = x[3];
      const V t4 = h[0];
      const V t5 = h[1];
      const V t6 = h[2];
      const V t7 = h[3];
      const V t9 = state[1];
      const V t10 = weights[0];
      const V t11 = weights[1];
      const V t12 = weights[2];
      const V t13 = t0 + t4;
      const V t14 = t10 * t9;
      const V t15 = t13 + t14;
      const V t16 = sigmoid(t15);
      const V t17 = t1 + t5;
      const V t18 = t11 * t9;
      const V t19 = t17 + t18;
      const V t20 = sigmoid(t19);
      const V t21 = t2 + t6;
      const V t22 = tanh(t21);
      const V t23 = t20 * t9;
      const V t24 = t16 * t22;
      const V t25 = t23 + t24;
      const V t26 = t3 + t7;
      const V t27 = t12 * t25;
      const V t28 = t26 + t27;
      const V t29 = sigmoid(t28);
      const V t30 = tanh(t25);
      const V t31 = t29 * t30;
      kept[0] = t16;
      kept[1] = t20;
      kept[2] = t22;
      kept[3] = t29;
      result[0] = t31;
      result[1] = t25;
    }
  }
  template <int stage, class V> INLINE void backward(const V* saved, const V* before, const V* after, V gradient, const V* carry, const V* weights, V* columns, V* carried) {
    if constexpr (stage == 0) {
      const V t0 = saved[0];
      const V t1 = saved[1];
      const V t2 = saved[2];
      const V t3 = saved[3];
      const V t5 = before[1];
      const V t7 = after[1];
      const V t8 = gradient;
      const V t9 = carry[0];
      const V t10 = weights[0];
      const V t11 = weights[1];
      const V t12 = weights[2];
      const V t13 = tanh(t7);
      const V t14 = t8 * t13;
      const V t15 = t14 * t3;
      const V t16 = number<V>(1.0) - t3;
      const V t17 = t15 * t16;
      const V t18 = t8 * t3;
      const V t19 = t13 * t13;
      const V t20 = number<V>(1.0) - t19;
      const V t21 = t18 * t20;
      const V t22 = t9 + t21;
      const V t23 = t17 * t12;
      const V t24 = t22 + t23;
      const V t25 = t24 * t2;
      const V t26 = t25 * t0;
      const V t27 = number<V>(1.0) - t0;
      const V t28 = t26 * t27;
      const V t29 = t24 * t5;
      const V t30 = t29 * t1;
      const V t31 = number<V>(1.0) - t1;
      const V t32 = t30 * t31;
      const V t33 = t24 * t0;
      const V t34 = t2 * t2;
      const V t35 = number<V>(1.0) - t34;
      const V t36 = t33 * t35;
      const V t37 = t24 * t1;
      const V t38 = t28 * t10;
      const V t39 = t37 + t38;
      const V t40 = t32 * t11;
      const V t41 = t39 + t40;
      columns[0] = t28;
      columns[1] = t32;
      columns[2] = t36;
      columns[3] = t17;
      carried[0] = t41;
    }
  }
  template <class V> INLINE void weight_gradients(const V* columns, const V* before, const V* after, V* values) {
    const V t0 = columns[0];
    const V t1 = columns[1];
    const V t3 = columns[3];
    const V t5 = before[1];
    const V t7 = after[1];
    const V t8 = t0 * t5;
    const V t9 = t1 * t5;
    const V t10 = t3 * t7;
    values[0] = t8;
    values[1] = t9;
    values[2] = t10;
  }
};

struct lstm_coupled {
  static constexpr int stages = 1;
  static constexpr int gates_at[] = {0, 3};
  static constexpr int saved_at[] = {0, 3};
  static constexpr int columns_at[] = {0, 3};
  static constexpr int input_columns[] = {0, 1, 2};
  static constexpr int gate_of_column[] = {0, 1, 2};
  static constexpr int first_input_column = 0, weights = 0;
  static constexpr int carry_hidden = -1, carry_cell = 0;
  static constexpr bool has_cell_state = true;
  // Whether W_ih x may lie where the saved values will: each gate is read before.
  static constexpr bool gates_fit_saved = true;
  // Whether a stage needs W_ih x and W_hh h each by itself, and not their sum.
  static constexpr bool apart[] = {false};
  template <int stage, class V> INLINE void forward(const V* x, const V* h, const V* saved, const V* state, const V* weights, V* kept, V* result) {
    if constexpr (stage == 0) {
      const V t0 = x[0];
      const V t1 = x[1];
      const V t2 = x[2];
      const V t3 = h[0];
      const V t4 = h[1];
      const V t5 = h[2];
      const V t7 = state[1];
      const V t8 = t0 + t3;
      const V t9 = sigmoid(t8);
      const V t10 = t1 + t4;
      const V t11 = tanh(t10);
      const V t12 = t9 * t7;
      const V t13 = number<V>(1.0) - t9;
      const V t14 = t13 * t11;
      const V t15 = t12 + t14;
      const V t16 = t2 + t5;
      const V t17 = sigmoid(t16);
      const V t18 = tanh(t15);
      const V t19 = t17 * t18;
      kept[0] = t9;
      kept[1] = t11;
      kept[2] = t17;
      result[0] = t19;
      result[1] = t15;
    }
  }
  template <int stage, class V> INLINE void backward(const V* saved, const V* before, const V* after, V gradient, const V* carry, const V* weights, V* columns, V* carried) {
    if constexpr (stage == 0) {
      const V t0 = saved[0];
      const V t1 = saved[1];
      const V t2 = saved[2];
      const V t4 = before[1];
      const V t6 = after[1];
      const V t7 = gradient;
      const V t8 = carry[0];
      const V t9 = tanh(t6);
      const V t10 = t7 * t9;
      const V t11 = t10 * t2;
      const V t12 = number<V>(1.0) - t2;
      const V t13 = t11 * t12;
      const V t14 = t7 * t2;
      const V t15 = t9 * t9;
      const V t16 = number<V>(1.0) - t15;
      const V t17 = t14 * t16;
      const V t18 = t8 + t17;
      const V t19 = t4 - t1;
      const V t20 = t18 * t19;
      const V t21 = t20 * t0;
      const V t22 = number<V>(1.0) - t0;
      const V t23 = t21 * t22;
      const V t24 = t18 * t22;
      const V t25 = t1 * t1;
      const V t26 = number<V>(1.0) - t25;
      const V t27 = t24 * t26;
      const V t28 = t18 * t0;
      columns[0] = t23;
      columns[1] = t27;
      columns[2] = t13;
      carried[0] = t28;
    }
  }
};

struct lstm_coupled_peephole {
  static constexpr int stages = 1;
  static constexpr int gates_at[] = {0, 3};
  static constexpr int saved_at[] = {0, 3};
  static constexpr int columns_at[] = {0, 3};
  static constexpr int input_columns[] = {0, 1, 2};
  static constexpr int gate_of_column[] = {0, 1, 2};
  static constexpr int first_input_column = 0, weights = 2;
  static constexpr int carry_hidden = -1, carry_cell = 0;
  static constexpr bool has_cell_state = true;
  // Whether W_ih x may lie where the saved values will: each gate is read before.
  static constexpr bool gates_fit_saved = true;
  // Whether a stage needs W_ih x and W_hh h each by itself, and not their sum.
  static constexpr bool apart[] = {false};
  template <int stage, class V> INLINE void forward(const V* x, const V* h, const V* saved, const V* state, const V* weights, V* kept, V* result) {
    if constexpr (stage == 0) {
      const V t0 = x[0];
      const V t1 = x[1];
      const V t2 = x[2];
      const V t3 = h[0];
      const V t4 = h[1];
      const V t5 = h[2];
      const V t7 = state[1];
      const V t8 = weights[0];
      const V t9 = weights[1];
      const V t10 = t0 + t3;
      const V t11 = t8 * t7;
      const V t12 = t10 + t11;
      const V t13 = sigmoid(t12);
      const V t14 = t1 + t4;
      const V t15 = tanh(t14);
      const V t16 = t13 * t7;
      const V t17 = number<V>(1.0) - t13;
      const V t18 = t17 * t15;
      const V t19 = t16 + t18;
      const V t20 = t2 + t5;
      const V t21 = t9 * t19;
      const V t22 = t20 + t21;
      const V t23 = sigmoid(t22);
      const V t24 = tanh(t19);
      const V t25 = t23 * t24;
      kept[0] = t13;
      kept[1] = t15;
      kept[2] = t23;
      result[0] = t25;
      result[1] = t19;
    }
  }
  template <int stage, class V> INLINE void backward(const V* saved, const V* before, const V* after, V gradient, const V* carry, const V* weights, V* columns, V* carried) {
    if constexpr (stage == 0) {
      const V t0 = saved[0];
      const V t1 = saved[1];
      const V t2 = saved[2];
      const V t4 = before[1];
      const V t6 = after[1];
      const V t7 = gradient;
      const V t8 = carry[0];
      const V t9 = weights[0];
      const V t10 = weights[1];
      const V t11 = tanh(t6);
      const V t12 = t7 * t11;
      const V t13 = t12 * t2;
      const V t14 = number<V>(1.0) - t2;
      const V t15 = t13 * t14;
      const V t16 = t7 * t2;
      const V t17 = t11 * t11;
      const V t18 = number<V>(1.0) - t17;
      const V t19 = t16 * t18;
      const V t20 = t8 + t19;
      const V t21 = t15 * t10;
      const V t22 = t20 + t21;
      const V t23 = t4 - t1;
      const V t24 = t22 * t23;
      const V t25 = t24 * t0;
      const V t26 = number<V>(1.0) - t0;
      const V t27 = t25 * t26;
      const V t28 = t22 * t26;
      const V t29 = t1 * t1;
      const V t30 = number<V>(1.0) - t29;
      const V t31 = t28 * t30;
      const V t32 = t22 * t0;
      const V t33 = t27 * t9;
      const V t34 = t32 + t33;
      columns[0] = t27;
      columns[1] = t31;
      columns[2] = t15;
      carried[0] = t34;
    }
  }
  template <class V> INLINE void weight_gradients(const V* columns, const V* before, const V* after, V* values) {
    const V t0 = columns[0];
    const V t2 = columns[2];
    const V t4 = before[1];
    const V t6 = after[1];
    const V t7 = t0 * t4;
    const V t8 = t2 * t6;
    values[0] = t7;
    values[1] = t8;
  }
};

struct gru {
  static constexpr int stages = 1;
  static constexpr int gates_at[] = {0, 3};
  static constexpr int saved_at[] = {0, 4};
  static constexpr int columns_at[] = {0, 4};
  static constexpr int input_columns[] = {1, 2, 0};
  static constexpr int gate_of_column[] = {2, 0, 1};
  static constexpr int first_input_column = 0, weights = 0;
  static constexpr int carry_hidden = 0, carry_cell = -1;
  static constexpr bool has_cell_state = false;
  // Whether W_ih x may lie where the saved values will: each gate is read before.
  static constexpr bool gates_fit_saved = true;
  // Whether a stage needs W_ih x and W_hh h each by itself, and not their sum.
  static constexpr bool apart[] = {true};
  template <int stage, class V> INLINE void forward(const V* x, const V* h, const V* saved, const V* state, const V* weights, V* kept, V* result) {
    if constexpr (stage == 0) {
      const V t0 = x[0];
      const V t1 = x[1];
      const V t2 = x[2];
      const V t3 = h[0];
      const V t4 = h[1];
      const V t5 = h[2];
      const V t6 = state[0];
      const V t7 = t0 + t3;
      const V t8 = sigmoid(t7);
      const V t9 = t1 + t4;
      const V t10 = sigmoid(t9);
      const V t11 = t8 * t5;
      const V t12 = t2 + t11;
      const V t13 = tanh(t12);
      const V t14 = t10 * t6;
      const V t15 = number<V>(1.0) - t10;
      const V t16 = t15 * t13;
      const V t17 = t14 + t16;
      kept[0] = t8;
      kept[1] = t10;
      kept[2] = t13;
      kept[3] = t5;
      result[0] = t17;
    }
  }
  template <int stage, class V> INLINE void backward(const V* saved, const V* before, const V* after, V gradient, const V* carry, const V* weights, V* columns, V* carried) {
    if constexpr (stage == 0) {
      const V t0 = saved[0];
      const V t1 = saved[1];
      const V t2 = saved[2];
      const V t3 = saved[3];
      const V t4 = before[0];
      const V t6 = gradient;
      const V t7 = carry[0];
      const V t8 = t6 + t7;
      const V t9 = number<V>(1.0) - t1;
      const V t10 = t8 * t9;
      const V t11 = t2 * t2;
      const V t12 = number<V>(1.0) - t11;
      const V t13 = t10 * t12;
      const V t14 = t13 * t3;
      const V t15 = t14 * t0;
      const V t16 = number<V>(1.0) - t0;
      const V t17 = t15 * t16;
      const V t18 = t4 - t2;
      const V t19 = t8 * t18;
      const V t20 = t19 * t1;
      const V t21 = t20 * t9;
      const V t22 = t13 * t0;
      const V t23 = t8 * t1;
      columns[0] = t13;
      columns[1] = t17;
      columns[2] = t21;
      columns[3] = t22;
      carried[0] = t23;
    }
  }
};

struct gru_reset_before {
  static constexpr int stages = 2;
  static constexpr int gates_at[] = {0, 2, 3};
  static constexpr int saved_at[] = {0, 2, 3};
  static constexpr int columns_at[] = {0, 1, 3};
  static constexpr int input_columns[] = {0, 1, 2};
  static constexpr int gate_of_column[] = {0, 1, 2};
  static constexpr int first_input_column = 0, weights = 0;
  static constexpr int carry_hidden = 0, carry_cell = -1;
  static constexpr bool has_cell_state = false;
  // Whether W_ih x may lie where the saved values will: each gate is read before.
  static constexpr bool gates_fit_saved = true;
  // Whether a stage needs W_ih x and W_hh h each by itself, and not their sum.
  static constexpr bool apart[] = {false, false};
  template <int stage, class V> INLINE void forward(const V* x, const V* h, const V* saved, const V* state, const V* weights, V* kept, V* result) {
    if constexpr (stage == 0) {
      const V t0 = x[0];
      const V t1 = x[1];
      const V t2 = h[0];
      const V t3 = h[1];
      const V t4 = state[0];
      const V t5 = t0 + t2;
      const V t6 = sigmoid(t5);
      const V t7 = t1 + t3;
      const V t8 = sigmoid(t7);
      const V t9 = t6 * t4;
      kept[0] = t6;
      kept[1] = t8;
      result[0] = t9;
    }
    if constexpr (stage == 1) {
      const V t0 = x[0];
      const V t1 = h[0];
      const V t3 = saved[1];
      const V t4 = state[0];
      const V t5 = t0 + t1;
      const V t6 = tanh(t5);
      const V t7 = t3 * t4;
      const V t8 = number<V>(1.0) - t3;
      const V t9 = t8 * t6;
      const V t10 = t7 + t9;
      kept[0] = t6;
      result[0] = t10;
    }
  }
  template <int stage, class V> INLINE void backward(const V* saved, const V* before, const V* after, V gradient, const V* carry, const V* weights, V* columns, V* carried) {
    if constexpr (stage == 0) {
      const V t0 = saved[0];
      const V t3 = before[0];
      const V t5 = gradient;
      const V t6 = carry[0];
      const V t7 = t5 * t3;
      const V t8 = t7 * t0;
      const V t9 = number<V>(1.0) - t0;
      const V t10 = t8 * t9;
      const V t11 = t5 * t0;
      const V t12 = t6 + t11;
      columns[0] = t10;
      carried[0] = t12;
    }
    if constexpr (stage == 1) {
      const V t1 = saved[1];
      const V t2 = saved[2];
      const V t3 = before[0];
      const V t5 = gradient;
      const V t6 = carry[0];
      const V t7 = t5 + t6;
      const V t8 = t3 - t2;
      const V t9 = t7 * t8;
      const V t10 = t9 * t1;
      const V t11 = number<V>(1.0) - t1;
      const V t12 = t10 * t11;
      const V t13 = t7 * t11;
      const V t14 = t2 * t2;
      const V t15 = number<V>(1.0) - t14;
      const V t16 = t13 * t15;
      const V t17 = t7 * t1;
      columns[0] = t12;
      columns[1] = t16;
      carried[0] = t17;
    }
  }
  template <class V> INLINE V operand(const V* saved, V hidden) {
    const V t0 = saved[0];
    const V t3 = hidden;
    const V t4 = t0 * t3;
    return t4;
  }
};

struct rnn_tanh {
  static constexpr int stages = 1;
  static constexpr int gates_at[] = {0, 1};
  static constexpr int saved_at[] = {0, 0};
  static constexpr int columns_at[] = {0, 1};
  static constexpr int input_columns[] = {0};
  static constexpr int gate_of_column[] = {0};
  static constexpr int first_input_column = 0, weights = 0;
  static constexpr int carry_hidden = -1, carry_cell = -1;
  static constexpr bool has_cell_state = false;
  // Whether W_ih x may lie where the saved values will: each gate is read before.
  static constexpr bool gates_fit_saved = false;
  // Whether a stage needs W_ih x and W_hh h each by itself, and not their sum.
  static constexpr bool apart[] = {false};
  template <int stage, class V> INLINE void forward(const V* x, const V* h, const V* saved, const V* state, const V* weights, V* kept, V* result) {
    if constexpr (stage == 0) {
      const V t0 = x[0];
      const V t1 = h[0];
      const V t3 = t0 + t1;
      const V t4 = tanh(t3);
      result[0] = t4;
    }
  }
  template <int stage, class V> INLINE void backward(const V* saved, const V* before, const V* after, V gradient, const V* carry, const V* weights, V* columns, V* carried) {
    if constexpr (stage == 0) {
      const V t1 = after[0];
      const V t2 = gradient;
      const V t3 = t1 * t1;
      const V t4 = number<V>(1.0) - t3;
      const V t5 = t2 * t4;
      columns[0] = t5;
    }
  }
};

struct rnn_relu {
  static constexpr int stages = 1;
  static constexpr int gates_at[] = {0, 1};
  static constexpr int saved_at[] = {0, 0};
  static constexpr int columns_at[] = {0, 1};
  static constexpr int input_columns[] = {0};
  static constexpr int gate_of_column[] = {0};
  static constexpr int first_input_column = 0, weights = 0;
  static constexpr int carry_hidden = -1, carry_cell = -1;
  static constexpr bool has_cell_state = false;
  // Whether W_ih x may lie where the saved values will: each gate is read before.
  static constexpr bool gates_fit_saved = false;
  // Whether a stage needs W_ih x and W_hh h each by itself, and not their sum.
  static constexpr bool apart[] = {false};
  template <int stage, class V> INLINE void forward(const V* x, const V* h, const V* saved, const V* state, const V* weights, V* kept, V* result) {
    if constexpr (stage == 0) {
      const V t0 = x[0];
      const V t1 = h[0];
      const V t3 = t0 + t1;
      const V t4 = relu(t3);
      result[0] = t4;
    }
  }
  template <int stage, class V> INLINE void backward(const V* saved, const V* before, const V* after, V gradient, const V* carry, const V* weights, V* columns, V* carried) {
    if constexpr (stage == 0) {
      const V t1 = after[0];
      const V t2 = gradient;
      const V t3 = greater(t1, number<V>(0.0));
      const V t4 = t2 * t3;
      columns[0] = t4;
    }
  }
};

struct gru_residual {
  static constexpr int stages = 1;
  static constexpr int gates_at[] = {0, 3};
  static constexpr int saved_at[] = {0, 4};
  static constexpr int columns_at[] = {0, 4};
  static constexpr int input_columns[] = {1, 2, 0};
  static constexpr int gate_of_column[] = {2, 0, 1};
  static constexpr int first_input_column = 0, weights = 0;
  static constexpr int carry_hidden = 0, carry_cell = -1;
  static constexpr bool has_cell_state = false;
  // Whether W_ih x may lie where the saved values will: each gate is read before.
  static constexpr bool gates_fit_saved = true;
  // Whether a stage needs W_ih x and W_hh h each by itself, and not their sum.
  static constexpr bool apart[] = {true};
  template <int stage, class V> INLINE void forward(const V* x, const V* h, const V* saved, const V* state, const V* weights, V* kept, V* result) {
    if constexpr (stage == 0) {
      const V t0 = x[0];
      const V t1 = x[1];
      const V t2 = x[2];
      const V t3 = h[0];
      const V t4 = h[1];
      const V t5 = h[2];
      const V t6 = state[0];
      const V t7 = t0 + t3;
      const V t8 = sigmoid(t7);
      const V t9 = t1 + t4;
      const V t10 = sigmoid(t9);
      const V t11 = t8 * t5;
      const V t12 = t2 + t11;
      const V t13 = tanh(t12);
      const V t14 = t10 * t6;
      const V t15 = number<V>(1.0) - t10;
      const V t16 = t15 * t13;
      const V t17 = t14 + t16;
      const V t18 = t17 + t6;
      kept[0] = t8;
      kept[1] = t10;
      kept[2] = t13;
      kept[3] = t5;
      result[0] = t18;
    }
  }
  template <int stage, class V> INLINE void backward(const V* saved, const V* before, const V* after, V gradient, const V* carry, const V* weights, V* columns, V* carried) {
    if constexpr (stage == 0) {
      const V t0 = saved[0];
      const V t1 = saved[1];
      const V t2 = saved[2];
      const V t3 = saved[3];
      const V t4 = before[0];
      const V t6 = gradient;
      const V t7 = carry[0];
      const V t8 = t6 + t7;
      const V t9 = number<V>(1.0) - t1;
      const V t10 = t8 * t9;
      const V t11 = t2 * t2;
      const V t12 = number<V>(1.0) - t11;
      const V t13 = t10 * t12;
      const V t14 = t13 * t3;
      const V t15 = t14 * t0;
      const V t16 = number<V>(1.0) - t0;
      const V t17 = t15 * t16;
      const V t18 = t4 - t2;
      const V t19 = t8 * t18;
      const V t20 = t19 * t1;
      const V t21 = t20 * t9;
      const V t22 = t13 * t0;
      const V t23 = t8 * t1;
      const V t24 = t23 + t8;
      columns[0] = t13;
      columns[1] = t17;
      columns[2] = t21;
      columns[3] = t22;
      carried[0] = t24;
    }
  }
};

struct rnn_tanh_residual {
  static constexpr int stages = 1;
  static constexpr int gates_at[] = {0, 1};
  static constexpr int saved_at[] = {0, 1};
  static constexpr int columns_at[] = {0, 1};
  static constexpr int input_columns[] = {0};
  static constexpr int gate_of_column[] = {0};
  static constexpr int first_input_column = 0, weights = 0;
  static constexpr int carry_hidden = 0, carry_cell = -1;
  static constexpr bool has_cell_state = false;
  // Whether W_ih x may lie where the saved values will: each gate is read before.
  static constexpr bool gates_fit_saved = true;
  // Whether a stage needs W_ih x and W_hh h each by itself, and not their sum.
  static constexpr bool apart[] = {false};
  template <int stage, class V> INLINE void forward(const V* x, const V* h, const V* saved, const V* state, const V* weights, V* kept, V* result) {
    if constexpr (stage == 0) {
      const V t0 = x[0];
      const V t1 = h[0];
      const V t2 = state[0];
      const V t3 = t0 + t1;
      const V t4 = tanh(t3);
      const V t5 = t2 + t4;
      kept[0] = t4;
      result[0] = t5;
    }
  }
  template <int stage, class V> INLINE void backward(const V* saved, const V* before, const V* after, V gradient, const V* carry, const V* weights, V* columns, V* carried) {
    if constexpr (stage == 0) {
      const V t0 = saved[0];
      const V t3 = gradient;
      const V t4 = carry[0];
      const V t5 = t3 + t4;
      const V t6 = t0 * t0;
      const V t7 = number<V>(1.0) - t6;
      const V t8 = t5 * t7;
      columns[0] = t8;
      carried[0] = t5;
    }
  }
};

struct rnn_relu_residual {
  static constexpr int stages = 1;
  static constexpr int gates_at[] = {0, 1};
  static constexpr int saved_at[] = {0, 1};
  static constexpr int columns_at[] = {0, 1};
  static constexpr int input_columns[] = {0};
  static constexpr int gate_of_column[] = {0};
  static constexpr int first_input_column = 0, weights = 0;
  static constexpr int carry_hidden = 0, carry_cell = -1;
  static constexpr bool has_cell_state = false;
  // Whether W_ih x may lie where the saved values will: each gate is read before.
  static constexpr bool gates_fit_saved = true;
  // Whether a stage needs W_ih x and W_hh h each by itself, and not their sum.
  static constexpr bool apart[] = {false};
  template <int stage, class V> INLINE void forward(const V* x, const V* h, const V* saved, const V* state, const V* weights, V* kept, V* result) {
    if constexpr (stage == 0) {
      const V t0 = x[0];
      const V t1 = h[0];
      const V t2 = state[0];
      const V t3 = t0 + t1;
      const V t4 = relu(t3);
      const V t5 = t2 + t4;
      kept[0] = t4;
      result[0] = t5;
    }
  }
  template <int stage, class V> INLINE void backward(const V* saved, const V* before, const V* after, V gradient, const V* carry, const V* weights, V* columns, V* carried) {
    if constexpr (stage == 0) {
      const V t0 = saved[0];
      const V t3 = gradient;
      const V t4 = carry[0];
      const V t5 = t3 + t4;
      const V t6 = greater(t0, number<V>(0.0));
      const V t7 = t5 * t6;
      columns[0] = t7;
      carried[0] = t5;
    }
  }
};

}  // namespace RNNKIT_ISA
#endif

#define RNNKIT_EACH_CELL(F) F(lstm) F(lstm_peephole) F(lstm_coupled) F(lstm_coupled_peephole) F(gru) F(gru_reset_before) F(rnn_tanh) F(rnn_relu) F(gru_residual) F(rnn_tanh_residual) F(rnn_relu_residual)
