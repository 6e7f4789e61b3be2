// Products of a few rows with a panel of columns, whose sums stay in registers.
#pragma once
#include "lanes.h"

// Rows and vectors of columns that are summed together: as many as there are registers for.
constexpr int ROWS = 6, VECTORS = VECTOR_BYTES == 64 ? 4 : 2;
// Columns that a panel of weights keeps side by side, as `matrix.py` packs them.
constexpr int64_t PANEL = 64;

template <class A, int COUNT> struct Tile {
  using V = typename Lanes<A>::V;
  V sums[ROWS][COUNT];

  // sums[r] += rows[r][k * step] * columns[k * pitch ...] over k < depth.
  inline void add(const A *const *rows, int64_t step, const A *columns, int64_t pitch,
                  int64_t depth) {
    V s[ROWS][COUNT];
    std::memcpy(s, sums, sizeof s);
    for (int64_t k = 0; k < depth; k++) {
      V column[COUNT];
#pragma GCC unroll 4
      for (int i = 0; i < COUNT; i++)
        column[i] = fetched<V>(columns + k * pitch + i * Lanes<A>::WIDTH);
#pragma GCC unroll 6
      for (int r = 0; r < ROWS; r++) {
        const A value = rows[r][k * step];
#pragma GCC unroll 4
        for (int i = 0; i < COUNT; i++) s[r][i] += value * column[i];
      }
    }
    std::memcpy(sums, s, sizeof s);
  }
};

// Calls `work(at, n, tile)` for `size` columns, as many at a time as a tile holds; n <= its columns.
template <class A, class F> inline void each_tile(int64_t size, F &&work) {
  constexpr int64_t WIDTH = Lanes<A>::WIDTH;
  for (int64_t at = 0; at < size;) {
    const int64_t left = size - at;
    const int64_t vectors = std::min<int64_t>(VECTORS, (left + WIDTH - 1) / WIDTH);
    const int64_t n = std::min(left, vectors * WIDTH);
    if (vectors == 1) work(at, n, Tile<A, 1>());
    else if (vectors == 2) work(at, n, Tile<A, 2>());
    else work(at, n, Tile<A, VECTORS>());
    at += n;
  }
}

// Stores the first n columns of a row's sums.
template <class A, int COUNT, class S>
inline void store_row(const Tile<A, COUNT> &tile, int r, int64_t n, S *to) {
  constexpr int64_t WIDTH = Lanes<A>::WIDTH;
  for (int64_t i = 0; i < COUNT; i++) {
    const int64_t left = n - i * WIDTH;
    if (left >= WIDTH) store_some<true, A>(to + i * WIDTH, tile.sums[r][i], WIDTH);
    else if (left > 0) store_some<false, A>(to + i * WIDTH, tile.sums[r][i], left);
  }
}

// to[rows, n] = from[rows, depth] times panels [ceil(n / PANEL)][depth][PANEL].
template <class S, class A>
inline void multiply_panels(const A *from, int64_t pitch_from, int64_t rows, int64_t depth,
                            const A *panels, int64_t columns, S *to, int64_t pitch_to) {
  for (int64_t c0 = 0; c0 < columns; c0 += PANEL) {
    const A *panel = panels + c0 * depth;
    each_tile<A>(std::min(PANEL, columns - c0), [&](int64_t at, int64_t n, auto tile) {
      for (int64_t row = 0; row < rows; row += ROWS) {
        const A *lines[ROWS];
        for (int64_t r = 0; r < ROWS; r++)
          lines[r] = from + std::min(row + r, rows - 1) * pitch_from;
        auto sums = tile;
        std::memset(&sums, 0, sizeof sums);
        sums.add(lines, 1, panel + at, PANEL, depth);
        for (int64_t r = 0; r < std::min<int64_t>(ROWS, rows - row); r++)
          store_row(sums, int(r), n, to + (row + r) * pitch_to + c0 + at);
      }
    });
  }
}
