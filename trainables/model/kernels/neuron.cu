// Batch norm and leaky integrate-and-fire in one pass over time, forward and backward.
//
// u = v + (z - v) r, s = [u >= threshold], v = u (1 - s), with z = x * scale + shift a channel and
// r = 1/tau, the sigmoid of `leak` where there is one. Spikes are bytes. The backward computes the
// membrane potentials again from x, STEPS of them in registers; reset is detached.
#include "device.cuh"

constexpr int AHEAD = STEPS < 4 ? STEPS : 4; // timesteps whose currents are under way together

__device__ inline A rate_of(const A *leak, double rate) {
  return leak ? A(1) / (A(1) + exp(-*leak)) : static_cast<A>(rate);
}

// What a potential keeps, 1 - s, and what it is after its timestep: what is not finite stays so.
__device__ inline A kept(A potential, A threshold) {
  return potential >= threshold ? A(0) : A(1);
}
__device__ inline A reset(A potential, A threshold) {
  return potential * kept(potential, threshold);
}

// Derivative of the surrogate sigma(alpha (u - threshold)), with alpha = 4.
__device__ inline A surrogate(A distance) {
  const A e = exp(A(-4) * fabs(distance));
  const A one = A(1) + e;
  return A(4) * e / (one * one);
}

template <int V>
__device__ inline void fire(i64 rows, i64 channels, i64 pitch_row, const S *__restrict__ x,
                            i64 pitch_t, i64 steps, const double *mean, const double *inverse,
                            const A *weight, const A *bias, const A *leak, double rate,
                            double threshold, u8 *__restrict__ spikes) {
  const i64 channel = first_channel<V>();
  if (channel >= channels) return;
  const Norm<V> norm(mean, inverse, weight, bias, channel);
  const A r = rate_of(leak, rate), th = static_cast<A>(threshold);
  for (i64 row = first_row(); row < rows; row += row_step()) {
    const S *from = x + row * pitch_row + channel;
    u8 *to = spikes + row * channels + channel;
    A v[V];
    fill(v, A(0));
    for (i64 first = 0; first < steps; first += AHEAD) {
      Pack<S, V> ahead[AHEAD];
#pragma unroll
      for (int k = 0; k < AHEAD; k++)
        if (first + k < steps) ahead[k] = fetch<V>(from + (first + k) * pitch_t);
#pragma unroll
      for (int k = 0; k < AHEAD; k++) {
        if (first + k >= steps) continue;
        Pack<u8, V> fired;
#pragma unroll
        for (int i = 0; i < V; i++) {
          const A z = load(ahead[k].values[i]) * norm.scale[i] + norm.shift[i];
          const A u = v[i] + (z - v[i]) * r;
          fired.values[i] = u >= th;
          v[i] = reset(u, th);
        }
        *reinterpret_cast<Pack<u8, V> *>(to + (first + k) * rows * channels) = fired;
      }
    }
  }
}

// Of V channels of a row: what the backward of fire adds up.
template <int V> struct Sums {
  A grad[V], product[V], rate;
};

// One row of the backward. Timesteps beyond STEPS are walked through again for each STEPS of them.
template <int V>
__device__ inline void row_backward(const S *__restrict__ x, i64 pitch_t, i64 steps,
                                    const Norm<V> &norm, const A (&centre)[V], A r, A th,
                                    bool is_learnt, const S *__restrict__ grad,
                                    S *__restrict__ grad_x, i64 pitch_grad, Sums<V> &sums) {
  A carry[V], total[V];
  fill(carry, A(0));
  fill(total, A(0));
  for (i64 first = (steps - 1) / STEPS * STEPS; first >= 0; first -= STEPS) {
    A v[V];
    fill(v, A(0));
    for (i64 t = 0; t < first; t++) {
      A z[V];
      read<V>(x + t * pitch_t, z);
#pragma unroll
      for (int i = 0; i < V; i++) {
        v[i] = reset(v[i] + (z[i] * norm.scale[i] + norm.shift[i] - v[i]) * r, th);
      }
    }
    Pack<S, V> in[STEPS], grads[STEPS];
#pragma unroll
    for (int k = 0; k < STEPS; k++) {
      if (first + k >= steps) continue;
      in[k] = fetch<V>(x + (first + k) * pitch_t);
      grads[k] = fetch<V>(grad + (first + k) * pitch_grad);
    }
    A start[V], potential[STEPS][V]; // v before the first timestep, u of each
#pragma unroll
    for (int i = 0; i < V; i++) start[i] = v[i];
#pragma unroll
    for (int k = 0; k < STEPS; k++) {
#pragma unroll
      for (int i = 0; i < V; i++) {
        if (first + k >= steps) continue;
        const A z = load(in[k].values[i]) * norm.scale[i] + norm.shift[i];
        potential[k][i] = v[i] + (z - v[i]) * r;
        v[i] = reset(potential[k][i], th);
      }
    }
#pragma unroll
    for (int k = STEPS - 1; k >= 0; k--) {
      if (first + k >= steps) continue;
      A dz[V];
#pragma unroll
      for (int i = 0; i < V; i++) {
        const A u = potential[k][i], current = load(in[k].values[i]);
        const A du = load(grads[k].values[i]) * surrogate(u - th) + carry[i] * kept(u, th);
        carry[i] = du * (A(1) - r);
        dz[i] = du * r;
        total[i] += dz[i];
        sums.grad[i] += dz[i];
        sums.product[i] += dz[i] * (current - centre[i]);
        if (!is_learnt) continue;
        const A before = k ? reset(potential[k ? k - 1 : 0][i], th) : start[i];
        sums.rate += du * (current * norm.scale[i] + norm.shift[i] - before);
      }
      if (pitch_t) write<V>(grad_x + (first + k) * pitch_grad, dz);
    }
  }
  if (!pitch_t) write<V>(grad_x, total);
}

// A block's sum of the leak's gradient. Partial sums are laid out for the narrowest blocks, of
// FINISH_X channels: what wider blocks leave over is zero.
__device__ inline void store_rate_sum(double sum, i64 channels, double *partial) {
  __shared__ double threads[BLOCK], slices[FINISH_X];
  threads[thread()] = sum;
  __syncthreads();
  if (thread() < FINISH_X) {
    double slice = 0;
    for (int at = thread(); at < BLOCK; at += FINISH_X) slice += threads[at];
    slices[thread()] = slice;
  }
  __syncthreads();
  if (thread()) return;
  double total = 0;
  for (int at = 0; at < FINISH_X; at++) total += slices[at];
  const i64 width = (channels + FINISH_X - 1) / FINISH_X;
  for (i64 at = blockIdx.x; at < width; at += gridDim.x)
    partial[blockIdx.y * width + at] = at == blockIdx.x ? total : 0;
}

// dL/dz of all timesteps into `grad_x` (summed over them for static currents); partial sums a
// channel of dL/dz and of dL/dz (x - mean), and of dL/du (z - v).
template <int V>
__device__ inline void fire_backward(i64 rows, i64 channels, i64 pitch_row, const S *x, i64 pitch_t,
                                     i64 steps, const double *mean, const double *inverse,
                                     const A *weight, const A *bias, const A *leak, double rate,
                                     double threshold, const S *grad, S *grad_x, double *sums,
                                     double *sums_rate) {
  const i64 channel = first_channel<V>();
  double grad_sum[V], product_sum[V], rate_sum = 0;
  for (int i = 0; i < V; i++) grad_sum[i] = product_sum[i] = 0;
  if (channel < channels) {
    const Norm<V> norm(mean, inverse, weight, bias, channel);
    const A r = rate_of(leak, rate), th = static_cast<A>(threshold);
    A centre[V];
#pragma unroll
    for (int i = 0; i < V; i++) centre[i] = mean ? static_cast<A>(mean[channel + i]) : A(0);
    for (i64 row = first_row(); row < rows; row += row_step()) {
      const i64 at = row * channels + channel;
      Sums<V> sum;
      fill(sum.grad, A(0));
      fill(sum.product, A(0));
      sum.rate = 0;
      row_backward<V>(x + row * pitch_row + channel, pitch_t, steps, norm, centre, r, th,
                      sums_rate != nullptr, grad + at, grad_x + at, rows * channels, sum);
#pragma unroll
      for (int i = 0; i < V; i++) grad_sum[i] += sum.grad[i], product_sum[i] += sum.product[i];
      rate_sum += sum.rate;
    }
  }
  if (mean) store_sums<V>(grad_sum, product_sum, channels, sums);
  if (sums_rate) store_rate_sum(rate_sum, channels, sums_rate);
}

#define FIRE(V)                                                                                    \
  extern "C" __global__ void __launch_bounds__(BLOCK) fire_##V(                                    \
      i64 rows, i64 channels, i64 pitch_row, const S *x, i64 pitch_t, i64 steps,                   \
      const double *mean, const double *inverse, const A *weight, const A *bias, const A *leak,    \
      double rate, double threshold, u8 *spikes) {                                                 \
    fire<V>(rows, channels, pitch_row, x, pitch_t, steps, mean, inverse, weight, bias, leak, rate, \
            threshold, spikes);                                                                    \
  }                                                                                                \
  extern "C" __global__ void __launch_bounds__(BLOCK) fire_backward_##V(                           \
      i64 rows, i64 channels, i64 pitch_row, const S *x, i64 pitch_t, i64 steps,                   \
      const double *mean, const double *inverse, const A *weight, const A *bias, const A *leak,    \
      double rate, double threshold, const S *grad, S *grad_x, double *sums, double *sums_rate) {  \
    fire_backward<V>(rows, channels, pitch_row, x, pitch_t, steps, mean, inverse, weight, bias,    \
                     leak, rate, threshold, grad, grad_x, sums, sums_rate);                        \
  }

FIRE(1)
#if STEPS <= 8
FIRE(4)
#elif STEPS <= 16
FIRE(2)
#endif
