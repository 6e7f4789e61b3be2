// Winograd's F(4x4, 3x3): to and from the 36 points at which a tile's products are taken.
//
// x is [images, H, W, channels]; an image is cut into tiles of 4x4. A convolution's input is seen
// with a border of one pixel, zero outside the image; the gradient of its output is not. As many
// tiles as stay in cache are taken through the points [36][tiles][channels] together.
// Source: Lavin and Gray, CVPR 2016 (arXiv 1509.09308).
#include "matrix.h"

namespace {

constexpr int TILE = 4, SEEN = 6;
constexpr int64_t POINTS = SEEN * SEEN, CACHE_BYTES = 1 << 20;
// Between points in a cache: multiples of a page apart they would share its lines.
constexpr int64_t LINE = 16;

// A vector of channels, or a single one where few are left.
template <class V, class A, class S> inline V widened(const S *from) {
  if constexpr (std::is_same<V, A>::value) return A(load(*from));
  else return load_some<true, A>(from, Lanes<A>::WIDTH);
}

template <class V, class A, class S> inline void narrowed(V v, S *to) {
  if constexpr (std::is_same<V, A>::value) store(to, v);
  else store_some<true, A>(to, v, Lanes<A>::WIDTH);
}

// Six values of a row or column to the six points.
template <class V, class A> inline void to_points(const V *d, int step, V *p) {
  const V d0 = d[0], d1 = d[step], d2 = d[2 * step], d3 = d[3 * step], d4 = d[4 * step];
  const V d5 = d[5 * step], even = d4 - A(4) * d2, odd = d3 - A(4) * d1;
  const V even_2 = d4 - d2, odd_2 = A(2) * (d3 - d1);
  p[0] = A(4) * d0 - A(5) * d2 + d4;
  p[step] = even + odd;
  p[2 * step] = even - odd;
  p[3 * step] = even_2 + odd_2;
  p[4 * step] = even_2 - odd_2;
  p[5 * step] = A(4) * d1 - A(5) * d3 + d5;
}

// Six points to the four values.
template <class V, class A> inline void from_points(const V *p, int step, V *y, int step_y) {
  const V sum = p[step] + p[2 * step], difference = p[step] - p[2 * step];
  const V sum_2 = p[3 * step] + p[4 * step], difference_2 = p[3 * step] - p[4 * step];
  y[0] = p[0] + sum + sum_2;
  y[step_y] = difference + A(2) * difference_2;
  y[2 * step_y] = sum + A(4) * sum_2;
  y[3 * step_y] = difference + A(8) * difference_2 + p[5 * step];
}

// Four values of a gradient to the six points: the adjoint of `from_points`.
template <class V, class A> inline void gradient_to_points(const V *g, int step, V *p, int step_p) {
  const V even = g[0] + g[2 * step], odd = g[step] + g[3 * step];
  const V even_2 = g[0] + A(4) * g[2 * step], odd_2 = A(2) * g[step] + A(8) * g[3 * step];
  p[0] = g[0];
  p[step_p] = even + odd;
  p[2 * step_p] = even - odd;
  p[3 * step_p] = even_2 + odd_2;
  p[4 * step_p] = even_2 - odd_2;
  p[5 * step_p] = g[3 * step];
}

struct Shape {
  int64_t images, height, width, channels;
  int64_t room = 0, gap = 0; // tiles whose points lie side by side, values between points
  int64_t across() const { return (width + TILE - 1) / TILE; }
  int64_t an_image() const { return across() * ((height + TILE - 1) / TILE); }
  int64_t tiles() const { return images * an_image(); }
  int64_t pitch() const { return room * channels + gap; }
};

// Where a tile lies: its image and first pixel.
struct Place {
  int64_t image, y, x;
  Place(const Shape &shape, int64_t number)
      : image(number / shape.an_image()), y(number % shape.an_image() / shape.across() * TILE),
        x(number % shape.across() * TILE) {}
};

// SIZE x SIZE values from `border` pixels before the tile on; zero outside the image.
template <int SIZE, class V, class A, class S>
inline void see(const S *x, const Shape &shape, const Place &tile, int border, V *d) {
  for (int i = 0; i < SIZE; i++)
    for (int j = 0; j < SIZE; j++) {
      const int64_t y = tile.y + i - border, at = tile.x + j - border;
      const bool inside = y >= 0 && y < shape.height && at >= 0 && at < shape.width;
      const int64_t row = (tile.image * shape.height + y) * shape.width + at;
      d[i * SIZE + j] = inside ? widened<V, A>(x + row * shape.channels) : V{};
    }
}

template <class V, class A>
inline void write_points(const V *p, const Shape &shape, A *points) {
  for (int64_t i = 0; i < POINTS; i++) std::memcpy(points + i * shape.pitch(), p + i, sizeof(V));
}

struct Input {
  template <class V, class S, class A>
  static inline void tile(const S *x, const Shape &shape, const Place &tile, A *points) {
    V d[POINTS], half[POINTS], p[POINTS];
    see<SEEN, V, A>(x, shape, tile, 1, d);
    for (int j = 0; j < SEEN; j++) to_points<V, A>(d + j, SEEN, half + j);
    for (int i = 0; i < SEEN; i++) to_points<V, A>(half + i * SEEN, 1, p + i * SEEN);
    write_points(p, shape, points);
  }
};

struct Gradient {
  template <class V, class S, class A>
  static inline void tile(const S *x, const Shape &shape, const Place &tile, A *points) {
    V g[TILE * TILE], half[SEEN * TILE], p[POINTS];
    see<TILE, V, A>(x, shape, tile, 0, g);
    for (int j = 0; j < TILE; j++) gradient_to_points<V, A>(g + j, TILE, half + j, TILE);
    for (int i = 0; i < SEEN; i++)
      gradient_to_points<V, A>(half + i * TILE, 1, p + i * SEEN, 1);
    write_points(p, shape, points);
  }
};

template <class V, class S, class A>
inline void gather_tile(const A *points, const Shape &shape, const Place &tile, S *out) {
  V p[POINTS], half[SEEN * TILE], y[TILE * TILE];
  for (int64_t i = 0; i < POINTS; i++) std::memcpy(p + i, points + i * shape.pitch(), sizeof(V));
  for (int j = 0; j < SEEN; j++) from_points<V, A>(p + j, SEEN, half + j, SEEN);
  for (int i = 0; i < TILE; i++) from_points<V, A>(half + i * SEEN, 1, y + i * TILE, 1);
  for (int i = 0; i < TILE && tile.y + i < shape.height; i++)
    for (int j = 0; j < TILE && tile.x + j < shape.width; j++) {
      const int64_t row = (tile.image * shape.height + tile.y + i) * shape.width + tile.x + j;
      narrowed<V, A>(y[i * TILE + j], out + row * shape.channels);
    }
}

// A tile's points, of all channels.
template <class Kind, class S, class A>
inline void spread(const S *x, const Shape &shape, int64_t number, A *to) {
  using V = typename Vector<A>::type;
  const int64_t width = VECTOR_BYTES / sizeof(A), channels = shape.channels;
  const Place at(shape, number);
  int64_t c = 0;
  for (; c + width <= channels; c += width) Kind::template tile<V>(x + c, shape, at, to + c);
  for (; c < channels; c++) Kind::template tile<A>(x + c, shape, at, to + c);
}

template <class S, class A>
inline void gather(const A *from, const Shape &shape, int64_t number, S *out) {
  using V = typename Vector<A>::type;
  const int64_t width = VECTOR_BYTES / sizeof(A), channels = shape.channels;
  const Place at(shape, number);
  int64_t c = 0;
  for (; c + width <= channels; c += width) gather_tile<V>(from + c, shape, at, out + c);
  for (; c < channels; c++) gather_tile<A>(from + c, shape, at, out + c);
}

template <class Kind, class S, class A>
void spread_all(const S *x, Shape shape, A *points, int threads) {
  shape.room = shape.tiles();
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t number = 0; number < shape.tiles(); number++)
    spread<Kind>(x, shape, number, points + number * shape.channels);
}

template <class S, class A>
void gather_all(const A *points, Shape shape, S *out, int threads) {
  shape.room = shape.tiles();
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t number = 0; number < shape.tiles(); number++)
    gather(points + number * shape.channels, shape, number, out);
}

// Tiles whose points stay in a cache, in whole groups of rows that are summed together.
template <class A> int64_t room_for(int64_t channels, int64_t tiles) {
  const int64_t fitting = CACHE_BYTES / (POINTS * channels * int64_t(sizeof(A)));
  return std::min(std::clamp<int64_t>(fitting, 4 * ROWS, 16 * ROWS) / ROWS * ROWS, tiles);
}

// `filters` are [36] panels [ceil(outputs / PANEL)][inputs][PANEL].
template <class S, class A>
void convolve(const S *x, Shape in, int64_t outputs, const A *filters, S *out, int threads) {
  in.room = room_for<A>(in.channels + outputs, in.tiles());
  in.gap = LINE;
  const Shape to{in.images, in.height, in.width, outputs, in.room, LINE};
  const int64_t a_filter = (outputs + PANEL - 1) / PANEL * PANEL * in.channels;
#pragma omp parallel num_threads(threads)
  {
    std::vector<A, Aligned<A>> points(size_t(POINTS * in.pitch()));
    std::vector<A, Aligned<A>> sums(size_t(POINTS * to.pitch()));
#pragma omp for schedule(dynamic)
    for (int64_t first = 0; first < in.tiles(); first += in.room) {
      const int64_t count = std::min(in.room, in.tiles() - first);
      for (int64_t i = 0; i < count; i++)
        spread<Input>(x, in, first + i, points.data() + i * in.channels);
      for (int64_t p = 0; p < POINTS; p++)
        multiply_panels(points.data() + p * in.pitch(), in.channels, count, in.channels,
                        filters + p * a_filter, outputs, sums.data() + p * to.pitch(), outputs);
      for (int64_t i = 0; i < count; i++)
        gather(sums.data() + i * outputs, to, first + i, out);
    }
  }
}

// sums[outputs, inputs] += of_outputs^T of_inputs, both `count` rows.
template <class A>
void add_product(const A *of_outputs, int64_t outputs, const A *of_inputs, int64_t inputs,
                 int64_t pitch, int64_t count, A *sums) {
  constexpr int64_t WIDTH = Lanes<A>::WIDTH;
  for (int64_t n = 0; n < outputs; n += ROWS)
    each_tile<A>(inputs, [&](int64_t at, int64_t k, auto tile) {
      constexpr int COUNT = sizeof tile.sums[0] / sizeof(typename Lanes<A>::V);
      const A *lines[ROWS];
      for (int64_t r = 0; r < ROWS; r++) lines[r] = of_outputs + std::min(n + r, outputs - 1);
      const int64_t rows = std::min<int64_t>(ROWS, outputs - n);
      std::memset(&tile, 0, sizeof tile);
      if (k == COUNT * WIDTH)
        for (int64_t r = 0; r < rows; r++)
          std::memcpy(tile.sums[r], sums + (n + r) * inputs + at, sizeof tile.sums[r]);
      else
        for (int64_t r = 0; r < rows; r++)
          std::memcpy(tile.sums[r], sums + (n + r) * inputs + at, size_t(k) * sizeof(A));
      tile.add(lines, outputs, of_inputs + at, pitch, count);
      for (int64_t r = 0; r < rows; r++)
        store_row(tile, int(r), k, sums + (n + r) * inputs + at);
    });
}

// Sums over the tiles at each point [36][outputs][inputs], which begin with zeros.
template <class S, class A>
void weight_gradient(const uint8_t *x, Shape in, const S *grad, int64_t outputs, A *sums,
                     int threads) {
  in.room = room_for<A>(in.channels + outputs, in.tiles());
  in.gap = LINE;
  const Shape of{in.images, in.height, in.width, outputs, in.room, LINE};
  // Tiles of columns read whole vectors: so much lies behind the last point's.
  std::vector<A, Aligned<A>> inputs(size_t(POINTS * in.pitch() + VECTORS * Lanes<A>::WIDTH));
  std::vector<A, Aligned<A>> outs(size_t(POINTS * of.pitch()));
#pragma omp parallel num_threads(threads)
  for (int64_t first = 0; first < in.tiles(); first += in.room) {
    const int64_t count = std::min(in.room, in.tiles() - first);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < count; i++) {
      spread<Input>(x, in, first + i, inputs.data() + i * in.channels);
      spread<Gradient>(grad, of, first + i, outs.data() + i * outputs);
    }
#pragma omp for schedule(static)
    for (int64_t p = 0; p < POINTS; p++)
      add_product(outs.data() + p * of.pitch(), outputs, inputs.data() + p * in.pitch(),
                  in.channels, in.channels, count, sums + p * outputs * in.channels);
  }
}

} // namespace

#define SPREAD(WHAT, KIND, S, A, NAME)                                                             \
  extern "C" void winograd_##WHAT##_##NAME(const S *x, int64_t images, int64_t height,             \
                                           int64_t width, int64_t channels, A *points,             \
                                           int threads) {                                          \
    spread_all<KIND, S, A>(x, {images, height, width, channels}, points, threads);                 \
  }

#define KERNELS(S, A, NAME)                                                                        \
  SPREAD(input, Input, S, A, NAME)                                                                 \
  SPREAD(gradient, Gradient, S, A, NAME)                                                           \
  extern "C" void winograd_output_##NAME(const A *points, int64_t images, int64_t height,          \
                                         int64_t width, int64_t channels, S *out, int threads) {   \
    gather_all<S, A>(points, {images, height, width, channels}, out, threads);                     \
  }                                                                                                \
  extern "C" void winograd_convolve_##NAME(const S *x, int64_t images, int64_t height,             \
                                           int64_t width, int64_t inputs, int64_t outputs,         \
                                           const A *filters, S *out, int threads) {                \
    convolve<S, A>(x, {images, height, width, inputs}, outputs, filters, out, threads);         \
  }                                                                                                \
  extern "C" void winograd_weight_##NAME(const uint8_t *x, int64_t images, int64_t height,         \
                                         int64_t width, int64_t inputs, int64_t outputs,           \
                                         const S *grad, A *sums, int threads) {                    \
    weight_gradient<S, A>(x, {images, height, width, inputs}, grad, outputs, sums, threads);    \
  }

KERNELS(float, float, f32)
KERNELS(double, double, f64)
KERNELS(Bf16, float, bf16)
SPREAD(counts, Input, uint8_t, float, f32)
SPREAD(counts, Input, uint8_t, double, f64)
