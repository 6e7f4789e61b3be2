// Convolutions (1x1, 3x3, stride 1, same padding) of spike counts: a spike adds a row of weights.
//
// x is [images, H, W, K] bytes; a count of n is n spikes. Weights are packed as [N/lanes][taps * K]
// [lanes], zero-padded, so that a block of outputs stays in cache and its sums in registers. Work and
// traffic are in proportion to the spikes, which are few.
#include "lanes.h"

namespace {

constexpr int64_t GROUP_PIXELS = 512; // pixels that share a block of weights in cache, at least

// Sums of LANES outputs in registers: as many chains of additions as hide an addition's latency.
template <class A, int LANES> struct Sums {
  using V = typename Vector<A>::type;
  static constexpr int WIDTH = VECTOR_BYTES / sizeof(A), COUNT = LANES / WIDTH;
  static constexpr int CHAINS = COUNT >= 8 ? 1 : 8 / COUNT;
  V v[CHAINS][COUNT];
  inline void read(const A *from) {
    std::memset(v, 0, sizeof v);
    std::memcpy(v[0], from, sizeof v[0]);
  }
  inline void add(int chain, const A *row) {
#pragma GCC unroll 16
    for (int i = 0; i < COUNT; i++) {
      V w;
      std::memcpy(&w, row + i * WIDTH, sizeof w);
      v[chain][i] += w;
    }
  }
  // Adds the rows `base + index * LANES` of each index.
  inline void add_all(const A *base, const uint32_t *index, const uint32_t *end) {
    for (; index + CHAINS <= end; index += CHAINS)
#pragma GCC unroll 8
      for (int chain = 0; chain < CHAINS; chain++) add(chain, base + int64_t(index[chain]) * LANES);
    for (; index < end; index++) add(0, base + int64_t(*index) * LANES);
#pragma GCC unroll 8
    for (int chain = 1; chain < CHAINS; chain++)
#pragma GCC unroll 16
      for (int i = 0; i < COUNT; i++) v[0][i] += v[chain][i];
  }
  inline void write(A *to) const { std::memcpy(to, v[0], sizeof v[0]); }
};

struct Shape {
  int64_t images, height, width, inputs, outputs, size; // size: 1 or 3
  int64_t lanes;                                        // outputs that are summed together
  int64_t pixels() const { return height * width; }
  int64_t taps() const { return size * size; }
  int64_t pad() const { return size / 2; }
  int64_t blocks() const { return (outputs + lanes - 1) / lanes; }
  int64_t group() const {
    return std::min(images, std::max<int64_t>(1, GROUP_PIXELS / pixels()));
  }
  int64_t groups() const { return (images + group() - 1) / group(); }
};

// Calls `found(channel)` for each spike of a pixel, in order; n times for a count of n.
template <class F> inline void each_spike(const uint8_t *x, int64_t channels, F &&found) {
  int64_t c = 0;
  for (; c + 8 <= channels; c += 8) {
    uint64_t word;
    std::memcpy(&word, x + c, 8);
    while (word) {
      const int byte = __builtin_ctzll(word) >> 3;
      for (uint64_t n = word >> (8 * byte) & 0xFF; n; n--) found(c + byte);
      word &= ~(uint64_t(0xFF) << (8 * byte));
    }
  }
  for (; c < channels; c++)
    for (int n = x[c]; n; n--) found(c);
}

// The spikes of each pixel of a group of images.
struct PixelLists {
  std::vector<uint32_t> start, channel;
  void fill(const uint8_t *x, int64_t pixels, int64_t channels) {
    start.assign(1, 0);
    channel.clear();
    for (int64_t p = 0; p < pixels; p++) {
      each_spike(x + p * channels, channels, [&](int64_t c) { channel.push_back(uint32_t(c)); });
      start.push_back(uint32_t(channel.size()));
    }
  }
};

// The rows of weights that each pixel of a group adds up: tap * inputs + channel, of all its taps.
struct RowLists {
  std::vector<uint32_t> start, row;
  void gather(const PixelLists &lists, const Shape &shape, int64_t images) {
    const int64_t h = shape.height, w = shape.width, pad = shape.pad();
    start.assign(1, 0);
    row.clear();
    for (int64_t pixel = 0; pixel < images * h * w; pixel++) {
      const int64_t y = pixel / w % h, x = pixel % w;
      for (int64_t tap = 0; tap < shape.taps(); tap++) {
        const int64_t dy = tap / shape.size - pad, dx = tap % shape.size - pad;
        if (y + dy < 0 || y + dy >= h || x + dx < 0 || x + dx >= w) continue;
        const size_t from = size_t(pixel + dy * w + dx), at = row.size();
        const uint32_t begin = lists.start[from], count = lists.start[from + 1] - begin;
        const uint32_t first = uint32_t(tap * shape.inputs);
        row.resize(at + count);
        for (uint32_t i = 0; i < count; i++) row[at + i] = first + lists.channel[begin + i];
      }
      start.push_back(uint32_t(row.size()));
    }
  }
};

template <int LANES, class S, class A>
void convolve_group(const RowLists &lists, const Shape &shape, int64_t pixels, const A *weights,
                    const A *bias, S *out) {
  for (int64_t block = 0; block < shape.blocks(); block++) {
    const A *rows = weights + block * shape.taps() * shape.inputs * LANES;
    const int64_t n = std::min<int64_t>(LANES, shape.outputs - block * LANES);
    for (int64_t pixel = 0; pixel < pixels; pixel++) {
      Sums<A, LANES> sums;
      sums.read(bias + block * LANES);
      sums.add_all(rows, lists.row.data() + lists.start[size_t(pixel)],
                   lists.row.data() + lists.start[size_t(pixel + 1)]);
      S *to = out + pixel * shape.outputs + block * LANES;
      A values[LANES];
      sums.write(values);
      if (n == LANES)
        for (int64_t j = 0; j < LANES; j++) store(to + j, values[j]);
      else
        for (int64_t j = 0; j < n; j++) store(to + j, values[j]);
    }
  }
}

template <int LANES, class S, class A>
void convolve(const uint8_t *x, const Shape &shape, const A *weights, const A *bias, S *out,
              int threads) {
  const int64_t group = shape.group();
#pragma omp parallel num_threads(threads)
  {
    PixelLists lists;
    RowLists rows;
#pragma omp for schedule(dynamic)
    for (int64_t g = 0; g < shape.groups(); g++) {
      const int64_t first = g * group, images = std::min(group, shape.images - first);
      lists.fill(x + first * shape.pixels() * shape.inputs, images * shape.pixels(), shape.inputs);
      rows.gather(lists, shape, images);
      convolve_group<LANES>(rows, shape, images * shape.pixels(), weights, bias,
                     out + first * shape.pixels() * shape.outputs);
    }
  }
}

// The spikes of each channel of a group of images, as positions in the padded group.
struct ChannelLists {
  std::vector<uint32_t> start, position;
  void fill(const uint8_t *x, const Shape &shape, int64_t images) {
    const int64_t channels = shape.inputs, pixels = images * shape.pixels();
    start.assign(size_t(channels + 1), 0);
    uint32_t *count = start.data() + 1;
    for (int64_t p = 0; p < pixels; p++)
#pragma omp simd
      for (int64_t c = 0; c < channels; c++) count[c] += x[p * channels + c];
    for (int64_t c = 0; c < channels; c++) start[size_t(c + 1)] += start[size_t(c)];
    position.resize(start.back());
    std::vector<uint32_t> next(start.begin(), start.end() - 1);
    const int64_t pad = shape.pad(), pitch = shape.width + 2 * pad;
    for (int64_t p = 0; p < pixels; p++) {
      const int64_t column = p % shape.width, row = p / shape.width;
      const int64_t image = row / shape.height;
      const int64_t at =
          (image * (shape.height + 2 * pad) + row % shape.height + pad) * pitch + column + pad;
      each_spike(x + p * channels, channels,
                 [&](int64_t c) { position[next[size_t(c)]++] = uint32_t(at); });
    }
  }
};

// A block of outputs' gradients of a group, with a border of zeros around each image.
template <int LANES, class S, class A>
void pad_block(const S *grad, const Shape &shape, int64_t images, int64_t block, A *padded) {
  const int64_t pad = shape.pad(), pitch = shape.width + 2 * pad;
  const int64_t n = std::min<int64_t>(LANES, shape.outputs - block * LANES);
  for (int64_t row = 0; row < images * shape.height; row++) {
    const int64_t image = row / shape.height;
    const int64_t at =
        (image * (shape.height + 2 * pad) + row % shape.height + pad) * pitch + pad;
    for (int64_t x = 0; x < shape.width; x++) {
      const S *from = grad + (row * shape.width + x) * shape.outputs + block * LANES;
      A *to = padded + (at + x) * LANES;
      for (int64_t j = 0; j < n; j++) to[j] = load(from[j]);
    }
  }
}

template <int LANES, class S, class A>
void weight_gradient(const uint8_t *x, const Shape &shape, const S *grad, A *grad_weights,
                     int threads) {
  const int64_t group = shape.group(), groups = shape.groups(), pad = shape.pad();
  const int64_t pitch = shape.width + 2 * pad, image = (shape.height + 2 * pad) * pitch;
  std::vector<ChannelLists> lists{size_t(groups)};
  // Parts of the channels, so that few outputs keep all threads busy too.
  const int64_t parts = shape.blocks() >= 2 * threads ? 1 : std::min<int64_t>(4, shape.inputs);
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(dynamic)
    for (int64_t g = 0; g < groups; g++)
      lists[size_t(g)].fill(x + g * group * shape.pixels() * shape.inputs, shape,
                            std::min(group, shape.images - g * group));
    std::vector<A> padded(size_t(group * image * LANES), A(0));
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < shape.blocks() * parts; task++) {
      const int64_t block = task / parts, part = task % parts;
      const int64_t from = part * shape.inputs / parts, to = (part + 1) * shape.inputs / parts;
      A *sums_of = grad_weights + block * shape.taps() * shape.inputs * LANES;
      for (int64_t g = 0; g < groups; g++) {
        const ChannelLists &list = lists[size_t(g)];
        const int64_t images = std::min(group, shape.images - g * group);
        pad_block<LANES>(grad + g * group * shape.pixels() * shape.outputs, shape, images, block,
                  padded.data());
        for (int64_t c = from; c < to; c++) {
          const uint32_t begin = list.start[size_t(c)], end = list.start[size_t(c + 1)];
          if (begin == end) continue;
          for (int64_t tap = 0; tap < shape.taps(); tap++) {
            const int64_t shift = (pad - tap / shape.size) * pitch + pad - tap % shape.size;
            A *sums_at = sums_of + (tap * shape.inputs + c) * LANES;
            Sums<A, LANES> sums;
            sums.read(sums_at);
            sums.add_all(padded.data() + shift * LANES, list.position.data() + begin,
                         list.position.data() + end);
            sums.write(sums_at);
          }
        }
      }
    }
  }
}

} // namespace

#define KERNELS(S, A, NAME)                                                                        \
  extern "C" void convolve_##NAME(const uint8_t *x, int64_t images, int64_t height, int64_t width, \
                                  int64_t inputs, int64_t outputs, int64_t size, int64_t lanes,    \
                                  const A *weights, const A *bias, S *out, int threads) {          \
    const Shape shape{images, height, width, inputs, outputs, size, lanes};                        \
    if (lanes == 32) convolve<32, S, A>(x, shape, weights, bias, out, threads);                    \
    else if (lanes == 64) convolve<64, S, A>(x, shape, weights, bias, out, threads);                                       \
    else convolve<128, S, A>(x, shape, weights, bias, out, threads);                                       \
  }                                                                                                \
  extern "C" void weight_gradient_##NAME(const uint8_t *x, int64_t images, int64_t height,         \
                                         int64_t width, int64_t inputs, int64_t outputs,           \
                                         int64_t size, int64_t lanes, const S *grad,               \
                                         A *grad_weights, int threads) {                           \
    const Shape shape{images, height, width, inputs, outputs, size, lanes};                        \
    if (lanes == 32) weight_gradient<32, S, A>(x, shape, grad, grad_weights, threads);             \
    else if (lanes == 64) weight_gradient<64, S, A>(x, shape, grad, grad_weights, threads);                                \
    else weight_gradient<128, S, A>(x, shape, grad, grad_weights, threads);                                \
  }

KERNELS(float, float, f32)
KERNELS(double, double, f64)
KERNELS(Bf16, float, bf16)

extern "C" int64_t spike_count(const uint8_t *x, int64_t n, int threads) {
  int64_t total = 0;
#pragma omp parallel for schedule(static) num_threads(threads) reduction(+ : total)
  for (int64_t i = 0; i < n; i++) total += x[i];
  return total;
}

extern "C" int64_t largest_count(const uint8_t *x, int64_t n, int threads) {
  using Vector = Packed<VECTOR_BYTES, uint8_t>::type; // compilers take bytes one by one here
  constexpr int64_t WIDTH = sizeof(Vector);
  uint8_t largest = 0;
#pragma omp parallel num_threads(threads) reduction(max : largest)
  {
    Vector most{};
#pragma omp for schedule(static)
    for (int64_t i = 0; i < n / WIDTH; i++) {
      const Vector some = fetched<Vector>(x + i * WIDTH);
      most = most > some ? most : some;
    }
    for (int64_t i = 0; i < WIDTH; i++) largest = std::max(largest, uint8_t(most[i]));
  }
  for (int64_t i = n / WIDTH * WIDTH; i < n; i++) largest = std::max(largest, x[i]);
  return largest;
}
