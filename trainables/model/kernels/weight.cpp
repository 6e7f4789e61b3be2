// Weights in the forms that products take: rounded to bf16 but kept as floats, and turned.
#include "common.h"

namespace {

// Values that share a cache line with those beside them, of both forms.
constexpr int64_t BLOCK = 16;

inline float rounded(float x) {
  Bf16 near;
  store(&near, x);
  return load(near);
}

// [outputs, taps, inputs] to [inputs, taps backwards, outputs].
template <class A>
void turn(int64_t outputs, int64_t inputs, int64_t taps, const A *weight, A *to, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t k0 = 0; k0 < inputs; k0 += BLOCK)
    for (int64_t tap = 0; tap < taps; tap++)
      for (int64_t n0 = 0; n0 < outputs; n0 += BLOCK) {
        const int64_t last = std::min(n0 + BLOCK, outputs);
        for (int64_t k = k0; k < std::min(k0 + BLOCK, inputs); k++) {
          A *row = to + (k * taps + taps - 1 - tap) * outputs;
          for (int64_t n = n0; n < last; n++) row[n] = weight[(n * taps + tap) * inputs + k];
        }
      }
}

} // namespace

// [outputs, inputs, taps] to [outputs, taps, inputs].
extern "C" void round_weight_bf16(int64_t outputs, int64_t inputs, int64_t taps,
                                  const float *weight, float *to, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t n = 0; n < outputs; n++)
    for (int64_t tap = 0; tap < taps; tap++) {
      const float *from = weight + n * inputs * taps + tap;
      float *row = to + (n * taps + tap) * inputs;
      for (int64_t k = 0; k < inputs; k++) row[k] = rounded(from[k * taps]);
    }
}

#define TURN(A, NAME)                                                                              \
  extern "C" void turn_weight_##NAME(int64_t outputs, int64_t inputs, int64_t taps,                \
                                     const A *weight, A *to, int threads) {                        \
    turn(outputs, inputs, taps, weight, to, threads);                                              \
  }
TURN(float, f32)
TURN(double, f64)
