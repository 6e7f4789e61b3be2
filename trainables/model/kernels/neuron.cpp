// Batch norm and leaky integrate-and-fire in one pass over time, forward and backward.
//
// u = v + (z - v) r, s = [u >= threshold], v = u (1 - s), with z = x * scale + shift a channel and
// r = 1/tau. Spikes are bytes. The backward computes the membrane potentials again from x; reset is
// detached. A vector of neighbours runs through all timesteps in registers.
#include "lanes.h"

namespace {

// Values of a block of rows, whose sums are added as doubles, and what lies side by side where there
// are no channels.
constexpr int64_t BLOCK_VALUES = 2048, BLOCK_ROWS = 32;

// Cuts [rows, channels] into blocks of rows. With channels == 0 the rows are single values that lie
// side by side, and a block is one row of them.
struct Blocks {
  int64_t rows, channels, height;
  Blocks(int64_t rows, int64_t channels)
      : rows(rows), channels(channels),
        height(channels ? std::min(BLOCK_ROWS, std::max<int64_t>(1, BLOCK_VALUES / channels))
                        : BLOCK_VALUES) {}
  int64_t count() const { return (rows + height - 1) / height; }
  int64_t first(int64_t i) const { return i * height; }
  int64_t size(int64_t i) const { return std::min(height, rows - first(i)); }
  // Rows of a block and values of each of them.
  int64_t lines(int64_t i) const { return channels ? size(i) : 1; }
  int64_t width(int64_t i) const { return channels ? channels : size(i); }
};

// Currents as they lie in memory: row pitch and timestep pitch in values; pitch_t = 0: static.
template <class S> struct Currents {
  const S *x;
  int64_t pitch_t, pitch_row;
};

template <class A> struct Neuron {
  A rate, threshold;
  int64_t steps;
};

template <class A> inline A rate_of(const A *leak, double rate) {
  return leak ? A(1 / (1 + std::exp(-double(*leak)))) : A(rate);
}

// A batch norm's factors of a vector of channels; what is given where there is none stays as it is.
template <bool FULL, class A> struct Scaled {
  typename Lanes<A>::V scale, shift;
  bool is_norm;
  Scaled(const Affine<A> &norm, int64_t c, int64_t n) : scale{}, shift{}, is_norm(bool(norm)) {
    if (!is_norm) return;
    scale = load_some<FULL, A>(norm.scale() + c, n);
    shift = load_some<FULL, A>(norm.shift() + c, n);
  }
  template <class S> inline typename Lanes<A>::V read(const S *x, int64_t n) const {
    const typename Lanes<A>::V z = load_some<FULL, A>(x, n);
    return is_norm ? z * scale + shift : z;
  }
};

template <bool FULL, class S, class A>
inline void fire_vector(const S *x, int64_t pitch_t, const Scaled<FULL, A> norm,
                        const Neuron<A> how, uint8_t *spikes, int64_t pitch_spikes, int64_t n) {
  using V = typename Lanes<A>::V;
  V v{}, z{};
  for (int64_t t = 0; t < how.steps; t++) {
    if (t == 0 || pitch_t) z = norm.read(x + t * pitch_t, n);
    const V u = v + (z - v) * how.rate;
    const auto fires = u >= how.threshold;
    v = fires ? V{} : u;
    const auto bytes = __builtin_convertvector(
        fires & 1, typename Packed<Lanes<A>::WIDTH, uint8_t>::type);
    std::memcpy(spikes + t * pitch_spikes, &bytes, FULL ? sizeof bytes : size_t(n));
  }
}

template <class S, class A>
void fire(int64_t rows, int64_t channels, const Currents<S> &in, const Affine<A> &norm,
          const Neuron<A> &how, uint8_t *spikes, int threads) {
  const Blocks blocks(rows, channels);
  const int64_t pitch = std::max<int64_t>(channels, 1);
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t i = 0; i < blocks.count(); i++)
    for (int64_t line = 0; line < blocks.lines(i); line++) {
      const int64_t row = blocks.first(i) + line;
      each_vector<A>(blocks.width(i), [&](int64_t c, int64_t n, auto full) {
        const Scaled<decltype(full)::value, A> scaled(norm, c, n);
        fire_vector(in.x + row * in.pitch_row + c, in.pitch_t, scaled, how,
                    spikes + row * pitch + c, rows * pitch, n);
      });
    }
}

// A vector's sums over time: of dL/dz, of dL/dz x, of dL/du (z - v).
template <class A> struct Sums {
  typename Lanes<A>::V g, gx, rate;
};

// The gradients of a vector's currents: at every timestep, or summed at the first for static ones.
template <bool LEARNT, bool FULL, class S, class A>
inline Sums<A> backward_vector(const S *x, int64_t pitch_t, const Scaled<FULL, A> norm,
                               const Neuron<A> how, const S *grad_spikes, S *grad_x,
                               int64_t pitch_grad, typename Lanes<A>::V *potentials, int64_t n) {
  using V = typename Lanes<A>::V;
  V v{}, z{}, carry{}, total{}, product{}, learnt{};
  for (int64_t t = 0; t < how.steps; t++) {
    if (t == 0 || pitch_t) z = norm.read(x + t * pitch_t, n);
    const V u = v + (z - v) * how.rate;
    potentials[t] = u;
    v = u >= how.threshold ? V{} : u;
  }
  for (int64_t t = how.steps - 1; t >= 0; t--) {
    const V u = potentials[t], g = load_some<FULL, A>(grad_spikes + t * pitch_grad, n);
    const V du = g * surrogate(u - how.threshold) + (u >= how.threshold ? V{} : carry);
    carry = du * (A(1) - how.rate);
    if constexpr (LEARNT) {
      const V before = t ? potentials[t - 1] : V{};
      if (pitch_t) z = norm.read(x + t * pitch_t, n);
      learnt += du * (z - (before >= how.threshold ? V{} : before));
    }
    const V dz = du * how.rate;
    total += dz;
    if (!pitch_t) continue;
    store_some<FULL, A>(grad_x + t * pitch_grad, dz, n);
    if (norm.is_norm) product += dz * load_some<FULL, A>(x + t * pitch_t, n);
  }
  if (!pitch_t) {
    store_some<FULL, A>(grad_x, total, n);
    if (norm.is_norm) product = total * load_some<FULL, A>(x, n);
  }
  return {total, product, learnt};
}

template <class V, class A> inline double sum_of(const V &v, int64_t n, const A *) {
  double sum = 0;
  for (int64_t i = 0; i < n; i++) sum += double(v[i]);
  return sum;
}

// dL/dz of all timesteps into `grad_x` (summed over them for static currents), and a channel's sums
// of dL/dz and of dL/dz (x - mean) into `sums_2C`, of dL/du (z - v) into `sums_rate`.
template <bool LEARNT, class S, class A>
void fire_backward(const Fold &fold, const Currents<S> &in, const Affine<A> &norm,
                   const double *each_mean, const Neuron<A> &how, const S *grad_spikes, S *grad_x,
                   double *sums_2C, double *sums_rate, int threads) {
  using V = typename Lanes<A>::V;
  const int64_t rows = fold.rows, channels = fold.channels;
  const Blocks blocks(rows, channels);
  const std::vector<double> mean_C = fold.repeated(each_mean);
  const int64_t pitch = std::max<int64_t>(channels, 1), widest = norm ? channels : 0;
  Partial partial(threads, 2 * channels + 1);
#pragma omp parallel num_threads(threads)
  {
    double *sums = partial.mine(), *rate_sum = sums + 2 * channels;
    std::vector<V> potentials(size_t(how.steps));
    std::vector<A> of_block(size_t(2 * widest));
    A *sum_g = of_block.data(), *sum_gx = sum_g + widest;
#pragma omp for schedule(static)
    for (int64_t i = 0; i < blocks.count(); i++) {
      std::fill(of_block.begin(), of_block.end(), A(0));
      for (int64_t line = 0; line < blocks.lines(i); line++) {
        const int64_t row = blocks.first(i) + line;
        each_vector<A>(blocks.width(i), [&](int64_t c, int64_t n, auto full) {
          constexpr bool FULL = decltype(full)::value;
          const Scaled<FULL, A> scaled(norm, c, n);
          const int64_t at = row * pitch + c;
          const Sums<A> found = backward_vector<LEARNT, FULL, S, A>(
              in.x + row * in.pitch_row + c, in.pitch_t, scaled, how, grad_spikes + at,
              grad_x + at, rows * pitch, potentials.data(), n);
          if (LEARNT) *rate_sum += sum_of(found.rate, n, sum_g);
          if (!norm) return;
          store_some<FULL, A>(sum_g + c, load_some<FULL, A>(sum_g + c, n) + found.g, n);
          store_some<FULL, A>(sum_gx + c, load_some<FULL, A>(sum_gx + c, n) + found.gx, n);
        });
      }
      for (int64_t c = 0; c < widest; c++) {
        sums[c] += double(sum_g[c]);
        sums[channels + c] += double(sum_gx[c]) - mean_C[size_t(c)] * double(sum_g[c]);
      }
    }
  }
  if (norm) fold.add(partial.total(0, 2 * channels), 2, sums_2C);
  if (LEARNT) *sums_rate = partial.total(2 * channels, 1)[0];
}

} // namespace

#define KERNELS(S, A, NAME)                                                                        \
  extern "C" void fire_##NAME(int64_t rows, int64_t channels, int64_t pitch_row, const S *x,       \
                              int64_t pitch_t, int64_t steps, const double *mean,                  \
                              const double *inverse, const A *weight, const A *bias,               \
                              const A *leak, double rate, double threshold, uint8_t *spikes,       \
                              int threads) {                                                       \
    const Fold fold(rows, channels, pitch_row);                                                    \
    fire<S, A>(fold.rows, fold.channels, {x, pitch_t, fold.pitch_row},                             \
               Affine<A>(mean, inverse, weight, bias, fold),                                       \
               {rate_of(leak, rate), A(threshold), steps}, spikes, threads);                       \
  }                                                                                                \
  extern "C" void fire_backward_##NAME(                                                            \
      int64_t rows, int64_t channels, int64_t pitch_row, const S *x, int64_t pitch_t,              \
      int64_t steps, const double *mean, const double *inverse, const A *weight, const A *bias,    \
      const A *leak, double rate, double threshold, const S *grad_spikes, S *grad_x, double *sums, \
      double *sums_rate, int threads) {                                                            \
    const auto backward = sums_rate ? fire_backward<true, S, A> : fire_backward<false, S, A>;      \
    const Fold fold(rows, channels, pitch_row);                                                    \
    backward(fold, {x, pitch_t, fold.pitch_row}, Affine<A>(mean, inverse, weight, bias, fold),     \
             mean,                                                                                 \
             {rate_of(leak, rate), A(threshold), steps}, grad_spikes, grad_x, sums, sums_rate,     \
             threads);                                                                             \
  }

KERNELS(float, float, f32)
KERNELS(double, double, f64)
KERNELS(Bf16, float, bf16)
