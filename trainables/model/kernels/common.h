// What the kernels share: storage types, the surrogate's exponential, work split over threads.
//
// A tensor of currents is [T, rows, C] with C contiguous (channels-last): a row is a sample's pixel.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
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

// Memory that vectors do not cross lines of.
template <class T> struct Aligned {
  using value_type = T;
  Aligned() = default;
  template <class U> Aligned(const Aligned<U> &) {}
  T *allocate(size_t n) { return static_cast<T *>(::operator new(n * sizeof(T), LINE)); }
  void deallocate(T *p, size_t) { ::operator delete(p, LINE); }
  template <class U> bool operator==(const Aligned<U> &) const { return true; }
  template <class U> bool operator!=(const Aligned<U> &) const { return false; }

private:
  static constexpr std::align_val_t LINE{64};
};

// bfloat16 as it is stored; arithmetic is float.
struct Bf16 {
  uint16_t bits;
};

template <class S> struct Wide { using type = S; };
template <> struct Wide<Bf16> { using type = float; };

inline float load(float x) { return x; }
inline double load(double x) { return x; }
inline float load(uint8_t x) { return x; }
inline float load(Bf16 x) {
  uint32_t bits = uint32_t(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline void store(float *to, float x) { *to = x; }
inline void store(double *to, double x) { *to = x; }
inline void store(uint8_t *to, float x) { *to = uint8_t(x); }
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
