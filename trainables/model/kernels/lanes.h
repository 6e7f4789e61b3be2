// Vectors of the machine's width: loads that widen what is stored, stores that round it again.
#pragma once
#include <type_traits>

#include "common.h"
#ifdef __AVX2__
#include <immintrin.h>
#endif

template <class A> struct Lanes {
  using V = typename Vector<A>::type;
  static constexpr int64_t WIDTH = VECTOR_BYTES / int64_t(sizeof(A));
};

template <int BYTES, class T> struct Packed {
  typedef T type __attribute__((vector_size(BYTES)));
};
using Bits = Packed<VECTOR_BYTES, uint32_t>::type;
using Half = Packed<VECTOR_BYTES / 2, uint16_t>::type;
using Bytes = Packed<VECTOR_BYTES / 4, uint8_t>::type;

template <class V, class T> inline V fetched(const T *from) {
  V v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

inline Lanes<float>::V load_lanes(const float *from) { return fetched<Lanes<float>::V>(from); }
inline Lanes<double>::V load_lanes(const double *from) { return fetched<Lanes<double>::V>(from); }
inline Lanes<float>::V load_lanes(const Bf16 *from) {
#if defined(__AVX512F__) // compilers widen halves of a vector, one after the other
  const Bits bits = (Bits)_mm512_cvtepu16_epi32((__m256i)fetched<Half>(from));
#elif defined(__AVX2__)
  const Bits bits = (Bits)_mm256_cvtepu16_epi32((__m128i)fetched<Half>(from));
#else
  const Bits bits = __builtin_convertvector(fetched<Half>(from), Bits);
#endif
  return (Lanes<float>::V)(bits << 16);
}
// Compilers take bytes to floats one by one.
inline Lanes<float>::V load_lanes(const uint8_t *from) {
  const Bytes bytes = fetched<Bytes>(from);
#if defined(__AVX512F__)
  return (Lanes<float>::V)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32((__m128i)bytes));
#elif defined(__AVX2__)
  const __m128i low = _mm_cvtsi64_si128((long long)bytes);
  return (Lanes<float>::V)_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(low));
#else
  return __builtin_convertvector(bytes, Lanes<float>::V);
#endif
}

inline Lanes<double>::V load_lanes_double(const uint8_t *from) {
  const auto bytes = fetched<Packed<VECTOR_BYTES / 8, uint8_t>::type>(from);
#if defined(__AVX512F__)
  const __m128i low = _mm_cvtsi64_si128((long long)bytes);
  return (Lanes<double>::V)_mm512_cvtepi32_pd(_mm256_cvtepu8_epi32(low));
#elif defined(__AVX2__)
  const __m128i low = _mm_cvtsi32_si128((int)bytes);
  return (Lanes<double>::V)_mm256_cvtepi32_pd(_mm_cvtepu8_epi32(low));
#else
  return __builtin_convertvector(bytes, Lanes<double>::V);
#endif
}

inline void store_lanes(float *to, Lanes<float>::V v) { std::memcpy(to, &v, sizeof v); }
inline void store_lanes(double *to, Lanes<double>::V v) { std::memcpy(to, &v, sizeof v); }
inline void store_lanes(Bf16 *to, Lanes<float>::V v) {
  const Bits bits = (Bits)v;
  const Bits rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  const Bits kept = v == v ? rounded : (bits >> 16) | 0x40u; // as `store`
  const Half half = __builtin_convertvector(kept, Half);
  std::memcpy(to, &half, sizeof half);
}

// The first `n` of a vector: all where FULL, else with zeros behind.
template <bool FULL, class A, class S>
inline typename Lanes<A>::V load_some(const S *from, int64_t n) {
  if constexpr (FULL && std::is_same<A, double>::value && std::is_same<S, uint8_t>::value)
    return load_lanes_double(from);
  else if constexpr (FULL) return load_lanes(from);
  A values[Lanes<A>::WIDTH] = {};
  for (int64_t i = 0; i < n; i++) values[i] = A(load(from[i]));
  return fetched<typename Lanes<A>::V>(values);
}
template <bool FULL, class A, class S>
inline void store_some(S *to, typename Lanes<A>::V v, int64_t n) {
  if constexpr (FULL) return store_lanes(to, v);
  A values[Lanes<A>::WIDTH];
  std::memcpy(values, &v, sizeof v);
  for (int64_t i = 0; i < n; i++) store(to + i, values[i]);
}

// Calls `work(from, n, whole)` for vectors of a row; `whole` is a constant: whether n is a width.
template <class A, class F> inline void each_vector(int64_t size, F &&work) {
  int64_t at = 0;
  for (; at + Lanes<A>::WIDTH <= size; at += Lanes<A>::WIDTH)
    work(at, Lanes<A>::WIDTH, std::true_type());
  if (at < size) work(at, size - at, std::false_type());
}

// 1/x of x in [1, 2].
inline Lanes<float>::V inverse_lanes(Lanes<float>::V x) {
#ifdef __AVX512F__ // an estimate of 14 bits and Newton's step: a division takes thrice as long
  const Lanes<float>::V r = (Lanes<float>::V)_mm512_rcp14_ps((__m512)x);
  return r * (2.0f - x * r);
#else
  return 1.0f / x;
#endif
}
inline Lanes<double>::V inverse_lanes(Lanes<double>::V x) { return 1.0 / x; }

// exp(-4 x) for x >= 0. Below the square of a float's precision it is 0, as plain torch's derivative
// is far above the threshold: gradients of smaller values soon become subnormal, with which
// processors are many times slower.
constexpr float LEAST_POWER = -46.0f;
inline Lanes<float>::V exp_minus_4(Lanes<float>::V x) {
  using V = Lanes<float>::V;
  const V power = x * -5.770780164f; // 2 to this
  const V bounded = power < LEAST_POWER ? V{} + LEAST_POWER : power;
  // 1.5 * 2^23: adding it rounds to an integer, which its lowest bits then are.
  const V shifted = bounded + 12582912.0f, r = bounded - (shifted - 12582912.0f);
  V p = 1.5403530e-4f * r + 1.3333558e-3f;
  p = p * r + 9.6181291e-3f;
  p = p * r + 5.5504109e-2f;
  p = p * r + 2.4022651e-1f;
  p = p * r + 6.9314718e-1f;
  p = p * r + 1.0f;
  return power < LEAST_POWER ? V{} : (V)((Bits)p + ((Bits)shifted << 23));
}
inline Lanes<double>::V exp_minus_4(Lanes<double>::V x) {
  for (int64_t i = 0; i < Lanes<double>::WIDTH; i++) x[i] = std::exp(-4 * x[i]);
  return x;
}

// Derivative of the surrogate sigma(alpha (u - threshold)), with alpha = 4.
template <class V> inline V surrogate(V distance) {
  const V e = exp_minus_4(distance < 0 ? -distance : distance), inverse = inverse_lanes(1 + e);
  return 4 * e * inverse * inverse;
}
