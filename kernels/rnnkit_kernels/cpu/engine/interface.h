// What Python hands over. `library.cpp` is compiled once for any processor; it finds out which
// instruction set the one at hand has, and calls the engine that was compiled for it.
#pragma once
#include <stddef.h>
#include <stdint.h>

// One direction of one layer. Rows are those of `Rows` in Python; strides count elements from one
// row to the next. What is absent is null.
struct RnnkitLayer {
  int64_t steps, batch, features, hidden, outputs;  // T, B, D, H and P, the width of y
  int64_t rows;                                     // N
  int64_t reverse, save;
  // Where sequences have several lengths, either the rows of each step, (T,), sorted by length, or
  // the lengths themselves, (B,), in any order, of T·B rows; else null.
  const int64_t *batch_sizes, *offsets, *lengths;
  const void *x;                         // (N, D)
  const void *weight_ih, *weight_hh, *bias_ih, *bias_hh;  // (G·H, D), (G·H, P), (G·H,)
  const void *weight_hr, *cell_weights;                   // (P, H), (W, H)
  const void *h0, *c0, *zoneout;                          // (B, P), (B, H), (N, Z, H)
  void *y, *h_n, *c_n, *saved, *states;  // (N, P), (B, P), (B, H), (N, S, H), (N, slots, H)
  const void *dy, *dh_n, *dc_n;          // gradients of y, h_n and c_n
  void *d_weight_ih, *d_weight_hh, *d_bias_ih, *d_bias_hh, *d_weight_hr, *d_cell_weights;
  void *d_h0, *d_c0;
  void *d_hidden, *d_cell;  // of the state after every step, (N, P) and (N, H), or null
  int64_t x_stride, y_stride, saved_stride, states_stride, zoneout_stride, dy_stride;
  int64_t d_hidden_stride, d_cell_stride;
};

// One call: all directions of a layer, which share x.
struct RnnkitCall {
  int64_t cell, size;  // index in the library's list of cells; bytes of a number, 4 or 8
  int64_t threads, members;
  int64_t split;  // 0: threads take rows, and never wait; 1: they take units, and meet every step
  void *dx;       // (N, D), or null where nobody asks
  RnnkitLayer layer[2];  // as many as there are members
};

typedef void (*RnnkitWork)(void* data, int me, int count);

// What an engine gets from `library.cpp`.
struct RnnkitHost {
  void (*run)(RnnkitWork work, void* data, int threads);  // returns when all are done
  void (*give_way)();                                      // to another thread
  void* (*room)(size_t bytes);  // of this thread until its next call; null if there is none
};

struct RnnkitEngine {
  const char* name;
  int (*supported)();
  int (*forward)(const RnnkitCall*, const RnnkitHost*);  // 0, or 1: memory ran out
  int (*backward)(const RnnkitCall*, const RnnkitHost*);
  int (*activation)(int which, int size, const void* x, void* y, int64_t n);
  double (*exercise)(int what, const void* memory, int64_t bytes, int64_t passes);  // how much
};
