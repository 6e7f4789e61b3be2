// What the kernels share: storage types, the surrogate's exponential, work split over threads.
//
// A tensor of currents is [T, rows, C] with C contiguous (channels-last): a row is a sample's pixel.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include <omp.h>

using std::int64_t;

// What one instruction works on.
#ifdef __AVX512F__
constexpr int VECTOR_BYTES = 64;
#else
constexpr int VECTOR_BYTES = 32;
#endif
template <class A> struct Vector;
template <> struct Vector<float> { typedef float type __attribute__((vector_size(VECTOR_BYTES))); };
template <> struct Vector<double> {
  typedef double type __attribute__((vector_size(VECTOR_BYTES)));
};

// bfloat16 as it is stored; arithmetic is float.
struct Bf16 {
  uint16_t bits;
};

template <class S> struct Wide { using type = S; };
template <> struct Wide<Bf16> { using type = float; };

inline float load(float x) { return x; }
inline double load(double x) { return x; }
inline float load(Bf16 x) {
  uint32_t bits = uint32_t(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline void store(float *to, float x) { *to = x; }
inline void store(double *to, double x) { *to = x; }
inline void store(Bf16 *to, float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  to->bits = uint16_t(x == x ? rounded : (bits >> 16) | 0x40u); // to nearest even; NaN stays NaN
}

// A batch norm as it is applied, x * scale + shift; false where there is none.
template <class A> class Affine {
public:
  Affine(const double *mean, const double *inverse, const A *weight, const A *bias,
         int64_t channels)
      : scale_(size_t(mean ? channels : 0)), shift_(scale_.size()) {
    for (size_t c = 0; c < scale_.size(); c++) {
      const double factor = double(weight[c]) * inverse[c];
      scale_[c] = A(factor);
      shift_[c] = A(double(bias[c]) - mean[c] * factor);
    }
  }
  explicit operator bool() const { return !scale_.empty(); }
  const A *scale() const { return scale_.data(); }
  const A *shift() const { return shift_.data(); }

private:
  std::vector<A> scale_, shift_;
};

// Sums of each thread, added in the threads' order: the same bits in every run.
class Partial {
public:
  Partial(int threads, int64_t size)
      : size_(size), sums_(size_t(threads * size), 0.0) {}
  double *mine() { return sums_.data() + omp_get_thread_num() * size_; }
  void total(int64_t from, int64_t count, double *to) const {
    std::fill(to, to + count, 0.0);
    for (size_t at = size_t(from); at < sums_.size(); at += size_t(size_))
      for (int64_t i = 0; i < count; i++) to[i] += sums_[at + size_t(i)];
  }

private:
  int64_t size_;
  std::vector<double> sums_;
};

// exp(x) for x <= 0: branch-free, so that the loop around it becomes vector code.
inline float exp_negative(float x) {
  x = x < -87.0f ? -87.0f : x;
  const float magic = 12582912.0f; // 1.5 * 2^23: adding it rounds to an integer
  const float n = (x * 1.44269504f + magic) - magic;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const int32_t exponent = (int32_t(n) + 127) << 23;
  float scale;
  std::memcpy(&scale, &exponent, 4);
  return p * scale;
}
inline double exp_negative(double x) { return std::exp(x); }

// Derivative of the surrogate sigma(alpha (u - threshold)), with alpha = 4.
template <class A> inline A surrogate(A distance) {
  const A e = exp_negative(-A(4) * std::fabs(distance));
  const A one = A(1) + e;
  return A(4) * e / (one * one);
}
