// Convolutions 3x3 of spike counts in bf16 by Winograd's F(2x2, 3x3), summed as integers.
//
// x is [images, H, W, K] bytes, weights are [N, 9, K]. An output's weights become multiples of a step
// at which their sums at the 16 points fit 16 bits; from there on all is exact, so that results are
// those of a convolution with these multiples, for 4 products instead of 9. Who calls sees that four
// times a result fits 32 bits. Source: Lavin and Gray, CVPR 2016 (arXiv 1509.09308).
#include "pairs.h"

#if HAS_PAIRS
namespace {

constexpr int TILE = 2, SEEN = 4, TAPS = 9;
constexpr int64_t POINTS = SEEN * SEEN, WIDTH = Lanes<float>::WIDTH;
constexpr int64_t SHORTS = VECTOR_BYTES / int64_t(sizeof(int16_t));
// Of tiles' points that go through all weights together.
constexpr int64_t POINTS_BYTES = 1 << 20;
// Bytes between points: multiples of a page apart they would share a cache's lines.
constexpr int64_t GAP_BYTES = 64;
// Nine weights, rounded by half a step each, still fit 16 bits.
constexpr float MOST = 32760;

using Whole = Packed<VECTOR_BYTES, int32_t>::type;
using Short = Packed<VECTOR_BYTES, int16_t>::type;

struct Shape {
  int64_t images, height, width, inputs, outputs;
  int64_t across() const { return (width + TILE - 1) / TILE; }
  int64_t an_image() const { return across() * ((height + TILE - 1) / TILE); }
  int64_t tiles() const { return images * an_image(); }
  int64_t pairs() const { return (inputs + 1) / 2; }
  int64_t pitch() const { return (inputs + SHORTS - 1) / SHORTS * SHORTS; } // of a tile's point
  int64_t columns() const { return (outputs + PANEL - 1) / PANEL * PANEL; }
  int64_t room() const {
    const int64_t fitting = POINTS_BYTES / (POINTS * pitch() * int64_t(sizeof(int16_t)));
    return std::min(std::clamp<int64_t>(fitting, 4 * ROWS, 32 * ROWS) / ROWS * ROWS, tiles());
  }
  // From a point's counts to the next one's, and of its sums.
  int64_t point() const { return room() * pitch() + GAP_BYTES / int64_t(sizeof(int16_t)); }
  int64_t point_sums() const { return room() * PANEL + GAP_BYTES / int64_t(sizeof(int32_t)); }
};

// Three weights of a row or column to the four points: twice the middle ones.
template <class V> inline void weights_to_points(const V *w, int step, V *p, int step_p) {
  const V outer = w[0] + w[2 * step];
  p[0] = w[0];
  p[step_p] = outer + w[step];
  p[2 * step_p] = outer - w[step];
  p[3 * step_p] = w[2 * step];
}

// Four counts of a row or column to the four points.
template <class V> inline void counts_to_points(const V *d, int step, V *p) {
  p[0] = d[0] - d[2 * step];
  p[step] = d[step] + d[2 * step];
  p[2 * step] = d[2 * step] - d[step];
  p[3 * step] = d[step] - d[3 * step];
}

// Four points to twice the two results.
template <class V> inline void from_points(const V *p, int step, V *y, int step_y) {
  y[0] = 2 * p[0] + p[step] + p[2 * step];
  y[step_y] = p[step] - p[2 * step] - 2 * p[3 * step];
}

template <class V> inline void weight_points(const V *w, V *p) {
  V half[SEEN * 3];
  for (int j = 0; j < 3; j++) weights_to_points(w + j, 3, half + j, 3);
  for (int i = 0; i < SEEN; i++) weights_to_points(half + 3 * i, 1, p + SEEN * i, 1);
}

// Weights at the points as panels [ceil(N / PANEL)][POINTS][pairs][PANEL][2].
struct Weights {
  std::vector<int32_t, Aligned<int32_t>> panels;
  std::vector<float> steps, bias;

  Weights(const float *from, const float *bias_N, const Shape &shape, int threads)
      : panels(size_t(shape.columns() * POINTS * shape.pairs())), steps(size_t(shape.columns())),
        bias(size_t(shape.columns())) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t n = 0; n < shape.outputs; n++) {
      if (bias_N) bias[size_t(n)] = bias_N[n];
      const float *weights = from + n * TAPS * shape.inputs;
      const Step step(largest(weights, shape.inputs), MOST);
      steps[size_t(n)] = step.size;
      pack(weights, shape, step.inverse,
           panels.data() + n / PANEL * PANEL * POINTS * shape.pairs() + n % PANEL);
    }
  }

private:
  template <bool FULL>
  static inline void read(const float *from, int64_t inputs, int64_t at, int64_t n, Values *w) {
    for (int tap = 0; tap < TAPS; tap++)
      w[tap] = load_some<FULL, float>(from + tap * inputs + at, n);
  }

  // The bits of the largest size at any point.
  static uint32_t largest(const float *from, int64_t inputs) {
    Bits sizes{};
    each_vector<float>(inputs, [&](int64_t at, int64_t n, auto full) {
      Values w[TAPS], p[POINTS];
      read<decltype(full)::value>(from, inputs, at, n, w);
      weight_points(w, p);
      for (const Values &v : p) sizes = larger(sizes, size_bits(v));
    });
    return largest_of(sizes);
  }

  static void pack(const float *from, const Shape &shape, float inverse, int32_t *to) {
    each_vector<float>(shape.inputs, [&](int64_t at, int64_t n, auto full) {
      Values w[TAPS];
      Whole multiples[TAPS], p[POINTS];
      read<decltype(full)::value>(from, shape.inputs, at, n, w);
      for (int tap = 0; tap < TAPS; tap++)
        multiples[tap] = (Whole)((Bits)(w[tap] * inverse + TO_INTEGER) << 16) >> 16;
      weight_points(multiples, p);
      for (int64_t i = 0; i < POINTS; i++) {
        int32_t values[WIDTH];
        std::memcpy(values, p + i, sizeof values);
        int32_t *pair = to + (i * shape.pairs() + at / 2) * PANEL;
        for (int64_t c = 0; c < n; c += 2, pair += PANEL)
          *pair = (values[c] & 0xFFFF) | int32_t(uint32_t(values[c + 1]) << 16);
      }
    });
  }
};

// Where a tile lies: its image's first row of counts, and its first pixel.
struct Place {
  int64_t image, y, x;
  Place(const Shape &shape, int64_t number)
      : image(number / shape.an_image() * shape.height * shape.width),
        y(number % shape.an_image() / shape.across() * TILE),
        x(number % shape.across() * TILE) {}
};

// A tile's counts, with a border of a pixel, at the points.
void spread(const uint8_t *x, const Shape &shape, int64_t number, int16_t *to) {
  const Place tile(shape, number);
  const int64_t pitch_point = shape.point();
  for (int64_t c = 0; c < shape.inputs; c += SHORTS) {
    Short d[POINTS], half[POINTS], p[POINTS];
    for (int i = 0; i < POINTS; i++) {
      const int64_t row = tile.y + i / SEEN - 1, column = tile.x + i % SEEN - 1;
      d[i] = Short{};
      if (row < 0 || row >= shape.height || column < 0 || column >= shape.width) continue;
      const uint8_t *from = x + (tile.image + row * shape.width + column) * shape.inputs + c;
      if (c + SHORTS <= shape.inputs) {
        d[i] = (Short)widened_bytes(from);
      } else {
        uint8_t bytes[SHORTS] = {};
        std::memcpy(bytes, from, size_t(shape.inputs - c));
        d[i] = (Short)widened_bytes(bytes);
      }
    }
    for (int j = 0; j < SEEN; j++) counts_to_points(d + j, SEEN, half + j);
    for (int i = 0; i < SEEN; i++) counts_to_points(half + SEEN * i, 1, p + SEEN * i);
    for (int i = 0; i < POINTS; i++) std::memcpy(to + i * pitch_point + c, p + i, sizeof(Short));
  }
}

// The products of some tiles with a panel, at a point: [count][PANEL].
void multiply(const int32_t *points, int64_t pitch, int64_t count, int64_t pairs,
              const int32_t *panel, int64_t n, int32_t *sums) {
  each_tile<float>(n, [&](int64_t at, int64_t, auto tile) {
    PairTile<VECTORS_OF<decltype(tile)>> found;
    for (int64_t row = 0; row < count; row += ROWS) {
      const int32_t *lines[ROWS];
      for (int64_t r = 0; r < ROWS; r++) lines[r] = points + std::min(row + r, count - 1) * pitch;
      found.sum(lines, 1, panel + at, pairs);
      for (int64_t r = 0; r < std::min<int64_t>(ROWS, count - row); r++)
        std::memcpy(sums + (row + r) * PANEL + at, found.sums[r], sizeof found.sums[r]);
    }
  });
}

// A tile's currents of a panel's `n` outputs from `first` on.
void gather(const int32_t *sums, const Shape &shape, int64_t number, const Weights &weights,
            int64_t first, int64_t n, Bf16 *out) {
  const Place tile(shape, number);
  const int64_t pitch_point = shape.point_sums();
  each_vector<float>(n, [&](int64_t at, int64_t some, auto full) {
    Bits p[POINTS], half[SEEN * TILE], y[TILE * TILE];
    for (int i = 0; i < POINTS; i++) p[i] = fetched<Bits>(sums + i * pitch_point + at);
    for (int j = 0; j < SEEN; j++) from_points(p + j, SEEN, half + j, SEEN);
    for (int i = 0; i < TILE; i++) from_points(half + SEEN * i, 1, y + TILE * i, 1);
    const Values scale = load_lanes(weights.steps.data() + first + at) * 0.25f;
    const Values shift = load_lanes(weights.bias.data() + first + at);
    for (int i = 0; i < TILE * TILE; i++) {
      const int64_t row = tile.y + i / TILE, column = tile.x + i % TILE;
      if (row >= shape.height || column >= shape.width) continue;
      store_some<decltype(full)::value, float>(
          out + (tile.image + row * shape.width + column) * shape.outputs + first + at,
          as_floats((Pairs)y[i]) * scale + shift, some);
    }
  });
}

void convolve(const uint8_t *x, const Shape &shape, const Weights &weights, Bf16 *out,
              int threads) {
  const int64_t room = shape.room(), pairs = shape.pairs();
#pragma omp parallel num_threads(threads)
  {
    std::vector<int16_t, Aligned<int16_t>> points(size_t(POINTS * shape.point()));
    std::vector<int32_t, Aligned<int32_t>> sums(size_t(POINTS * shape.point_sums()));
#pragma omp for schedule(dynamic)
    for (int64_t first = 0; first < shape.tiles(); first += room) {
      const int64_t count = std::min(room, shape.tiles() - first);
      for (int64_t i = 0; i < count; i++)
        spread(x, shape, first + i, points.data() + i * shape.pitch());
      for (int64_t c0 = 0; c0 < shape.outputs; c0 += PANEL) {
        const int64_t n = std::min(PANEL, shape.outputs - c0);
        for (int64_t p = 0; p < POINTS; p++)
          multiply(reinterpret_cast<const int32_t *>(points.data() + p * shape.point()),
                   shape.pitch() / 2, count, pairs,
                   weights.panels.data() + (c0 * POINTS + p * PANEL) * pairs, n,
                   sums.data() + p * shape.point_sums());
        for (int64_t i = 0; i < count; i++)
          gather(sums.data() + i * PANEL, shape, first + i, weights, c0, n, out);
      }
    }
  }
}

} // namespace

// The bias may be none.
extern "C" void convolve_points_bf16(const uint8_t *x, int64_t images, int64_t height,
                                     int64_t width, int64_t inputs, int64_t outputs,
                                     const float *weights, const float *bias, Bf16 *out,
                                     int threads) {
  const Shape shape{images, height, width, inputs, outputs};
  convolve(x, shape, Weights(weights, bias, shape, threads), out, threads);
}
#endif
