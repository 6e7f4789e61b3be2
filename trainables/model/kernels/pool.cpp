// Max-pooling 3x3 with padding 1 of spikes, or of batch-normalised currents, [images, H, W, C].
//
// The window's winner is the first largest value in reading order, as torch has it; which of the 9
// it was is kept as a byte.
#include "lanes.h"

namespace {

constexpr int64_t WIDE_CHANNELS = 32; // from here on a vector's windows are asked as quickly

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

// A row's winners of bytes: what is largest in each column of a window, then in the window. A key
// is a value and, so that the first of equals is the largest, how many of the 9 come after it.
struct RowOfBytes {
  const int64_t channels, size;
  std::vector<uint8_t> value, tap;
  explicit RowOfBytes(const Grid &grid)
      : channels(grid.channels), size(grid.width * channels), value(size_t(size)), tap(value),
        columns(size_t(size + 2 * channels)) {}

  void find(const uint8_t *image, const Grid &grid, int64_t row) {
    const uint8_t *above = image + (row - 1) * size, *here = image + row * size;
    const uint8_t *below = row + 1 < grid.height ? here + size : nullptr;
    if (row == 0) above = nullptr;
    int16_t *column = columns.data() + channels;
    for (int64_t i = 0; i < size; i++) column[i] = int16_t(here[i] << SHIFT | 3);
    if (above)
      for (int64_t i = 0; i < size; i++)
        column[i] = std::max(column[i], int16_t(above[i] << SHIFT | 6));
    if (below)
      for (int64_t i = 0; i < size; i++)
        column[i] = std::max(column[i], int16_t(below[i] << SHIFT));
    for (int64_t i = 0; i < size; i++) {
      const int16_t left = int16_t(column[i - channels] + 2), middle = int16_t(column[i] + 1);
      const int16_t key = std::max(std::max(left, middle), column[i + channels]);
      value[size_t(i)] = uint8_t(key >> SHIFT);
      tap[size_t(i)] = uint8_t(8 - (key & 15));
    }
  }

private:
  static constexpr int SHIFT = 4;
  std::vector<int16_t> columns; // between zeros, which lose to a pixel's own key
};

inline void pool_bytes(const uint8_t *x, const Grid &grid, uint8_t *out, uint8_t *taps,
                       int threads) {
  const int64_t oh = grid.out_height(), ow = grid.out_width(), n = grid.channels;
  const int64_t image_size = grid.height * grid.width * n, every = grid.stride * n;
#pragma omp parallel num_threads(threads)
  {
    RowOfBytes row(grid);
#pragma omp for schedule(static)
    for (int64_t line = 0; line < grid.images * oh; line++) {
      row.find(x + line / oh * image_size, grid, line % oh * grid.stride);
      uint8_t *value = out + line * ow * n, *tap = taps + line * ow * n;
      if (grid.stride == 1) {
        std::memcpy(value, row.value.data(), row.value.size());
        std::memcpy(tap, row.tap.data(), row.tap.size());
        continue;
      }
      for (int64_t column = 0; column < ow; column++) {
        std::memcpy(value + column * n, row.value.data() + column * every, size_t(n));
        std::memcpy(tap + column * n, row.tap.data() + column * every, size_t(n));
      }
    }
  }
}

// Each window's gradient to its winner.
template <class S>
void give_to_winners(const S *grad, const uint8_t *taps, const Grid &grid, S *grad_x, int threads) {
  using A = typename Wide<S>::type;
  const int64_t oh = grid.out_height(), ow = grid.out_width(), n = grid.channels;
  const int64_t size = grid.height * grid.width * n;
  int64_t offsets[9];
  for (int k = 0; k < 9; k++) offsets[k] = ((k / 3 - 1) * grid.width + k % 3 - 1) * n;
#pragma omp parallel num_threads(threads)
  {
    std::vector<A> wide(size_t(std::is_same_v<S, A> ? 0 : size));
#pragma omp for schedule(static)
    for (int64_t image = 0; image < grid.images; image++) {
      S *to = grad_x + image * size;
      A *sum = wide.empty() ? reinterpret_cast<A *>(to) : wide.data();
      std::fill(sum, sum + size, A(0));
      for (int64_t pixel = 0; pixel < oh * ow; pixel++) {
        const int64_t from = (image * oh * ow + pixel) * n;
        A *centre = sum + (pixel / ow * grid.width + pixel % ow) * grid.stride * n;
        for (int64_t c = 0; c < n; c++) centre[offsets[taps[from + c]] + c] += load(grad[from + c]);
      }
      for (size_t i = 0; i < wide.size(); i++) store(to + i, wide[i]);
    }
  }
}

// For each pixel, of windows that lie as densely, the gradients of those that it won.
template <class S>
void gather_won(const S *grad, const uint8_t *taps, const Grid &grid, S *grad_x, int threads) {
  using A = typename Wide<S>::type;
  using V = typename Lanes<A>::V;
  const int64_t n = grid.channels;
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t line = 0; line < grid.images * grid.height; line++) {
    const int64_t row = line % grid.height;
    for (int64_t column = 0; column < grid.width; column++) {
      const int64_t at = (line * grid.width + column) * n;
      int64_t windows[9];
      uint8_t tap[9];
      int count = 0; // of windows that see this pixel
      for (int k = 0; k < 9; k++) {
        const int64_t y = row + 1 - k / 3, x = column + 1 - k % 3;
        if (y < 0 || y >= grid.height || x < 0 || x >= grid.width) continue;
        windows[count] = at + ((y - row) * grid.width + x - column) * n;
        tap[count++] = uint8_t(k);
      }
      each_vector<A>(n, [&](int64_t c, int64_t some, auto full) {
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

template <class S>
void pool_backward(const S *grad, const uint8_t *taps, const Grid &grid, S *grad_x, int threads) {
  const bool is_dense = grid.stride == 1 && grid.channels >= WIDE_CHANNELS;
  (is_dense ? gather_won<S> : give_to_winners<S>)(grad, taps, grid, grad_x, threads);
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
