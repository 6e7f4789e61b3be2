// Products with gradients in bf16, summed as integers: those of 1x1 convolutions.
//
// Gradients become multiples of a step that a block of them shares, and so do weights; sums of a
// block are exact and fit 32 bits, sums of blocks are floats.
#include "pairs.h"

#if HAS_PAIRS
namespace {

constexpr int64_t WIDTH = Lanes<float>::WIDTH;

// The lowest 16 bits are the multiple.
inline Bits multiples(Values v, Values inverse) { return (Bits)(v * inverse + TO_INTEGER); }
inline Bits paired(Bits first, Bits second) { return (first & 0xFFFFu) | (second << 16); }

// ---- The gradient of a weight: grads[rows, outputs]^T counts[rows, inputs] ----

// Rows of a block: 256 of the largest byte times the largest multiple are less than 2^31.
constexpr int64_t BLOCK_ROWS = 256, BLOCK_PAIRS = BLOCK_ROWS / 2;
// Outputs that share a panel of counts while it is in cache.
constexpr int64_t GROUP = 16 * ROWS;
constexpr float MOST = 32767;

// A group of outputs' gradients of a block of rows, in pairs of rows [tiles][BLOCK_PAIRS][ROWS].
struct Gradients {
  std::vector<int32_t> pairs;
  std::vector<float> steps, inverses;
  std::vector<uint32_t> largest;
  Gradients()
      : pairs(size_t(BLOCK_PAIRS * GROUP)), steps(size_t(GROUP)), inverses(size_t(GROUP)),
        largest(size_t(GROUP)) {}

  // Rows lie far apart: each is read from its first value to its last.
  void fill(const Bf16 *grad, int64_t rows, int64_t pitch, int64_t outputs) {
    std::fill(largest.begin(), largest.end(), 0);
    for (int64_t row = 0; row < rows; row++)
      each_vector<float>(outputs, [&](int64_t at, int64_t n, auto full) {
        const Values v = load_some<decltype(full)::value, float>(grad + row * pitch + at, n);
        const Bits most = larger(fetched<Bits>(largest.data() + at), size_bits(v));
        std::memcpy(largest.data() + at, &most, sizeof most);
      });
    for (size_t n = 0; n < largest.size(); n++) {
      const Step step(largest[n], MOST);
      steps[n] = step.size;
      inverses[n] = step.inverse;
    }
    uint32_t line[GROUP] = {};
    for (int64_t row = 0; row < rows; row += 2) {
      const Bf16 *first = grad + row * pitch, *second = first + pitch;
      each_vector<float>(outputs, [&](int64_t at, int64_t n, auto full) {
        constexpr bool FULL = decltype(full)::value;
        const Values inverse = load_lanes(inverses.data() + at);
        const Values below =
            row + 1 < rows ? load_some<FULL, float>(second + at, n) : Values{};
        const Bits both = paired(multiples(load_some<FULL, float>(first + at, n), inverse),
                                 multiples(below, inverse));
        std::memcpy(line + at, &both, sizeof both);
      });
      for (int64_t n = 0; n < outputs; n += ROWS)
        std::memcpy(pairs.data() + n * BLOCK_PAIRS + row / 2 * ROWS, line + n,
                    ROWS * sizeof(int32_t));
    }
  }
};

// A panel of inputs' counts of a block of rows, in pairs of rows [BLOCK_PAIRS][PANEL].
void pair_counts(const uint8_t *x, int64_t rows, int64_t pitch, int64_t inputs, int32_t *to) {
  constexpr int64_t STEP = 16; // as many bytes as are interleaved at once
  static const uint8_t none[PANEL] = {};
  for (int64_t row = 0; row < rows; row += 2, to += PANEL) {
    const uint8_t *first = x + row * pitch, *second = row + 1 < rows ? first + pitch : none;
    int64_t c = 0;
    for (; c + STEP <= inputs; c += STEP) {
      const __m128i a = fetched<__m128i>(first + c), b = fetched<__m128i>(second + c);
      const __m128i halves[] = {_mm_unpacklo_epi8(a, b), _mm_unpackhi_epi8(a, b)};
      uint8_t bytes[2 * STEP];
      std::memcpy(bytes, halves, sizeof bytes);
      for (int64_t i = 0; i < STEP; i += WIDTH) {
        const Pairs wide = widened_bytes(bytes + 2 * i);
        std::memcpy(to + c + i, &wide, sizeof wide);
      }
    }
    for (; c < inputs; c++) to[c] = int32_t(first[c]) | int32_t(second[c]) << 16;
  }
}

template <int COUNT>
inline void add_row(const Pairs (&sums)[COUNT], float step, int64_t n, float *to) {
  for (int64_t i = 0; i < COUNT; i++, to += WIDTH, n -= WIDTH) {
    const Values found = as_floats(sums[i]) * step;
    if (n >= WIDTH) store_lanes(to, load_lanes(to) + found);
    else if (n > 0) store_some<false, float>(to, load_some<false, float>(to, n) + found, n);
  }
}

// Adds a group of outputs' sums over all rows; a block's counts of a panel stay in cache.
void add_group(const uint8_t *x, const Bf16 *grad, int64_t rows, int64_t inputs, int64_t outputs,
               int64_t first, Gradients &grads, int32_t *counts, float *sums) {
  const int64_t group = std::min(GROUP, outputs - first);
  for (int64_t row = 0; row < rows; row += BLOCK_ROWS) {
    const int64_t some = std::min(BLOCK_ROWS, rows - row);
    grads.fill(grad + row * outputs + first, some, outputs, group);
    for (int64_t c0 = 0; c0 < inputs; c0 += PANEL) {
      const int64_t panel = std::min(PANEL, inputs - c0);
      pair_counts(x + row * inputs + c0, some, inputs, panel, counts);
      each_tile<float>(panel, [&](int64_t at, int64_t k, auto tile) {
        for (int64_t n = 0; n < group; n += ROWS) {
          const int32_t *lines[ROWS];
          for (int64_t r = 0; r < ROWS; r++) lines[r] = grads.pairs.data() + n * BLOCK_PAIRS + r;
          PairTile<VECTORS_OF<decltype(tile)>> found;
          found.sum(lines, ROWS, counts + at, (some + 1) / 2);
          for (int64_t r = 0; r < std::min<int64_t>(ROWS, group - n); r++)
            add_row(found.sums[r], grads.steps[size_t(n + r)], k,
                    sums + (first + n + r) * inputs + c0 + at);
        }
      });
    }
  }
}

// ---- The gradient of an input: grads[rows, depth] weights[depth, columns] ----

// Inputs of a block: 128 products of two largest multiples are less than 2^31.
constexpr int64_t BLOCK_DEPTH = 128, BLOCK_DEPTH_PAIRS = BLOCK_DEPTH / 2;
constexpr float MOST_OF_BOTH = 4095;
// Rows that share a panel's block of weights while it is in cache.
constexpr int64_t GROUP_ROWS = 96;

inline int64_t pairs_of(int64_t depth) { return (depth + 1) / 2; }
inline int64_t blocks_of(int64_t depth) { return (depth + BLOCK_DEPTH - 1) / BLOCK_DEPTH; }

// Weights as panels [ceil(columns / PANEL)][pairs][PANEL][2], with a step for each column.
struct Weights {
  std::vector<int32_t, Aligned<int32_t>> panels;
  std::vector<float> steps;

  Weights(const float *from, int64_t depth, int64_t columns, int threads)
      : panels(size_t((columns + PANEL - 1) / PANEL * PANEL * pairs_of(depth))),
        steps(panels.size() / size_t(pairs_of(depth))) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t c0 = 0; c0 < columns; c0 += PANEL)
      each_vector<float>(std::min(PANEL, columns - c0), [&](int64_t at, int64_t n, auto full) {
        constexpr bool FULL = decltype(full)::value;
        const auto read = [&](int64_t k) {
          return k < depth ? load_some<FULL, float>(from + k * columns + c0 + at, n) : Values{};
        };
        Bits largest{};
        for (int64_t k = 0; k < depth; k++) largest = larger(largest, size_bits(read(k)));
        Values inverse{};
        for (int64_t i = 0; i < n; i++) {
          const Step step(largest[i], MOST_OF_BOTH);
          steps[size_t(c0 + at + i)] = step.size;
          inverse[i] = step.inverse;
        }
        int32_t *to = panels.data() + c0 * pairs_of(depth) + at;
        for (int64_t k = 0; k < depth; k += 2, to += PANEL) {
          const Bits both = paired(multiples(read(k), inverse), multiples(read(k + 1), inverse));
          std::memcpy(to, &both, sizeof both);
        }
      });
  }
};

// Rows of gradients as pairs of multiples, with a step for each block of a row.
struct RowBlocks {
  std::vector<int32_t> pairs;
  std::vector<float> steps;
  explicit RowBlocks(int64_t depth)
      : pairs(size_t(GROUP_ROWS * pairs_of(depth))), steps(size_t(GROUP_ROWS * blocks_of(depth))) {}

  void fill(const Bf16 *x, int64_t rows, int64_t depth) {
    float *step_of = steps.data();
    for (int64_t row = 0; row < rows; row++)
      for (int64_t first = 0; first < depth; first += BLOCK_DEPTH) {
        const int64_t count = std::min(BLOCK_DEPTH, depth - first);
        const Bf16 *from = x + row * depth + first;
        Bits sizes{};
        each_vector<float>(count, [&](int64_t at, int64_t n, auto full) {
          sizes = larger(sizes, size_bits(load_some<decltype(full)::value, float>(from + at, n)));
        });
        const Step step(largest_of(sizes), MOST_OF_BOTH);
        *step_of++ = step.size;
        const Values inverse = Values{} + step.inverse;
        int16_t *to = reinterpret_cast<int16_t *>(pairs.data() + row * pairs_of(depth)) + first;
        each_vector<float>(count, [&](int64_t at, int64_t n, auto full) {
          const Bits found =
              multiples(load_some<decltype(full)::value, float>(from + at, n), inverse);
          const Half halves = __builtin_convertvector(found, Half);
          std::memcpy(to + at, &halves, size_t(n) * sizeof(int16_t));
        });
      }
  }
};

// The products of a group of rows with a panel of `n` columns.
void multiply_group(const RowBlocks &group, int64_t rows, int64_t depth, const int32_t *panel,
                    const float *steps, int64_t n, float *sums, Bf16 *out, int64_t columns) {
  std::fill(sums, sums + rows * PANEL, 0.0f);
  for (int64_t block = 0; block < blocks_of(depth); block++) {
    const int64_t from = block * BLOCK_DEPTH_PAIRS;
    const int64_t pairs = std::min(BLOCK_DEPTH_PAIRS, pairs_of(depth) - from);
    each_tile<float>(n, [&](int64_t at, int64_t, auto tile) {
      constexpr int COUNT = VECTORS_OF<decltype(tile)>;
      for (int64_t row = 0; row < rows; row += ROWS) {
        const int32_t *lines[ROWS];
        for (int64_t r = 0; r < ROWS; r++)
          lines[r] = group.pairs.data() + std::min(row + r, rows - 1) * pairs_of(depth) + from;
        PairTile<COUNT> found;
        found.sum(lines, 1, panel + from * PANEL + at, pairs);
        for (int64_t r = 0; r < std::min<int64_t>(ROWS, rows - row); r++)
          add_row(found.sums[r], group.steps[size_t((row + r) * blocks_of(depth) + block)],
                  COUNT * WIDTH, sums + (row + r) * PANEL + at);
      }
    });
  }
  for (int64_t row = 0; row < rows; row++)
    each_vector<float>(n, [&](int64_t at, int64_t some, auto full) {
      const Values found = load_lanes(sums + row * PANEL + at) * load_lanes(steps + at);
      store_some<decltype(full)::value, float>(out + row * columns + at, found, some);
    });
}

} // namespace

extern "C" void weight_gradient_integer_bf16(const uint8_t *x, int64_t rows, int64_t inputs,
                                             int64_t outputs, const Bf16 *grad, float *sums,
                                             int threads) {
#pragma omp parallel num_threads(threads)
  {
    Gradients grads;
    std::vector<int32_t, Aligned<int32_t>> counts(size_t(BLOCK_PAIRS * PANEL));
#pragma omp for schedule(dynamic)
    for (int64_t first = 0; first < outputs; first += GROUP)
      add_group(x, grad, rows, inputs, outputs, first, grads, counts.data(), sums);
  }
}

extern "C" void multiply_integer_bf16(int64_t rows, int64_t depth, int64_t columns, const Bf16 *x,
                                      const float *weights, Bf16 *out, int threads) {
  const Weights packed(weights, depth, columns, threads);
#pragma omp parallel num_threads(threads)
  {
    RowBlocks group(depth);
    std::vector<float, Aligned<float>> sums(size_t(GROUP_ROWS * PANEL));
#pragma omp for schedule(dynamic)
    for (int64_t first = 0; first < rows; first += GROUP_ROWS) {
      const int64_t count = std::min(GROUP_ROWS, rows - first);
      group.fill(x + first * depth, count, depth);
      for (int64_t c0 = 0; c0 < columns; c0 += PANEL)
        multiply_group(group, count, depth, packed.panels.data() + c0 * pairs_of(depth),
                       packed.steps.data() + c0, std::min(PANEL, columns - c0), sums.data(),
                       out + first * columns + c0, columns);
    }
  }
}
#endif
