// A batch norm's statistics, its application and its gradient, where no neuron follows.
//
// Sums are those of all rows: where a GPU has partial sums to finish, here there is one.
#include "common.h"

namespace {

// Sums of x - origin and of its square a channel, in blocks whose sums are double.
template <class S, class A>
void moments(const Fold &fold, const S *x, double *sums_2C, int threads) {
  constexpr int64_t BLOCK = 32;
  const int64_t rows = fold.rows, channels = fold.channels, pitch_row = fold.pitch_row;
  const int64_t blocks = (rows + BLOCK - 1) / BLOCK;
  Partial partial(threads, 2 * channels);
#pragma omp parallel num_threads(threads)
  {
    double *sums = partial.mine();
    std::vector<A> part(size_t(2 * channels)), origin(static_cast<size_t>(channels));
    for (int64_t c = 0; c < channels; c++) origin[size_t(c)] = load(x[c % fold.each()]);
    A *sum = part.data(), *square = part.data() + channels, *from = origin.data();
#pragma omp for schedule(static)
    for (int64_t b = 0; b < blocks; b++) {
      std::fill(part.begin(), part.end(), A(0));
      for (int64_t row = b * BLOCK; row < std::min(rows, (b + 1) * BLOCK); row++) {
        const S *values = x + row * pitch_row;
#pragma omp simd
        for (int64_t c = 0; c < channels; c++) {
          const A d = load(values[c]) - from[c];
          sum[c] += d;
          square[c] += d * d;
        }
      }
      for (int64_t c = 0; c < 2 * channels; c++) sums[c] += double(part[size_t(c)]);
    }
  }
  fold.add(partial.total(0, 2 * channels), 2, sums_2C);
}

// out = x * scale + shift.
template <class S, class A>
void affine(const Fold &fold, const S *x, const Affine<A> &norm, S *out, int threads) {
  const int64_t rows = fold.rows, channels = fold.channels, pitch_row = fold.pitch_row;
  const A *scale_C = norm.scale(), *shift_C = norm.shift();
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t row = 0; row < rows; row++) {
    const S *from = x + row * pitch_row;
    S *to = out + row * channels;
#pragma omp simd
    for (int64_t c = 0; c < channels; c++) store(to + c, load(from[c]) * scale_C[c] + shift_C[c]);
  }
}

// A channel's sums of g and of g (x - mean).
template <class S, class A>
void gradient_moments(const Fold &fold, const S *x, const S *g, const double *each_mean,
                      double *sums_2C, int threads) {
  constexpr int64_t BLOCK = 32;
  const int64_t rows = fold.rows, channels = fold.channels, pitch_row = fold.pitch_row;
  const std::vector<double> mean_C = fold.repeated(each_mean);
  const int64_t blocks = (rows + BLOCK - 1) / BLOCK;
  Partial partial(threads, 2 * channels);
#pragma omp parallel num_threads(threads)
  {
    double *sums = partial.mine();
    std::vector<A> part(size_t(2 * channels)), mean(mean_C.begin(), mean_C.end());
    A *sum = part.data(), *product = part.data() + channels;
    const A *centre = mean.data();
#pragma omp for schedule(static)
    for (int64_t b = 0; b < blocks; b++) {
      std::fill(part.begin(), part.end(), A(0));
      for (int64_t row = b * BLOCK; row < std::min(rows, (b + 1) * BLOCK); row++) {
        const S *values = x + row * pitch_row, *grads = g + row * channels;
#pragma omp simd
        for (int64_t c = 0; c < channels; c++) {
          const A d = load(grads[c]);
          sum[c] += d;
          product[c] += d * (load(values[c]) - centre[c]);
        }
      }
      for (int64_t c = 0; c < 2 * channels; c++) sums[c] += double(part[size_t(c)]);
    }
  }
  fold.add(partial.total(0, 2 * channels), 2, sums_2C);
}

// A channel's sums.
template <class S, class A>
void channel_sums(const Fold &fold, const S *x, A *sums_C, int threads) {
  constexpr int64_t BLOCK = 64;
  const int64_t rows = fold.rows, channels = fold.channels;
  const int64_t blocks = (rows + BLOCK - 1) / BLOCK;
  Partial partial(threads, channels);
#pragma omp parallel num_threads(threads)
  {
    double *sums = partial.mine();
    std::vector<A> part(static_cast<size_t>(channels));
    A *sum = part.data();
#pragma omp for schedule(static)
    for (int64_t b = 0; b < blocks; b++) {
      std::fill(part.begin(), part.end(), A(0));
      for (int64_t row = b * BLOCK; row < std::min(rows, (b + 1) * BLOCK); row++) {
        const S *values = x + row * channels;
#pragma omp simd
        for (int64_t c = 0; c < channels; c++) sum[c] += load(values[c]);
      }
      for (int64_t c = 0; c < channels; c++) sums[c] += double(sum[c]);
    }
  }
  fold.add(partial.total(0, channels), 1, sums_C);
}

// out = a g + b x + d a channel: the batch norm's gradient; `g` and `out` may be the same.
template <class S, class A>
void combine(const Fold &fold, const S *x, const S *g, const A *coefficients_3C, S *out,
             int threads) {
  const int64_t rows = fold.rows, channels = fold.channels, pitch_row = fold.pitch_row;
  std::vector<A> each[3];
  for (int i = 0; i < 3; i++) each[i] = fold.repeated(coefficients_3C + i * fold.each());
  const A *a = each[0].data(), *b = each[1].data(), *d = each[2].data();
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t row = 0; row < rows; row++) {
    const S *values = x + row * pitch_row, *grads = g + row * channels;
    S *to = out + row * channels;
#pragma omp simd
    for (int64_t c = 0; c < channels; c++)
      store(to + c, a[c] * load(grads[c]) + b[c] * load(values[c]) + d[c]);
  }
}

// Mean and 1 / sqrt(variance + eps) of sums of `rows` rows, which were seen `repeats` times each;
// running statistics move towards them. Without sums, of the running statistics.
template <class S, class A>
void finish_statistics(int64_t channels, const double *sums_2C, const S *x, int64_t rows,
                       int64_t repeats, double eps, double momentum, A *running_mean,
                       A *running_variance, int64_t *num_batches, double *mean, double *inverse) {
  const double seen = double(rows) * double(repeats);
  for (int64_t c = 0; c < channels; c++) {
    const double of_mean = double(running_mean[c]), of_variance = double(running_variance[c]);
    double variance = of_variance;
    mean[c] = of_mean;
    if (sums_2C) {
      const double offset = sums_2C[c] / double(rows), square = sums_2C[channels + c] / double(rows);
      variance = std::max(square - offset * offset, 0.0);
      mean[c] = offset + double(load(x[c]));
      const double unbiased = variance * (seen / (seen - 1));
      running_mean[c] = A(of_mean + (mean[c] - of_mean) * momentum);
      running_variance[c] = A(of_variance + (unbiased - of_variance) * momentum);
    }
    inverse[c] = 1 / std::sqrt(variance + eps);
  }
  if (sums_2C) ++*num_batches;
}

// Coefficients of `combine`, and the gradients of weight and bias.
template <class A>
void finish_gradient(int64_t channels, const double *sums_2C, int64_t rows, bool is_of_batch,
                     const double *mean, const double *inverse, const A *weight,
                     A *coefficients_3C, A *grad_weight, A *grad_bias) {
  for (int64_t c = 0; c < channels; c++) {
    const double sum = sums_2C[c], product = sums_2C[channels + c];
    const double scale = double(weight[c]) * inverse[c];
    double slope = -scale * inverse[c] * inverse[c] * product / double(rows);
    double offset = -scale * sum / double(rows) - slope * mean[c];
    if (!is_of_batch) slope = offset = 0;
    coefficients_3C[c] = A(scale);
    coefficients_3C[channels + c] = A(slope);
    coefficients_3C[2 * channels + c] = A(offset);
    grad_weight[c] = A(product * inverse[c]);
    grad_bias[c] = A(sum);
  }
}

// The gradient of the leak w, of which the rate is the sigmoid.
template <class A> void finish_rate(const double *sum, const A *leak, A *grad_leak) {
  const double rate = 1 / (1 + std::exp(-double(*leak)));
  *grad_leak = A(*sum * rate * (1 - rate));
}

} // namespace

#define KERNELS(S, A, NAME)                                                                        \
  extern "C" void moments_##NAME(int64_t rows, int64_t channels, int64_t pitch_row, const S *x,    \
                                 double *sums, int threads) {                                      \
    moments<S, A>({rows, channels, pitch_row}, x, sums, threads);                                  \
  }                                                                                                \
  extern "C" void affine_##NAME(int64_t rows, int64_t channels, int64_t pitch_row, const S *x,     \
                                const double *mean, const double *inverse, const A *weight,        \
                                const A *bias, S *out, int threads) {                              \
    const Fold fold(rows, channels, pitch_row);                                                    \
    affine<S, A>(fold, x, Affine<A>(mean, inverse, weight, bias, fold), out, threads);             \
  }                                                                                                \
  extern "C" void gradient_moments_##NAME(int64_t rows, int64_t channels, int64_t pitch_row,       \
                                          const S *x, const S *g, const double *mean,              \
                                          double *sums, int threads) {                             \
    gradient_moments<S, A>({rows, channels, pitch_row}, x, g, mean, sums, threads);                \
  }                                                                                                \
  extern "C" void channel_sums_##NAME(int64_t rows, int64_t channels, const S *x, A *sums,         \
                                      int threads) {                                               \
    channel_sums<S, A>({rows, channels, channels}, x, sums, threads);                              \
  }                                                                                                \
  extern "C" void combine_##NAME(int64_t rows, int64_t channels, int64_t pitch_row, const S *x,    \
                                 const S *g, const A *coefficients, S *out, int threads) {         \
    combine<S, A>({rows, channels, pitch_row}, x, g, coefficients, out, threads);                  \
  }                                                                                                \
  extern "C" void finish_statistics_##NAME(                                                        \
      int64_t, int64_t channels, const double *sums, const S *x, int64_t rows, int64_t repeats,    \
      double eps, double momentum, A *running_mean, A *running_variance, int64_t *num_batches,     \
      double *mean, double *inverse, int) {                                                        \
    finish_statistics<S, A>(channels, sums, x, rows, repeats, eps, momentum, running_mean,         \
                            running_variance, num_batches, mean, inverse);                         \
  }                                                                                                \
  extern "C" void finish_gradient_##NAME(int64_t, int64_t channels, const double *sums,            \
                                         int64_t rows, int64_t is_of_batch, const double *mean,    \
                                         const double *inverse, const A *weight, A *coefficients,  \
                                         A *grad_weight, A *grad_bias, int) {                      \
    finish_gradient<A>(channels, sums, rows, is_of_batch, mean, inverse, weight, coefficients,     \
                       grad_weight, grad_bias);                                                    \
  }                                                                                                \
  extern "C" void finish_rate_##NAME(int64_t, int64_t, const double *sums, const A *leak,          \
                                     A *grad_leak, int) {                                          \
    finish_rate<A>(sums, leak, grad_leak);                                                         \
  }

KERNELS(float, float, f32)
KERNELS(double, double, f64)
KERNELS(Bf16, float, bf16)
