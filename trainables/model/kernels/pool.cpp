// Max-pooling 3x3 with padding 1 of spikes, or of batch-normalised currents, [images, H, W, C].
//
// The window's winner is the first largest value in reading order, as torch has it; which of the 9
// it was is kept as a byte.
#include "common.h"

namespace {

struct Grid {
  int64_t images, height, width, channels, stride;
  // Of so many written pixels.
  static Grid of_output(int64_t rows, int64_t height, int64_t width, int64_t channels,
                        int64_t stride) {
    Grid grid{0, height, width, channels, stride};
    grid.images = rows / (grid.out_height() * grid.out_width());
    return grid;
  }
  int64_t out_height() const { return (height - 1) / stride + 1; }
  int64_t out_width() const { return (width - 1) / stride + 1; }
};

template <class S, class A>
void pool(const S *x, const Grid &grid, const Affine<A> &norm, S *out, uint8_t *taps,
          int threads) {
  const A *scale_C = norm ? norm.scale() : nullptr, *shift_C = norm.shift();
  const int64_t oh = grid.out_height(), ow = grid.out_width(), n = grid.channels;
#pragma omp parallel num_threads(threads)
  {
    std::vector<A> best(static_cast<size_t>(n));
#pragma omp for schedule(static)
    for (int64_t line = 0; line < grid.images * oh; line++) {
      const int64_t image = line / oh, y = line % oh;
      for (int64_t column = 0; column < ow; column++) {
        const int64_t at = (line * ow + column) * n;
        A *value = best.data();
        uint8_t *tap = taps + at;
        std::fill(value, value + n, -INFINITY);
        std::fill(tap, tap + n, uint8_t(255));
        for (int k = 0; k < 9; k++) {
          const int64_t iy = y * grid.stride + k / 3 - 1, ix = column * grid.stride + k % 3 - 1;
          if (iy < 0 || iy >= grid.height || ix < 0 || ix >= grid.width) continue;
          const S *from = x + ((image * grid.height + iy) * grid.width + ix) * n;
          for (int64_t c = 0; c < n; c++) {
            const A z = scale_C ? A(load(from[c])) * scale_C[c] + shift_C[c] : A(load(from[c]));
            const bool wins = z > value[c] || z != z || tap[c] == 255;
            value[c] = wins ? z : value[c];
            tap[c] = wins ? uint8_t(k) : tap[c];
          }
        }
        for (int64_t c = 0; c < n; c++) store(out + at + c, value[c]);
      }
    }
  }
}

template <class S>
void pool_backward(const S *grad, const uint8_t *taps, const Grid &grid, S *grad_x, int threads) {
  using A = typename Wide<S>::type;
  const int64_t oh = grid.out_height(), ow = grid.out_width(), n = grid.channels;
#pragma omp parallel num_threads(threads)
  {
    std::vector<A> sums(static_cast<size_t>(n));
#pragma omp for schedule(static)
    for (int64_t line = 0; line < grid.images * grid.height; line++) {
      const int64_t image = line / grid.height, iy = line % grid.height;
      for (int64_t ix = 0; ix < grid.width; ix++) {
        std::fill(sums.begin(), sums.end(), A(0));
        for (int k = 0; k < 9; k++) {
          const int64_t y = iy + 1 - k / 3, x = ix + 1 - k % 3; // times stride
          if (y < 0 || x < 0 || y % grid.stride || x % grid.stride) continue;
          if (y / grid.stride >= oh || x / grid.stride >= ow) continue;
          const int64_t at = ((image * oh + y / grid.stride) * ow + x / grid.stride) * n;
          const uint8_t *tap = taps + at;
          const S *g = grad + at;
          for (int64_t c = 0; c < n; c++) sums[size_t(c)] += tap[c] == k ? load(g[c]) : A(0);
        }
        S *to = grad_x + (line * grid.width + ix) * n;
        for (int64_t c = 0; c < n; c++) store(to + c, sums[size_t(c)]);
      }
    }
  }
}

} // namespace

#define POOL(S, A, NAME)                                                                           \
  extern "C" void pool_##NAME(int64_t rows, int64_t channels, const S *x, int64_t height,          \
                              int64_t width, int64_t stride, const double *mean,                   \
                              const double *inverse, const A *weight, const A *bias, S *out,       \
                              uint8_t *taps, int threads) {                                        \
    pool<S, A>(x, Grid::of_output(rows, height, width, channels, stride),                          \
               Affine<A>(mean, inverse, weight, bias, channels), out, taps, threads);              \
  }
#define POOL_BACKWARD(S, NAME)                                                                     \
  extern "C" void pool_backward_##NAME(int64_t rows, int64_t channels, const S *grad,              \
                                       const uint8_t *taps, int64_t height, int64_t width,         \
                                       int64_t stride, S *grad_x, int threads) {                   \
    pool_backward<S>(grad, taps, {rows / (height * width), height, width, channels, stride},       \
                     grad_x, threads);                                                             \
  }

POOL(float, float, f32)
POOL(double, double, f64)
POOL(Bf16, float, bf16)
POOL(uint8_t, float, u8)
POOL_BACKWARD(float, f32)
POOL_BACKWARD(double, f64)
POOL_BACKWARD(Bf16, bf16)
