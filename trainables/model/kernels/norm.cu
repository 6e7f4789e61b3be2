// A batch norm's statistics, its application and its gradient, where no neuron follows.
#include "device.cuh"

constexpr int GROUP = 16; // values whose sum is A; the sums of groups are double

// Partial sums of x - origin and of its square a channel, the origin being the first row.
template <int V>
__device__ inline void moments(i64 rows, i64 channels, i64 pitch_row, const S *__restrict__ x,
                               double *sums) {
  const i64 channel = first_channel<V>();
  double sum[V], square[V];
  for (int i = 0; i < V; i++) sum[i] = square[i] = 0;
  if (channel < channels) {
    A origin[V];
    read<V>(x + channel, origin);
    for (i64 row = first_row(); row < rows;) {
      A group_sum[V], group_square[V];
      fill(group_sum, A(0));
      fill(group_square, A(0));
#pragma unroll 4
      for (int k = 0; k < GROUP && row < rows; k++, row += row_step()) {
        A values[V];
        read<V>(x + row * pitch_row + channel, values);
#pragma unroll
        for (int i = 0; i < V; i++) {
          const A d = values[i] - origin[i];
          group_sum[i] += d;
          group_square[i] += d * d;
        }
      }
#pragma unroll
      for (int i = 0; i < V; i++) sum[i] += group_sum[i], square[i] += group_square[i];
    }
  }
  store_sums<V>(sum, square, channels, sums);
}

// Partial sums of g and of g (x - mean) a channel.
template <int V>
__device__ inline void gradient_moments(i64 rows, i64 channels, i64 pitch_row,
                                        const S *__restrict__ x, const S *__restrict__ grad,
                                        const double *mean, double *sums) {
  const i64 channel = first_channel<V>();
  double sum[V], product[V];
  for (int i = 0; i < V; i++) sum[i] = product[i] = 0;
  if (channel < channels) {
    A centre[V];
    for (int i = 0; i < V; i++) centre[i] = static_cast<A>(mean[channel + i]);
    for (i64 row = first_row(); row < rows;) {
      A group_sum[V], group_product[V];
      fill(group_sum, A(0));
      fill(group_product, A(0));
#pragma unroll 4
      for (int k = 0; k < GROUP && row < rows; k++, row += row_step()) {
        A values[V], g[V];
        read<V>(x + row * pitch_row + channel, values);
        read<V>(grad + row * channels + channel, g);
#pragma unroll
        for (int i = 0; i < V; i++) {
          group_sum[i] += g[i];
          group_product[i] += g[i] * (values[i] - centre[i]);
        }
      }
#pragma unroll
      for (int i = 0; i < V; i++) sum[i] += group_sum[i], product[i] += group_product[i];
    }
  }
  store_sums<V>(sum, product, channels, sums);
}

// out = x * scale + shift.
template <int V>
__device__ inline void affine(i64 rows, i64 channels, i64 pitch_row, const S *__restrict__ x,
                              const double *mean, const double *inverse, const A *weight,
                              const A *bias, S *__restrict__ out) {
  const i64 channel = first_channel<V>();
  if (channel >= channels) return;
  const Norm<V> norm(mean, inverse, weight, bias, channel);
#pragma unroll 4
  for (i64 row = first_row(); row < rows; row += row_step()) {
    A values[V];
    read<V>(x + row * pitch_row + channel, values);
#pragma unroll
    for (int i = 0; i < V; i++) values[i] = values[i] * norm.scale[i] + norm.shift[i];
    write<V>(out + row * channels + channel, values);
  }
}

// out = a g + b x + d a channel: the batch norm's gradient; `grad` and `out` may be the same.
template <int V>
__device__ inline void combine(i64 rows, i64 channels, i64 pitch_row, const S *__restrict__ x,
                               const S *grad, const A *coefficients_3C, S *out) {
  const i64 channel = first_channel<V>();
  if (channel >= channels) return;
  A a[V], b[V], d[V];
#pragma unroll
  for (int i = 0; i < V; i++) {
    a[i] = coefficients_3C[channel + i];
    b[i] = coefficients_3C[channels + channel + i];
    d[i] = coefficients_3C[2 * channels + channel + i];
  }
#pragma unroll 4
  for (i64 row = first_row(); row < rows; row += row_step()) {
    A values[V], g[V];
    read<V>(x + row * pitch_row + channel, values);
    read<V>(grad + row * channels + channel, g);
#pragma unroll
    for (int i = 0; i < V; i++) values[i] = a[i] * g[i] + b[i] * values[i] + d[i];
    write<V>(out + row * channels + channel, values);
  }
}

#define SWEEPS(V)                                                                                  \
  extern "C" __global__ void __launch_bounds__(BLOCK)                                              \
      moments_##V(i64 rows, i64 channels, i64 pitch_row, const S *x, double *sums) {               \
    moments<V>(rows, channels, pitch_row, x, sums);                                                \
  }                                                                                                \
  extern "C" __global__ void __launch_bounds__(BLOCK)                                              \
      gradient_moments_##V(i64 rows, i64 channels, i64 pitch_row, const S *x, const S *grad,       \
                           const double *mean, double *sums) {                                     \
    gradient_moments<V>(rows, channels, pitch_row, x, grad, mean, sums);                           \
  }                                                                                                \
  extern "C" __global__ void __launch_bounds__(BLOCK)                                              \
      affine_##V(i64 rows, i64 channels, i64 pitch_row, const S *x, const double *mean,            \
                 const double *inverse, const A *weight, const A *bias, S *out) {                  \
    affine<V>(rows, channels, pitch_row, x, mean, inverse, weight, bias, out);                     \
  }                                                                                                \
  extern "C" __global__ void __launch_bounds__(BLOCK)                                              \
      combine_##V(i64 rows, i64 channels, i64 pitch_row, const S *x, const S *grad,                \
                  const A *coefficients, S *out) {                                                 \
    combine<V>(rows, channels, pitch_row, x, grad, coefficients, out);                             \
  }

SWEEPS(1)
SWEEPS(4)

// Mean and 1 / sqrt(variance + eps) of partial sums of `rows` rows, which were seen `repeats` times
// each; running statistics move towards them. Without sums, of the running statistics.
extern "C" __global__ void finish_statistics(i64 partials, i64 channels, const double *sums,
                                             const S *x, i64 rows, i64 repeats, double eps,
                                             double momentum, A *running_mean, A *running_variance,
                                             i64 *num_batches, double *mean, double *inverse) {
  __shared__ double first[FINISH_Y][FINISH_X], second[FINISH_Y][FINISH_X];
  const i64 channel = static_cast<i64>(blockIdx.x) * FINISH_X + threadIdx.x;
  const i64 count = sums && channel < channels ? partials : 0;
  const double offset = total_of(sums + channel, count, 2 * channels, first) / rows;
  const double square = total_of(sums + channels + channel, count, 2 * channels, second) / rows;
  if (threadIdx.y || channel >= channels) return;
  if (!sums) {
    mean[channel] = running_mean[channel];
    inverse[channel] = 1 / sqrt(static_cast<double>(running_variance[channel]) + eps);
    return;
  }
  const double variance = square > offset * offset ? square - offset * offset : 0;
  const double found = offset + load(x[channel]), seen = static_cast<double>(rows) * repeats;
  mean[channel] = found;
  inverse[channel] = 1 / sqrt(variance + eps);
  const double of_mean = running_mean[channel], of_variance = running_variance[channel];
  const double unbiased = variance * (seen / (seen - 1));
  running_mean[channel] = static_cast<A>(of_mean + (found - of_mean) * momentum);
  running_variance[channel] = static_cast<A>(of_variance + (unbiased - of_variance) * momentum);
  if (!channel) ++*num_batches;
}

// Coefficients of `combine`, and the gradients of weight and bias.
extern "C" __global__ void finish_gradient(i64 partials, i64 channels, const double *sums, i64 rows,
                                           i64 is_of_batch, const double *mean,
                                           const double *inverse, const A *weight,
                                           A *coefficients_3C, A *grad_weight, A *grad_bias) {
  __shared__ double first[FINISH_Y][FINISH_X], second[FINISH_Y][FINISH_X];
  const i64 channel = static_cast<i64>(blockIdx.x) * FINISH_X + threadIdx.x;
  const i64 count = channel < channels ? partials : 0;
  const double sum = total_of(sums + channel, count, 2 * channels, first);
  const double product = total_of(sums + channels + channel, count, 2 * channels, second);
  if (threadIdx.y || channel >= channels) return;
  const double over = inverse[channel], scale = weight[channel] * over;
  const double slope = is_of_batch ? -scale * over * over * product / rows : 0;
  coefficients_3C[channel] = static_cast<A>(scale);
  coefficients_3C[channels + channel] = static_cast<A>(slope);
  coefficients_3C[2 * channels + channel] =
      static_cast<A>(is_of_batch ? -scale * sum / rows - slope * mean[channel] : 0);
  grad_weight[channel] = static_cast<A>(product * over);
  grad_bias[channel] = static_cast<A>(sum);
}

// The gradient of the leak w, of which the rate is the sigmoid, in one block.
extern "C" __global__ void finish_rate(i64 partials, i64 /* channels */, const double *sums,
                                       const A *leak, A *grad_leak) {
  __shared__ double slices[FINISH_Y][FINISH_X], lanes[FINISH_X];
  // a lane takes every FINISH_X-th sum
  const i64 lane = threadIdx.x;
  const i64 count = partials > lane ? (partials - lane + FINISH_X - 1) / FINISH_X : 0;
  const double mine = total_of(sums + lane, count, FINISH_X, slices);
  if (!threadIdx.y) lanes[lane] = mine;
  __syncthreads();
  if (thread()) return;
  double total = 0;
  for (int at = 0; at < FINISH_X; at++) total += lanes[at];
  const double rate = 1 / (1 + exp(-static_cast<double>(*leak)));
  *grad_leak = static_cast<A>(total * rate * (1 - rate));
}
