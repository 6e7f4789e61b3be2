// Convolutions (1x1, 3x3, stride 1, same padding) of spike counts in bf16, summed as integers.
//
// x is [images, H, W, K] bytes, weights are [N, taps, K]. They become 16-bit multiples of a step of
// their output's own, in panels [ceil(N / PANEL)][taps * pairs][PANEL][2] of pairs of inputs: the
// processor multiplies and adds a pair at once, twice what it does with floats. Sums are exact; who
// calls sees that they fit 32 bits.
#include "pairs.h"

namespace {

constexpr int64_t BAND_BYTES = 1 << 17; // of widened counts that share a panel in cache

#if HAS_PAIRS
struct Shape {
  int64_t images, height, width, inputs, outputs, size;
  int64_t pad() const { return size / 2; }
  int64_t taps() const { return size * size; }
  int64_t pairs() const { return (inputs + 1) / 2; }
  int64_t pitch() const { return width + 2 * pad(); } // pixels of a band's row
  int64_t band() const {
    const int64_t a_row = pitch() * pairs() * int64_t(sizeof(int32_t));
    return std::min(height, std::max<int64_t>(1, BAND_BYTES / a_row));
  }
  int64_t columns() const { return (outputs + PANEL - 1) / PANEL * PANEL; }
  int64_t bands() const { return (height + band() - 1) / band(); }
};

struct Weights {
  std::vector<int32_t, Aligned<int32_t>> panels;
  std::vector<float> steps, bias;

  Weights(const float *from, const float *bias_N, const Shape &shape, int threads)
      : panels(size_t(shape.columns() * shape.taps() * shape.pairs())),
        steps(size_t(shape.columns())), bias(size_t(shape.columns())) {
    const int64_t depth = shape.taps() * shape.inputs;
#pragma omp parallel num_threads(threads)
    {
      std::vector<int16_t> multiples(static_cast<size_t>(depth));
#pragma omp for schedule(static)
      for (int64_t n = 0; n < shape.outputs; n++) {
        if (bias_N) bias[size_t(n)] = bias_N[n];
        if (!count_steps(from + n * depth, depth, steps.data() + n, multiples.data())) continue;
        const int64_t c0 = n / PANEL * PANEL;
        int16_t *panel = reinterpret_cast<int16_t *>(
            panels.data() + c0 * shape.taps() * shape.pairs() + (n - c0));
        for (int64_t tap = 0; tap < shape.taps(); tap++)
          for (int64_t c = 0; c < shape.inputs; c++)
            panel[(tap * shape.pairs() + c / 2) * 2 * PANEL + c % 2] =
                multiples[size_t(tap * shape.inputs + c)];
      }
    }
  }

private:
  // An output's step and the weights' multiples of it; false where they are all zeros.
  static bool count_steps(const float *w, int64_t depth, float *step, int16_t *multiples) {
    float largest = 0, sum = 0; // NaN is in the sum
#pragma omp simd reduction(max : largest) reduction(+ : sum)
    for (int64_t k = 0; k < depth; k++) {
      const float size = std::fabs(w[k]);
      largest = size > largest ? size : largest;
      sum += size;
    }
    largest = sum == sum ? largest : sum;
    *step = largest / 32767;
    // Zeros of an infinite step or one that is no number are no numbers either.
    if (!(largest > 1e-30f && largest < INFINITY)) return false;
    const float divisor = *step;
#pragma omp simd
    for (int64_t k = 0; k < depth; k++) {
      const float shifted = w[k] / divisor + TO_INTEGER;
      int32_t bits;
      std::memcpy(&bits, &shifted, sizeof bits);
      multiples[k] = int16_t(bits);
    }
    return true;
  }
};

// Rows of an image from `first` on as pairs of 16-bit numbers, with zeros around the image.
void widen(const uint8_t *x, const Shape &shape, int64_t first, int64_t rows, int16_t *to) {
  const int64_t pad = shape.pad(), step = 2 * shape.pairs(), a_row = shape.pitch() * step;
  std::memset(to, 0, size_t((rows + 2 * pad) * a_row) * sizeof(int16_t));
  for (int64_t row = 0; row < rows + 2 * pad; row++) {
    const int64_t y = first + row - pad;
    if (y < 0 || y >= shape.height) continue;
    for (int64_t column = 0; column < shape.width; column++) {
      const uint8_t *from = x + (y * shape.width + column) * shape.inputs;
      int16_t *pixel = to + row * a_row + (column + pad) * step;
      for (int64_t c = 0; c < shape.inputs; c++) pixel[c] = from[c];
    }
  }
}

template <int COUNT>
inline void sum_pixels(const int32_t *const *pixels, const Shape &shape, const int32_t *columns,
                       Pairs (&sums)[ROWS][COUNT]) {
  Pairs s[ROWS][COUNT];
  std::memset(s, 0, sizeof s);
  for (int64_t tap = 0; tap < shape.taps(); tap++) {
    const int64_t shift = (tap / shape.size * shape.pitch() + tap % shape.size) * shape.pairs();
    for (int64_t k = 0; k < shape.pairs(); k++, columns += PANEL) {
      Pairs column[COUNT];
#pragma GCC unroll 4
      for (int i = 0; i < COUNT; i++)
        column[i] = fetched<Pairs>(columns + i * Lanes<float>::WIDTH);
#pragma GCC unroll 6
      for (int r = 0; r < ROWS; r++) {
        const Pairs counts = repeated(pixels[r][shift + k]);
#pragma GCC unroll 4
        for (int i = 0; i < COUNT; i++) s[r][i] = add_pairs(s[r][i], counts, column[i]);
      }
    }
  }
  std::memcpy(sums, s, sizeof s);
}

// The currents of a band's pixels.
void convolve_band(const int32_t *band, const Shape &shape, int64_t pixels,
                   const Weights &weights, Bf16 *out) {
  const int64_t depth = shape.taps() * shape.pairs();
  for (int64_t c0 = 0; c0 < shape.outputs; c0 += PANEL)
    each_tile<float>(std::min(PANEL, shape.outputs - c0), [&](int64_t at, int64_t n, auto tile) {
      constexpr int COUNT = VECTORS_OF<decltype(tile)>;
      const int64_t column = c0 + at;
      for (int64_t pixel = 0; pixel < pixels; pixel += ROWS) {
        const int32_t *lines[ROWS];
        for (int64_t r = 0; r < ROWS; r++) {
          const int64_t p = std::min(pixel + r, pixels - 1);
          lines[r] = band + (p / shape.width * shape.pitch() + p % shape.width) * shape.pairs();
        }
        Pairs sums[ROWS][COUNT];
        sum_pixels<COUNT>(lines, shape, weights.panels.data() + c0 * depth + at, sums);
        for (int64_t r = 0; r < std::min<int64_t>(ROWS, pixels - pixel); r++) {
          for (int i = 0; i < COUNT; i++) {
            const int64_t from = column + i * Lanes<float>::WIDTH;
            tile.sums[r][i] =
                as_floats(sums[r][i]) * load_lanes(weights.steps.data() + from) +
                load_lanes(weights.bias.data() + from);
          }
          store_row(tile, int(r), n, out + (pixel + r) * shape.outputs + column);
        }
      }
    });
}

void convolve(const uint8_t *x, const Shape &shape, const Weights &weights, Bf16 *out,
              int threads) {
  const int64_t pixels = shape.height * shape.width, tall = shape.band() + 2 * shape.pad();
#pragma omp parallel num_threads(threads)
  {
    std::vector<int32_t> band(size_t(tall * shape.pitch() * shape.pairs()));
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < shape.images * shape.bands(); task++) {
      const int64_t image = task / shape.bands(), first = task % shape.bands() * shape.band();
      const int64_t rows = std::min(shape.band(), shape.height - first);
      widen(x + image * pixels * shape.inputs, shape, first, rows,
            reinterpret_cast<int16_t *>(band.data()));
      convolve_band(band.data(), shape, rows * shape.width, weights,
                    out + (image * pixels + first * shape.width) * shape.outputs);
    }
  }
}
#endif

} // namespace

// Whether this processor multiplies pairs of 16-bit integers.
extern "C" int has_pairs() { return HAS_PAIRS; }

#if HAS_PAIRS
// The bias may be none.
extern "C" void convolve_integer_bf16(const uint8_t *x, int64_t images, int64_t height,
                                      int64_t width, int64_t inputs, int64_t outputs, int64_t size,
                                      const float *weights, const float *bias, Bf16 *out,
                                      int threads) {
  const Shape shape = size == 1 ? Shape{1, images * height * width, 1, inputs, outputs, size}
                                : Shape{images, height, width, inputs, outputs, size};
  convolve(x, shape, Weights(weights, bias, shape, threads), out, threads);
}
#endif
