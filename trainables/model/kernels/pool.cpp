// Max-pooling 3x3 with padding 1 of spikes, or of batch-normalised currents, [images, H, W, C].
//
// The window's winner is the first largest value in reading order, as torch has it; which of the 9
// it was is kept as a byte.
#include "lanes.h"

namespace {

constexpr int64_t RUN_VALUES = 1024; // so many stay in the nearest cache with their neighbours

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
  // Pixels from a column on whose neighbours lie alike, so that they are worked on as one with many
  // channels.
  int64_t run(int64_t column) const {
    if (stride != 1 || column == 0 || column >= width - 1) return 1;
    return std::clamp<int64_t>(RUN_VALUES / channels, 1, width - 1 - column);
  }
};

template <class S, class A>
void pool(const S *x, const Grid &grid, const Affine<A> &norm, S *out, uint8_t *taps,
          int threads) {
  const A *scale_C = norm ? norm.scale() : nullptr, *shift_C = norm.shift();
  const int64_t oh = grid.out_height(), ow = grid.out_width(), n = grid.channels;
#pragma omp parallel num_threads(threads)
  {
    std::vector<A> best(size_t(std::max(n, RUN_VALUES)));
#pragma omp for schedule(static)
    for (int64_t line = 0; line < grid.images * oh; line++) {
      const int64_t image = line / oh, y = line % oh;
      int64_t pixels;
      for (int64_t column = 0; column < ow; column += pixels) {
        pixels = scale_C ? 1 : grid.run(column); // scales are a channel's
        const int64_t at = (line * ow + column) * n, size = pixels * n;
        A *value = best.data();
        uint8_t *tap = taps + at;
        std::fill(value, value + size, -INFINITY);
        std::fill(tap, tap + size, uint8_t(255));
        for (int k = 0; k < 9; k++) {
          const int64_t iy = y * grid.stride + k / 3 - 1, ix = column * grid.stride + k % 3 - 1;
          if (iy < 0 || iy >= grid.height || ix < 0 || ix >= grid.width) continue;
          const S *from = x + ((image * grid.height + iy) * grid.width + ix) * n;
          for (int64_t c = 0; c < size; c++) {
            const A z = scale_C ? A(load(from[c])) * scale_C[c] + shift_C[c] : A(load(from[c]));
            const bool wins = z > value[c] || z != z || tap[c] == 255;
            value[c] = wins ? z : value[c];
            tap[c] = wins ? uint8_t(k) : tap[c];
          }
        }
        for (int64_t c = 0; c < size; c++) store(out + at + c, value[c]);
      }
    }
  }
}

// Of bytes, whose winner needs no wider numbers.
inline void pool_bytes(const uint8_t *x, const Grid &grid, uint8_t *out, uint8_t *taps,
                       int threads) {
  const int64_t oh = grid.out_height(), ow = grid.out_width(), n = grid.channels;
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t line = 0; line < grid.images * oh; line++) {
    const int64_t image = line / oh, y = line % oh;
    int64_t pixels;
    for (int64_t column = 0; column < ow; column += pixels) {
      pixels = grid.run(column);
      const int64_t size = pixels * n;
      uint8_t *value = out + (line * ow + column) * n, *tap = taps + (line * ow + column) * n;
      bool is_first = true;
      for (int k = 0; k < 9; k++) {
        const int64_t iy = y * grid.stride + k / 3 - 1, ix = column * grid.stride + k % 3 - 1;
        if (iy < 0 || iy >= grid.height || ix < 0 || ix >= grid.width) continue;
        const uint8_t *from = x + ((image * grid.height + iy) * grid.width + ix) * n;
        if (is_first) {
          std::memcpy(value, from, size_t(size));
          std::memset(tap, k, size_t(size));
        } else {
          const uint8_t here = uint8_t(k);
#pragma omp simd
          for (int64_t c = 0; c < size; c++) {
            const bool wins = from[c] > value[c];
            tap[c] = wins ? here : tap[c];
            value[c] = wins ? from[c] : value[c];
          }
        }
        is_first = false;
      }
    }
  }
}

// Each window's gradient to its winner: fewer steps than asking all, where they overlap little.
template <class S>
void pool_backward_strided(const S *grad, const uint8_t *taps, const Grid &grid, S *grad_x,
                           int threads) {
  using A = typename Wide<S>::type;
  const int64_t oh = grid.out_height(), ow = grid.out_width(), n = grid.channels;
  const int64_t size = grid.height * grid.width * n;
  int64_t offsets[9];
  for (int k = 0; k < 9; k++) offsets[k] = ((k / 3 - 1) * grid.width + k % 3 - 1) * n;
#pragma omp parallel num_threads(threads)
  {
    std::vector<A> sums(size_t(std::is_same_v<S, A> ? 0 : size));
#pragma omp for schedule(static)
    for (int64_t image = 0; image < grid.images; image++) {
      S *to = grad_x + image * size;
      A *sum = sums.empty() ? reinterpret_cast<A *>(to) : sums.data();
      std::fill(sum, sum + size, A(0));
      for (int64_t pixel = 0; pixel < oh * ow; pixel++) {
        const int64_t from = (image * oh * ow + pixel) * n;
        A *centre = sum + (pixel / ow * grid.width + pixel % ow) * grid.stride * n;
        for (int64_t c = 0; c < n; c++) centre[offsets[taps[from + c]] + c] += load(grad[from + c]);
      }
      for (size_t i = 0; i < sums.size(); i++) store(to + i, sums[i]);
    }
  }
}

template <class S>
void pool_backward(const S *grad, const uint8_t *taps, const Grid &grid, S *grad_x, int threads) {
  if (grid.stride > 1) return pool_backward_strided(grad, taps, grid, grad_x, threads);
  using A = typename Wide<S>::type;
  using V = typename Lanes<A>::V;
  const int64_t n = grid.channels;
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t line = 0; line < grid.images * grid.height; line++) {
    const int64_t row = line % grid.height;
    int64_t pixels;
    for (int64_t column = 0; column < grid.width; column += pixels) {
      pixels = grid.run(column);
      const int64_t at = (line * grid.width + column) * n;
      int64_t windows[9];
      uint8_t tap[9];
      int count = 0; // of windows that see these pixels
      for (int k = 0; k < 9; k++) {
        const int64_t y = row + 1 - k / 3, x = column + 1 - k % 3;
        if (y < 0 || y >= grid.height || x < 0 || x >= grid.width) continue;
        windows[count] = at + ((y - row) * grid.width + x - column) * n;
        tap[count++] = uint8_t(k);
      }
      each_vector<A>(pixels * n, [&](int64_t c, int64_t some, auto full) {
        constexpr bool FULL = decltype(full)::value;
        V sum{};
        for (int i = 0; i < count; i++) {
          const V winner = load_some<FULL, A>(taps + windows[i] + c, some);
          const V g = load_some<FULL, A>(grad + windows[i] + c, some);
          sum += winner == A(tap[i]) ? g : V{};
        }
        store_some<FULL, A>(grad_x + at + c, sum, some);
      });
    }
  }
}

} // namespace

#define POOL(S, A, NAME)                                                                           \
  extern "C" void pool_##NAME(int64_t rows, int64_t channels, const S *x, int64_t height,          \
                              int64_t width, int64_t stride, const double *mean,                   \
                              const double *inverse, const A *weight, const A *bias, S *out,       \
                              uint8_t *taps, int threads) {                                        \
    const Affine<A> norm(mean, inverse, weight, bias, {1, channels, 0});                           \
    pool<S, A>(x, Grid::of_output(rows, height, width, channels, stride), norm, out, taps,         \
               threads);                                                                           \
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
extern "C" void pool_u8(int64_t rows, int64_t channels, const uint8_t *x, int64_t height,
                        int64_t width, int64_t stride, const double *, const double *,
                        const float *, const float *, uint8_t *out, uint8_t *taps, int threads) {
  pool_bytes(x, Grid::of_output(rows, height, width, channels, stride), out, taps, threads);
}
POOL_BACKWARD(float, f32)
POOL_BACKWARD(double, f64)
POOL_BACKWARD(Bf16, bf16)
