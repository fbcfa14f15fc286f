// The one product: rows of A, as they lie, times weights that were packed for it.
//
// Packed weights come in panels. A panel holds, for each k, NV vectors of columns side by side, so
// that MR rows times NV vectors stay in registers while k runs. What a product adds to, `out`, is a
// small buffer in the first cache, from which the gate maths reads.
#pragma once
#include "vector.h"

namespace RNNKIT_ISA {

constexpr int MOST_VECTORS = 8;  // of a panel
// Vectors side by side in a tile: many, for a number of A is fetched once for all of them.
constexpr int WIDEST = REGISTERS == 32 ? 4 : 2;
// Rows at a time. Accumulators, a panel's vectors and one number must fit the registers.
constexpr int MOST_ROWS = REGISTERS == 32 ? 8 : 6;
constexpr int rows_at_once(int vectors) {
  if (REGISTERS == 16) return 6;
  return vectors == 4 ? 6 : 8;
}
// Sums longer than this are made of parts, for their rounding errors then grow more slowly.
constexpr int LONGEST_SUM = 512;

// Where the next panel is fetched from while this one is used: `step` bytes for each k.
struct Ahead { const char* at; int64_t step; };

// out[r][v] += sum over k of a[r][k] · w[k][v], or = where out is `fresh`. With APART > 1 the numbers of A lie packed: those of
// all rows for one k, then those for the next.
template <class S, int MR, int NV, int APART>
static void tile(const S* const* a, const S* w, int64_t K, S* out, int64_t out_stride, Ahead ahead, bool fresh) {
  using V = Vec<S>;
  constexpr int L = LANES<S>;
  const S* row[MR];
#pragma GCC unroll 16
  for (int r = 0; r < MR; r++) row[r] = APART == 1 ? a[r] : a[0] + r;
  // Few sums would wait for each other's additions: then k takes turns on two of each.
  constexpr int TURNS = MR * NV < 8 ? 2 : 1;
  V sums[TURNS][MR][NV];
#pragma GCC unroll 2
  for (int i = 0; i < TURNS; i++)
#pragma GCC unroll 16
    for (int r = 0; r < MR; r++)
#pragma GCC unroll 8
      for (int v = 0; v < NV; v++) sums[i][r][v] = V{};
  const auto add = [&](int64_t k, int i) INLINE_LAMBDA {
    V weights[NV];
#pragma GCC unroll 8
    for (int v = 0; v < NV; v++) weights[v] = load(w + v * L);
    w += NV * L;
#pragma GCC unroll 16
    for (int r = 0; r < MR; r++) {
      V x = all(row[r][k * APART]);
#pragma GCC unroll 8
      for (int v = 0; v < NV; v++) sums[i][r][v] += x * weights[v];
    }
    prefetch(ahead.at);
    ahead.at += ahead.step;
  };
  int64_t k = 0;
  if constexpr (TURNS == 2)
    for (; k + 1 < K; k += 2) {
      add(k, 0);
      add(k + 1, 1);
    }
  for (; k < K; k++) add(k, 0);
#pragma GCC unroll 16
  for (int r = 0; r < MR; r++)
#pragma GCC unroll 8
    for (int v = 0; v < NV; v++) {
      S* to = out + r * out_stride + v * L;
      const V sum = TURNS == 2 ? sums[0][r][v] + sums[TURNS - 1][r][v] : sums[0][r][v];
      store(to, fresh ? sum : load(to) + sum);
    }
}

template <class S, int NV, int APART, int MR>
INLINE void tile_of(int rows, const S* const* a, const S* w, int64_t K, S* out, int64_t stride, Ahead ahead, bool fresh) {
  if constexpr (MR > 0) {
    if (rows == MR)
      tile<S, MR, NV, APART>(a, w, K, out, stride, ahead, fresh);
    else
      tile_of<S, NV, APART, MR - 1>(rows, a, w, K, out, stride, ahead, fresh);
  }
}

template <class S, int NV>
INLINE void narrow(int rows, const S* const* a, const S* w, int64_t K, S* out, int64_t stride, Ahead ahead, bool fresh) {
  tile_of<S, NV, 1, rows_at_once(NV)>(rows, a, w, K, out, stride, ahead, fresh);
}

template <class S>
INLINE void tiles(int wide, int rows, const S* const* a, const S* w, int64_t K, S* out, int64_t stride, Ahead ahead, bool fresh) {
  switch (wide) {
    case 1: return narrow<S, 1>(rows, a, w, K, out, stride, ahead, fresh);
    case 2: return narrow<S, 2>(rows, a, w, K, out, stride, ahead, fresh);
  }
  if constexpr (WIDEST > 2) switch (wide) {
    case 3: return narrow<S, 3>(rows, a, w, K, out, stride, ahead, fresh);
    case 4: return narrow<S, 4>(rows, a, w, K, out, stride, ahead, fresh);
  }
}

// out[r][v] (+)= a[r] · (the `vectors` packed vectors at w), for up to `rows_at_once` rows.
template <class S>
static void multiply(int rows, const S* const* a, const S* w, int64_t K, int vectors, S* out, int64_t stride, Ahead ahead, bool fresh) {
  constexpr int L = LANES<S>;
  if (vectors <= WIDEST && K <= LONGEST_SUM) return tiles<S>(vectors, rows, a, w, K, out, stride, ahead, fresh);
  for (int first = 0; first < vectors; first += WIDEST) {
    const int wide = vectors - first < WIDEST ? vectors - first : WIDEST;
    const S* part[MOST_ROWS];
    for (int r = 0; r < rows; r++) part[r] = a[r];
    for (int64_t from = 0; from < K; from += LONGEST_SUM) {
      const int64_t many = K - from < LONGEST_SUM ? K - from : LONGEST_SUM;
      tiles<S>(wide, rows, part, w, many, out + first * L, stride, ahead, fresh && from == 0);
      for (int r = 0; r < rows; r++) part[r] += many;
      ahead.at += many * ahead.step;
      w += many * wide * L;
    }
  }
}

// Which of `count` things, or the first of them, part `me` of `parts` has.
INLINE int64_t share(int64_t count, int64_t me, int64_t parts) { return count * me / parts; }

// How units lie in panels, which are alike within one vector. `gates` vectors belong to every vector
// of units.
struct Panels {
  int64_t units, K;  // units in all, and how long a sum is
  int gates, lanes;
  int beside;  // the most vectors of units in a panel
  int64_t vectors, count;

  Panels(int64_t units, int64_t K, int gates, int lanes, int beside)
      : units(units), K(K), gates(gates), lanes(lanes), beside(beside),
        vectors((units + lanes - 1) / lanes), count((vectors + beside - 1) / beside) {}
  int64_t size() const { return vectors * lanes * gates * K; }
  int64_t first(int64_t panel) const { return share(vectors, panel, count); }  // vector of units
  int64_t unit(int64_t panel) const { return first(panel) * lanes; }
  int64_t offset(int64_t panel) const { return unit(panel) * gates * K; }
  int wide(int64_t panel) const { return (int)(first(panel + 1) - first(panel)); }
  int64_t longest() const { return beside * lanes * gates * K; }
  // Rows of a tile of this panel.
  int rows(int64_t panel) const {
    const int vectors = wide(panel) * gates;
    return rows_at_once(vectors < WIDEST ? vectors : WIDEST);
  }
};

// Panels of `gates` gates: as many vectors side by side as a tile takes.
template <class S> static Panels panels(int64_t units, int64_t K, int gates) {
  int beside = 1;
  while (gates * (beside + 1) <= WIDEST) beside++;
  if (REGISTERS == 16 && gates == 3) beside = 2;  // tiles are two vectors wide: three of them
  return {units, K, gates, LANES<S>, beside};
}

#if defined(__AVX512F__)
INLINE void transpose16(const float* from, int64_t apart, float* to, int64_t to_apart) {
  __m512 r[16], q[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; i++) r[i] = _mm512_loadu_ps(from + i * apart);
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) {
    q[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
    q[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    __m512d a = (__m512d)q[4 * i], b = (__m512d)q[4 * i + 1];
    __m512d c = (__m512d)q[4 * i + 2], d = (__m512d)q[4 * i + 3];
    r[4 * i] = (__m512)_mm512_unpacklo_pd(a, c);
    r[4 * i + 1] = (__m512)_mm512_unpackhi_pd(a, c);
    r[4 * i + 2] = (__m512)_mm512_unpacklo_pd(b, d);
    r[4 * i + 3] = (__m512)_mm512_unpackhi_pd(b, d);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    q[i] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88);
    q[i + 4] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xdd);
    q[i + 8] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88);
    q[i + 12] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xdd);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) {
    _mm512_storeu_ps(to + i * to_apart, _mm512_shuffle_f32x4(q[i], q[i + 8], 0x88));
    _mm512_storeu_ps(to + (i + 8) * to_apart, _mm512_shuffle_f32x4(q[i], q[i + 8], 0xdd));
  }
}
#endif

// The rows of a matrix, of all or of those in `index`: row i begins at `base + i · stride`, or where
// a table says.
template <class S> struct Lines {
  S* base;
  int64_t stride;
  const int64_t* index;
  S* const* table = nullptr;
  INLINE_MEMBER S* operator()(int64_t n) const {
    const int64_t row = index ? index[n] : n;
    return table ? table[row] : base + row * stride;
  }
};

// W (gates · units, K), for a product that sums over its columns.
template <class S>
static void pack_rows(const S* W, const Panels& shape, int64_t panel, S* packed) {
  constexpr int L = LANES<S>;
  const int64_t K = shape.K, first_unit = shape.unit(panel);
  const int vectors = shape.wide(panel) * shape.gates;
  for (int first = 0; first < vectors; first += WIDEST) {
    const int wide = vectors - first < WIDEST ? vectors - first : WIDEST;
    S* to = packed + shape.offset(panel) + (int64_t)first * K * L;
    for (int v = 0; v < wide; v++) {
      const int64_t gate = (first + v) % shape.gates;
      const int64_t unit = first_unit + (first + v) / shape.gates * L;
      const S* from = W + (gate * shape.units + unit) * K;
      const int64_t real = shape.units - unit < L ? shape.units - unit : L;
      int64_t k = 0;
#if defined(__AVX512F__)
      if constexpr (sizeof(S) == 4)
        if (real == L)
          for (; k + 16 <= K; k += 16) transpose16(from + k, K, to + (k * wide + v) * L, wide * L);
#endif
      for (; k < K; k++) {
        S* lane = to + (k * wide + v) * L;
        for (int64_t i = 0; i < L; i++) lane[i] = i < real ? from[i * K + k] : S(0);
      }
    }
  }
}

// W (K, units) whose row k starts at from(k), for a product that sums over its rows.
template <class S>
static void pack_columns(Lines<const S> from, const Panels& shape, int64_t panel, S* packed) {
  constexpr int L = LANES<S>;
  const int64_t first_unit = shape.unit(panel);
  const int vectors = shape.wide(panel);
  for (int first = 0; first < vectors; first += WIDEST) {
    const int wide = vectors - first < WIDEST ? vectors - first : WIDEST;
    S* to = packed + shape.offset(panel) + (int64_t)first * shape.K * L;
    const int64_t unit = first_unit + first * L;
    for (int64_t k = 0; k < shape.K; k++) {
      const S* row = from(k) + unit;
      for (int v = 0; v < wide; v++, to += L) {
        const int64_t left = shape.units - unit - v * L;
        store(to, load(row + v * L, left < L ? (int)left : L));
      }
    }
  }
}

constexpr int64_t SECOND_CACHE = 400000;  // bytes of rows that may stay there beside a panel

// Rows [first, last) of C (·, gates · units) (+)= A W^T [+ bias], W packed. `from` gives the rows of A,
// `to` those of C; a vector of gate g and unit u goes to column g · units + u.
template <class S>
static void long_product(Lines<const S> from, const S* packed, const Panels& shape, const S* bias, Lines<S> to, int64_t first, int64_t last, bool add) {
  constexpr int L = LANES<S>;
  int64_t together = SECOND_CACHE / (shape.K * (int64_t)sizeof(S) + 1);
  if (together < 24) together = 24;
  S out[MOST_ROWS * MOST_VECTORS * L];
  const int64_t panels = shape.count;
  for (int64_t begin = first; begin < last; begin += together) {
    const int64_t end = begin + together < last ? begin + together : last;
    for (int64_t panel = 0; panel < panels; panel++) {
      const int64_t blocks = (end - begin + shape.rows(panel) - 1) / shape.rows(panel);
      const int wide = shape.wide(panel), vectors = wide * shape.gates;
      const int64_t stride = (int64_t)vectors * L, unit = shape.unit(panel);
      const int64_t next = panel + 1 < panels ? panel + 1 : 0;
      const int64_t bytes = shape.longest() * sizeof(S);
      for (int64_t block = 0; block < blocks; block++) {
        const int64_t row = begin + share(end - begin, block, blocks);
        const int rows = (int)(begin + share(end - begin, block + 1, blocks) - row);
        const S* a[MOST_ROWS];
        for (int r = 0; r < rows; r++) a[r] = from(row + r);
        const Ahead ahead{(const char*)(packed + shape.offset(next)) + bytes / blocks / 64 * 64 * block,
                          (bytes / blocks / shape.K + 63) / 64 * 64};
        multiply(rows, a, packed + shape.offset(panel), shape.K, vectors, out, stride, ahead, true);
        for (int r = 0; r < rows; r++)
          for (int v = 0; v < vectors; v++) {
            const int64_t u = unit + v / shape.gates * L, left = shape.units - u;
            const int64_t column = v % shape.gates * shape.units + u;
            const int n = left < L ? (int)left : L;
            Vec<S> value = load(out + r * stride + v * L);
            if (bias) value += load(bias + column, n);
            if (add) value += load(to(row + r) + column, n);
            store(to(row + r) + column, value, n);
          }
      }
    }
  }
}

// One of the products A^T B that share A: C (columns, N), and the sums of A's columns, where asked.
template <class S> struct Beside {
  Lines<const S> right;  // the rows of B
  int64_t N;
  S *C, *sums;
};
constexpr int DEPTH = 160;                      // rows at a time: B's part stays in the first cache
constexpr int BROAD = REGISTERS == 32 ? 4 : 2;  // vectors of B in a tile
constexpr int TALL = rows_at_once(BROAD);       // columns of A in a tile
// They are copied eight at a time. What comes too many is written over by the next row, and after the
// last row of a tile there is room for it.
constexpr int COPIED = 8, TILE = DEPTH * TALL + COPIED - TALL;
static_assert(TALL <= COPIED, "a tile's columns are one copy");
template <class S> static int64_t transposed_room(int64_t columns) {
  return (columns / TALL + 1) * TILE + DEPTH * BROAD * LANES<S> + columns;
}
template <class S>
static void transposed_product(Lines<const S> left, int64_t columns, int64_t rows, const Beside<S>* products, int many_products, S* room) {
  constexpr int L = LANES<S>;
  const int64_t tiles = (columns + TALL - 1) / TALL;
  S* tall = room;                         // A in tiles: [tile][k][TALL]
  S* broad = tall + (columns / TALL + 1) * TILE;  // B: [k][vector]
  S* partial = broad + DEPTH * BROAD * L;
  const bool sums = products[0].sums;
  for (int64_t from = 0; from < rows; from += DEPTH) {
    const int64_t many = rows - from < DEPTH ? rows - from : DEPTH;
    if (sums) memset(partial, 0, columns * sizeof(S));
    for (int64_t k = 0; k < many; k++) {
      const S* row = left(from + k);
      for (int64_t m = 0; sums && m < columns; m += L) {
        const int n = columns - m < L ? (int)(columns - m) : L;
        store(partial + m, load(partial + m, n) + load(row + m, n), n);
      }
      int64_t t = 0;
      for (; t * TALL + COPIED <= columns; t++) memcpy(tall + t * TILE + k * TALL, row + t * TALL, COPIED * sizeof(S));
      for (; t < tiles; t++)
        for (int i = 0; i < TALL; i++) {
          const int64_t m = t * TALL + i;
          tall[t * TILE + k * TALL + i] = m < columns ? row[m] : S(0);
        }
    }
    for (int p = 0; p < many_products; p++) {
      const Beside<S>& product = products[p];
      const int64_t N = product.N;
      const Panels shape(N, 1, 1, L, BROAD);
      for (int64_t m = 0; product.sums && m < columns; m++)
        product.sums[m] = from ? product.sums[m] + partial[m] : partial[m];
      for (int64_t panel = 0; panel < shape.count; panel++) {
        const int64_t n = shape.unit(panel);
        const int wide = shape.wide(panel), end = N - n - (wide - 1) * L < L ? (int)(N - n - (wide - 1) * L) : L;
        for (int64_t k = 0; k < many; k++) {
          const S* row = product.right(from + k) + n;
          for (int v = 0; v < wide; v++) store(broad + (k * wide + v) * L, load(row + v * L, v + 1 < wide ? L : end));
        }
        for (int64_t t = 0; t < tiles; t++) {
          const int64_t m = t * TALL;
          const S* a = tall + t * TILE;
          const bool whole = end == L && m + TALL <= columns;  // the tile may write to C itself
          alignas(64) S out[TALL * BROAD * L];
          S* to = whole ? product.C + m * N + n : out;
          const int64_t stride = whole ? N : wide * L;
          const bool fresh = !whole || from == 0;
          const Ahead none{(const char*)a, 0};
          switch (wide) {
            case 1: tile<S, TALL, 1, TALL>(&a, broad, many, to, stride, none, fresh); break;
            case 2: tile<S, TALL, 2, TALL>(&a, broad, many, to, stride, none, fresh); break;
          }
          if constexpr (BROAD > 2) switch (wide) {
            case 3: tile<S, TALL, 3, TALL>(&a, broad, many, to, stride, none, fresh); break;
            case 4: tile<S, TALL, 4, TALL>(&a, broad, many, to, stride, none, fresh); break;
          }
          if (whole) continue;
          for (int r = 0; r < TALL && m + r < columns; r++)
            for (int v = 0; v < wide; v++) {
              S* at = product.C + (m + r) * N + n + v * L;
              const int some = v + 1 < wide ? L : end;
              Vec<S> value = load(out + r * stride + v * L);
              if (from) value += load(at, some);
              store(at, value, some);
            }
        }
      }
    }
  }
}

// to(r) = w · a[r] for R rows: what weights that are used once are worth, for they lie as they are.
template <class S, int R, class To> INLINE void dots_of(const S* w, const S* const* a, int64_t K, To to) {
  constexpr int L = LANES<S>, APART = R == 1 ? 4 : 2;  // sums that don't wait for each other
  Vec<S> sums[R][APART] = {};
  int64_t k = 0;
  for (; k + APART * L <= K; k += APART * L)
    for (int i = 0; i < APART; i++) {
      const Vec<S> weights = load(w + k + i * L);
      for (int r = 0; r < R; r++) sums[r][i] += weights * load(a[r] + k + i * L);
    }
  for (; k < K; k += L) {
    const int n = K - k < L ? (int)(K - k) : L;
    const Vec<S> weights = load(w + k, n);
    for (int r = 0; r < R; r++) sums[r][0] += weights * load(a[r] + k, n);
  }
  for (int r = 0; r < R; r++) {
    Vec<S> whole = sums[r][0] + sums[r][1];
    for (int i = 2; i < APART; i++) whole += sums[r][i];
    to(r, sum<S>(whole));
  }
}
constexpr int MOST_DOTS = 4;
template <class S, class To> INLINE void dots(int rows, const S* w, const S* const* a, int64_t K, To to) {
  switch (rows) {
    case 1: return dots_of<S, 1>(w, a, K, to);
    case 2: return dots_of<S, 2>(w, a, K, to);
    case 3: return dots_of<S, 3>(w, a, K, to);
    case 4: return dots_of<S, 4>(w, a, K, to);
  }
}

}  // namespace RNNKIT_ISA
