// Dense products of rows: 1x1 convolutions of gradients.
//
// Rows are widened a few at a time, where they are used. Right operands are panels of PANEL columns.
#include "matrix.h"

namespace {

constexpr int64_t GROUP_ROWS = 96; // that share a panel in cache

template <class S, class A>
inline void widen_rows(const S *from, int64_t rows, int64_t width, A *to, int64_t pitch) {
  for (int64_t row = 0; row < rows; row++)
    each_vector<A>(width, [&](int64_t at, int64_t n, auto full) {
      constexpr bool FULL = decltype(full)::value;
      const auto v = load_some<FULL, A>(from + row * width + at, n);
      store_some<FULL, A>(to + row * pitch + at, v, n);
    });
}

template <class S, class A>
void multiply(int64_t rows, int64_t depth, int64_t columns, const S *x, const A *panels, S *out,
              int threads) {
  const int64_t groups = (rows + GROUP_ROWS - 1) / GROUP_ROWS;
#pragma omp parallel num_threads(threads)
  {
    std::vector<A> wide(size_t(GROUP_ROWS * depth));
#pragma omp for schedule(static)
    for (int64_t g = 0; g < groups; g++) {
      const int64_t first = g * GROUP_ROWS, count = std::min(GROUP_ROWS, rows - first);
      widen_rows(x + first * depth, count, depth, wide.data(), depth);
      multiply_panels(wide.data(), depth, count, depth, panels, columns, out + first * columns,
                      columns);
    }
  }
}

} // namespace

#define KERNELS(S, A, NAME)                                                                        \
  extern "C" void multiply_##NAME(int64_t rows, int64_t depth, int64_t columns, const S *x,        \
                                  const A *panels, S *out, int threads) {                          \
    multiply<S, A>(rows, depth, columns, x, panels, out, threads);                                 \
  }

KERNELS(float, float, f32)
KERNELS(double, double, f64)
KERNELS(Bf16, float, bf16)
