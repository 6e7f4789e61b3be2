// Max-pooling 3x3 with padding 1 of spikes, or of batch-normalised currents, [images, H, W, C].
//
// The window's winner is the first largest value in reading order, as torch has it; which of the 9
// it was is kept as a byte. A row is a pixel of what is written.
#include "device.cuh"

template <int V>
__device__ inline void pool(i64 rows, i64 channels, const S *__restrict__ x, i64 height, i64 width,
                            i64 stride, const double *mean, const double *inverse, const A *weight,
                            const A *bias, S *__restrict__ out, u8 *__restrict__ taps) {
  const i64 channel = first_channel<V>();
  if (channel >= channels) return;
  const Norm<V> norm(mean, inverse, weight, bias, channel);
  const i64 out_height = (height - 1) / stride + 1, out_width = (width - 1) / stride + 1;
  for (i64 row = first_row(); row < rows; row += row_step()) {
    const i64 line = row / out_width, image = line / out_height;
    const i64 top = line % out_height * stride - 1, left = row % out_width * stride - 1;
    A best[V];
    Pack<u8, V> tap;
#pragma unroll
    for (int i = 0; i < V; i++) best[i] = 0, tap.values[i] = 255;
#pragma unroll
    for (int k = 0; k < 9; k++) {
      const i64 iy = top + k / 3, ix = left + k % 3;
      if (iy < 0 || iy >= height || ix < 0 || ix >= width) continue;
      A values[V];
      read<V>(x + ((image * height + iy) * width + ix) * channels + channel, values);
#pragma unroll
      for (int i = 0; i < V; i++) {
        const A z = values[i] * norm.scale[i] + norm.shift[i];
        const bool wins = z > best[i] || z != z || tap.values[i] == 255;
        best[i] = wins ? z : best[i];
        tap.values[i] = wins ? static_cast<u8>(k) : tap.values[i];
      }
    }
    write<V>(out + row * channels + channel, best);
    *reinterpret_cast<Pack<u8, V> *>(taps + row * channels + channel) = tap;
  }
}

template <int V>
__device__ inline void pool_backward(i64 rows, i64 channels, const S *__restrict__ grad,
                                     const u8 *__restrict__ taps, i64 height, i64 width, i64 stride,
                                     S *__restrict__ grad_x) {
  const i64 channel = first_channel<V>();
  if (channel >= channels) return;
  const i64 out_height = (height - 1) / stride + 1, out_width = (width - 1) / stride + 1;
  for (i64 row = first_row(); row < rows; row += row_step()) {
    const i64 line = row / width, image = line / height;
    A sums[V];
    fill(sums, A(0));
#pragma unroll
    for (int k = 0; k < 9; k++) {
      const i64 y = line % height + 1 - k / 3, x = row % width + 1 - k % 3; // times stride
      if (y < 0 || x < 0 || y % stride || x % stride) continue;
      if (y / stride >= out_height || x / stride >= out_width) continue;
      const i64 at = ((image * out_height + y / stride) * out_width + x / stride) * channels;
      const Pack<u8, V> tap = fetch<V>(taps + at + channel);
      A g[V];
      read<V>(grad + at + channel, g);
#pragma unroll
      for (int i = 0; i < V; i++) sums[i] += tap.values[i] == k ? g[i] : A(0);
    }
    write<V>(grad_x + row * channels + channel, sums);
  }
}

#define POOL(V)                                                                                    \
  extern "C" __global__ void __launch_bounds__(BLOCK)                                              \
      pool_##V(i64 rows, i64 channels, const S *x, i64 height, i64 width, i64 stride,              \
               const double *mean, const double *inverse, const A *weight, const A *bias, S *out,  \
               u8 *taps) {                                                                         \
    pool<V>(rows, channels, x, height, width, stride, mean, inverse, weight, bias, out, taps);     \
  }                                                                                                \
  extern "C" __global__ void __launch_bounds__(BLOCK)                                              \
      pool_backward_##V(i64 rows, i64 channels, const S *grad, const u8 *taps, i64 height,         \
                        i64 width, i64 stride, S *grad_x) {                                        \
    pool_backward<V>(rows, channels, grad, taps, height, width, stride, grad_x);                   \
  }

POOL(1)
POOL(4)
