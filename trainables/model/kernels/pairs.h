// Sums of products of pairs of 16-bit integers, twice as many at once as of floats.
#pragma once
#include "matrix.h"

// Vectors are those that sums of floats have.
#if defined(__AVX512BW__) || (defined(__AVX2__) && !defined(__AVX512F__))
#define HAS_PAIRS 1
#ifdef __AVX512BW__
using Pairs = __m512i;
inline Pairs add_pairs(Pairs sum, Pairs a, Pairs b) {
#ifdef __AVX512VNNI__
  return _mm512_dpwssd_epi32(sum, a, b);
#else
  return _mm512_add_epi32(sum, _mm512_madd_epi16(a, b));
#endif
}
inline Pairs repeated(int32_t pair) { return _mm512_set1_epi32(pair); }
// Bytes as 16-bit numbers.
inline Pairs widened_bytes(const uint8_t *from) {
  return _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(from)));
}
#else
using Pairs = __m256i;
inline Pairs add_pairs(Pairs sum, Pairs a, Pairs b) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
}
inline Pairs repeated(int32_t pair) { return _mm256_set1_epi32(pair); }
inline Pairs widened_bytes(const uint8_t *from) {
  return _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from)));
}
#endif

inline Lanes<float>::V as_floats(Pairs sums) {
  using Whole = Packed<VECTOR_BYTES, int32_t>::type;
  return __builtin_convertvector((Whole)sums, Lanes<float>::V);
}

// Of a tile of floats, so many vectors.
template <class T> constexpr int VECTORS_OF = int(sizeof(T::sums[0]) / VECTOR_BYTES);

template <int COUNT> struct PairTile {
  Pairs sums[ROWS][COUNT];

  // sums[r] = rows[r][k * step] times columns[k * PANEL ...], over k < depth pairs.
  inline void sum(const int32_t *const *rows, int64_t step, const int32_t *columns,
                  int64_t depth) {
    // copied one by one: compilers keep what is copied as a whole in memory
    Pairs s[ROWS][COUNT];
#pragma GCC unroll 6
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
      for (int i = 0; i < COUNT; i++) s[r][i] = Pairs{};
    for (int64_t k = 0; k < depth; k++, columns += PANEL) {
      Pairs column[COUNT];
#pragma GCC unroll 4
      for (int i = 0; i < COUNT; i++)
        column[i] = fetched<Pairs>(columns + i * Lanes<float>::WIDTH);
#pragma GCC unroll 6
      for (int r = 0; r < ROWS; r++) {
        const Pairs pair = repeated(rows[r][k * step]);
#pragma GCC unroll 4
        for (int i = 0; i < COUNT; i++) s[r][i] = add_pairs(s[r][i], pair, column[i]);
      }
    }
#pragma GCC unroll 6
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
      for (int i = 0; i < COUNT; i++) sums[r][i] = s[r][i];
  }
};

using Values = Lanes<float>::V;

// Sizes of floats as bits, which are in the same order; those that are no numbers are the largest.
inline Bits size_bits(Values v) { return (Bits)v & 0x7FFFFFFFu; }
inline Bits larger(Bits a, Bits b) { return a > b ? a : b; }
inline uint32_t largest_of(Bits sizes) {
  uint32_t found = 0;
  for (int64_t i = 0; i < Lanes<float>::WIDTH; i++) found = std::max(found, uint32_t(sizes[i]));
  return found;
}

// A step of which values are multiples up to `most`, from the bits of the largest of their sizes:
// those of numbers that are none are larger, and such a step makes no numbers of all its multiples.
struct Step {
  float size, inverse;
  Step(uint32_t bits, float most) {
    float largest;
    std::memcpy(&largest, &bits, sizeof largest);
    size = largest / most;
    inverse = largest > 1e-30f && largest < INFINITY ? most / largest : 0;
  }
};

// 1.5 * 2^23: adding it rounds to an integer, which its lowest bits then are.
constexpr float TO_INTEGER = 12582912.0f;
#else
#define HAS_PAIRS 0
#endif
