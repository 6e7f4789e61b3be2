// Batch norm and leaky integrate-and-fire in one pass over time, forward and backward.
//
// u = v + (z - v) r, s = [u >= threshold], v = u (1 - s), with z = x * scale + shift a channel and
// r = 1/tau. Spikes are bytes. The backward computes the membrane potentials again from x; reset is
// detached. Work is cut into tiles of up to TILE values that run through all timesteps in cache.
#include "common.h"

namespace {

constexpr int64_t TILE = 512;

// Where a tile lies: `rows` rows of `width` channels from channel `c0` on.
struct Tile {
  int64_t row, rows, c0, width;
  int64_t size() const { return rows * width; }
};

// Cuts [rows, channels] into tiles. With channels == 0 the rows are single values that lie side by
// side, and a tile is one row of them.
struct Tiling {
  int64_t rows, channels, tile_rows, tile_width, across, down;
  Tiling(int64_t rows, int64_t channels) : rows(rows), channels(channels) {
    tile_width = std::min<int64_t>(std::max<int64_t>(channels, 1), TILE);
    tile_rows = std::max<int64_t>(1, TILE / tile_width);
    across = channels ? (channels + tile_width - 1) / tile_width : 1;
    down = (rows + tile_rows - 1) / tile_rows;
  }
  int64_t count() const { return across * down; }
  // Tiles of the same channels follow each other.
  Tile at(int64_t i) const {
    const int64_t row = i % down * tile_rows, c0 = i / down * tile_width;
    const int64_t height = std::min(tile_rows, rows - row);
    if (!channels) return {row, 1, 0, height};
    return {row, height, c0, std::min(tile_width, channels - c0)};
  }
};

// Currents as they lie in memory: row pitch and timestep pitch in values; pitch_t = 0: static.
template <class S> struct Currents {
  const S *x;
  int64_t pitch_t, pitch_row;
};

template <class S, class A>
inline void read(const Currents<S> &in, int64_t t, const Tile &tile, A *out) {
  for (int64_t r = 0; r < tile.rows; r++) {
    const S *x = in.x + t * in.pitch_t + (tile.row + r) * in.pitch_row + tile.c0;
    A *o = out + r * tile.width;
#pragma omp simd
    for (int64_t c = 0; c < tile.width; c++) o[c] = load(x[c]);
  }
}

template <class A> inline void repeat(const A *from, const Tile &tile, A *out) {
  for (int64_t r = 0; r < tile.rows; r++)
    for (int64_t c = 0; c < tile.width; c++) out[r * tile.width + c] = from[tile.c0 + c];
}

// Normalised currents of a tile at a timestep.
template <class S, class A>
inline void normalised(const Currents<S> &in, const Affine<A> &norm, int64_t t, const Tile &tile,
                       const A *scale, const A *shift, A *z) {
  read(in, t, tile, z);
  if (!norm) return;
  const int64_t n = tile.size();
#pragma omp simd
  for (int64_t i = 0; i < n; i++) z[i] = z[i] * scale[i] + shift[i];
}

template <class A> inline A rate_of(const A *leak, double rate) {
  return leak ? A(1 / (1 + std::exp(-double(*leak)))) : A(rate);
}

template <class S, class A>
void fire(int64_t rows, int64_t channels, const Currents<S> &in, int64_t steps,
          const Affine<A> &norm, A r, A th, uint8_t *spikes, int threads) {
  const Tiling tiling(rows, channels);
  const int64_t pitch = std::max<int64_t>(channels, 1), pitch_t = in.pitch_t;
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t i = 0; i < tiling.count(); i++) {
    const Tile tile = tiling.at(i);
    const int64_t n = tile.size();
    A scale[TILE], shift[TILE], z[TILE], v[TILE];
    uint8_t fired[TILE];
    if (norm) repeat(norm.scale(), tile, scale), repeat(norm.shift(), tile, shift);
    std::fill(v, v + n, A(0));
    for (int64_t t = 0; t < steps; t++) {
      if (t == 0 || pitch_t) normalised(in, norm, t, tile, scale, shift, z);
#pragma omp simd
      for (int64_t j = 0; j < n; j++) {
        const A u = v[j] + (z[j] - v[j]) * r;
        const A s = u >= th ? A(1) : A(0);
        fired[j] = uint8_t(s);
        v[j] = u * (A(1) - s);
      }
      for (int64_t k = 0; k < tile.rows; k++)
        std::memcpy(spikes + (t * rows + tile.row + k) * pitch + tile.c0, fired + k * tile.width,
                    size_t(tile.width));
    }
  }
}

// dL/dz of all timesteps into `grad_x` (summed over them for static currents), and a channel's sums
// of dL/dz and of dL/dz (x - mean) into `sums_2C`, of dL/du (z - v) into `sums_rate`.
template <class S, class A>
void fire_backward(int64_t rows, int64_t channels, const Currents<S> &in, int64_t steps,
                   const Affine<A> &norm, const double *mean_C, A r, A th, const S *grad_spikes,
                   S *grad_x, double *sums_2C, double *sums_rate, int threads) {
  const Tiling tiling(rows, channels);
  const int64_t pitch = std::max<int64_t>(channels, 1), pitch_t = in.pitch_t;
  Partial partial(threads, 2 * channels + 1);
#pragma omp parallel num_threads(threads)
  {
    double *sums = partial.mine(), *rate_sum = sums + 2 * channels;
    std::vector<A> potentials(size_t(steps * TILE));
    A scale[TILE], shift[TILE], z[TILE], v[TILE], g[TILE], carry[TILE], total[TILE];
    A sum_g[TILE], sum_gx[TILE];
#pragma omp for schedule(static)
    for (int64_t i = 0; i < tiling.count(); i++) {
      const Tile tile = tiling.at(i);
      const int64_t n = tile.size();
      if (norm) repeat(norm.scale(), tile, scale), repeat(norm.shift(), tile, shift);
      std::fill(v, v + n, A(0));
      for (int64_t t = 0; t < steps; t++) {
        A *u = potentials.data() + t * TILE;
        if (t == 0 || pitch_t) normalised(in, norm, t, tile, scale, shift, z);
#pragma omp simd
        for (int64_t j = 0; j < n; j++) {
          u[j] = v[j] + (z[j] - v[j]) * r;
          v[j] = u[j] * (A(1) - (u[j] >= th ? A(1) : A(0)));
        }
      }
      std::fill(carry, carry + n, A(0));
      std::fill(total, total + n, A(0));
      std::fill(sum_g, sum_g + n, A(0));
      std::fill(sum_gx, sum_gx + n, A(0));
      for (int64_t t = steps - 1; t >= 0; t--) {
        const A *u = potentials.data() + t * TILE;
        const Currents<S> grads{grad_spikes, rows * pitch, pitch};
        read(grads, t, tile, g);
#pragma omp simd
        for (int64_t j = 0; j < n; j++) {
          const A s = u[j] >= th ? A(1) : A(0);
          const A du = g[j] * surrogate(u[j] - th) + carry[j] * (A(1) - s);
          carry[j] = du * (A(1) - r);
          g[j] = du;
        }
        if (sums_rate) {
          const A *before = potentials.data() + (t - 1) * TILE;
          if (pitch_t) normalised(in, norm, t, tile, scale, shift, z);
          for (int64_t j = 0; j < n; j++) {
            const A v_before = t && before[j] < th ? before[j] : A(0);
            *rate_sum += double(g[j] * (z[j] - v_before));
          }
        }
#pragma omp simd
        for (int64_t j = 0; j < n; j++) g[j] *= r, total[j] += g[j];
        const bool is_written = pitch_t || t == 0;
        if (!pitch_t) std::copy(total, total + n, g);
        if (!is_written) continue;
        for (int64_t k = 0; k < tile.rows; k++) {
          S *o = grad_x + ((pitch_t ? t * rows : 0) + tile.row + k) * pitch + tile.c0;
          for (int64_t c = 0; c < tile.width; c++) store(o + c, g[k * tile.width + c]);
        }
        if (!norm) continue;
        read(in, t, tile, z);
#pragma omp simd
        for (int64_t j = 0; j < n; j++) sum_g[j] += g[j], sum_gx[j] += g[j] * z[j];
      }
      if (!norm) continue;
      double *sum = sums + tile.c0, *product = sum + channels;
      for (int64_t k = 0; k < tile.rows; k++) {
        const A *g_row = sum_g + k * tile.width, *gx_row = sum_gx + k * tile.width;
        for (int64_t c = 0; c < tile.width; c++) {
          sum[c] += double(g_row[c]);
          product[c] += double(gx_row[c]) - mean_C[tile.c0 + c] * double(g_row[c]);
        }
      }
    }
  }
  if (norm) partial.total(0, 2 * channels, sums_2C);
  if (sums_rate) partial.total(2 * channels, 1, sums_rate);
}

} // namespace

#define KERNELS(S, A, NAME)                                                                        \
  extern "C" void fire_##NAME(int64_t rows, int64_t channels, int64_t pitch_row, const S *x,       \
                              int64_t pitch_t, int64_t steps, const double *mean,                  \
                              const double *inverse, const A *weight, const A *bias,               \
                              const A *leak, double rate, double threshold, uint8_t *spikes,       \
                              int threads) {                                                       \
    fire<S, A>(rows, channels, {x, pitch_t, pitch_row}, steps,                                     \
               Affine<A>(mean, inverse, weight, bias, channels), rate_of(leak, rate),              \
               A(threshold), spikes, threads);                                                     \
  }                                                                                                \
  extern "C" void fire_backward_##NAME(                                                            \
      int64_t rows, int64_t channels, int64_t pitch_row, const S *x, int64_t pitch_t,              \
      int64_t steps, const double *mean, const double *inverse, const A *weight, const A *bias,    \
      const A *leak, double rate, double threshold, const S *grad_spikes, S *grad_x, double *sums, \
      double *sums_rate, int threads) {                                                            \
    fire_backward<S, A>(rows, channels, {x, pitch_t, pitch_row}, steps,                            \
                        Affine<A>(mean, inverse, weight, bias, channels), mean,                    \
                        rate_of(leak, rate), A(threshold), grad_spikes, grad_x, sums, sums_rate,   \
                        threads);                                                                  \
  }

KERNELS(float, float, f32)
KERNELS(double, double, f64)
KERNELS(Bf16, float, bf16)
