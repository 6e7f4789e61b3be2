// What the kernels share: storage types, the surrogate's exponential, work split over threads.
//
// A tensor of currents is [T, rows, C] with C contiguous (channels-last): a row is a sample's pixel.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <numeric>
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

// Rows of few channels that lie side by side, some of them taken as one: its vectors are full.
class Fold {
public:
  const int64_t times, rows, channels, pitch_row;
  Fold(int64_t each_rows, int64_t each_channels, int64_t pitch)
      : times(pitch == each_channels ? times_of(each_rows, each_channels) : 1),
        rows(each_rows / times), channels(each_channels * times), pitch_row(pitch * times) {}
  // How many channels there are.
  int64_t each() const { return channels / times; }
  // What there is of each channel, for all rows that are taken as one; nothing of nothing.
  template <class T> std::vector<T> repeated(const T *each_C) const {
    std::vector<T> all(size_t(each_C ? channels : 0));
    for (size_t c = 0; c < all.size(); c++) all[c] = each_C[c % size_t(each())];
    return all;
  }
  // Adds up what is a channel's, of so many kinds of sums.
  template <class T> void add(const std::vector<double> &all, int64_t kinds, T *to) const {
    for (int64_t kind = 0; kind < kinds; kind++)
      for (int64_t c = 0; c < each(); c++) {
        double sum = 0;
        for (int64_t at = c; at < channels; at += each()) sum += all[size_t(kind * channels + at)];
        to[kind * each() + c] = T(sum);
      }
  }

private:
  static int64_t times_of(int64_t rows, int64_t channels) {
    constexpr int64_t LANES = VECTOR_BYTES / sizeof(float), ENOUGH = 4 * LANES;
    if (channels == 0 || channels > 2 * ENOUGH) return 1;
    int64_t times = LANES / std::gcd(LANES, channels);
    while (times * channels < ENOUGH) times *= 2;
    while (rows % times) times /= 2;
    return times;
  }
};

// A batch norm as it is applied, x * scale + shift; false where there is none.
template <class A> class Affine {
public:
  Affine(const double *mean, const double *inverse, const A *weight, const A *bias,
         const Fold &fold)
      : scale_(size_t(mean ? fold.channels : 0)), shift_(scale_.size()) {
    for (size_t at = 0; at < scale_.size(); at++) {
      const size_t c = at % size_t(fold.each());
      const double factor = double(weight[c]) * inverse[c];
      scale_[at] = A(factor);
      shift_[at] = A(double(bias[c]) - mean[c] * factor);
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
  std::vector<double> total(int64_t from, int64_t count) const {
    std::vector<double> to(size_t(count), 0.0);
    for (size_t at = size_t(from); at < sums_.size(); at += size_t(size_))
      for (size_t i = 0; i < to.size(); i++) to[i] += sums_[at + i];
    return to;
  }

private:
  int64_t size_;
  std::vector<double> sums_;
};
