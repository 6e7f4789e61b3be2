// Runs CUDA kernels on a CPU, thread after thread, so that their arithmetic and indices can be tested.
//
// A block's threads run up to their first __syncthreads, then all from the start up to their second,
// and so on: a kernel's phases must only read what phases before them wrote, and write what no later
// phase changes. A missing __syncthreads shows, for threads then read what was not written yet.
#include <algorithm>
#include <cmath>
#include <csetjmp>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#define __device__
#define __global__
#define __shared__ static thread_local
#define __restrict__
#define __launch_bounds__(...)

using std::exp;
using std::fabs;
using std::sqrt;

struct Place {
  unsigned int x, y;
};
static thread_local Place blockIdx, threadIdx, blockDim, gridDim;

static thread_local std::jmp_buf thread_start;
static thread_local int phase, barriers;

// Stops a thread at the end of the phase that its block is in.
static inline void __syncthreads() {
  if (barriers++ == phase) std::longjmp(thread_start, 1);
}

static inline float __uint_as_float(unsigned int bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
static inline unsigned int __float_as_uint(float value) {
  unsigned int bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

static inline float half_to_float(unsigned short bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  float value;
  if (exponent == 31) value = mantissa ? NAN : INFINITY;
  else if (exponent) value = std::ldexp(float(mantissa + 1024), exponent - 25);
  else value = std::ldexp(float(mantissa), -24);
  return bits >> 15 ? -value : value;
}
static inline unsigned short float_to_half(float value) {
  const unsigned short sign = std::signbit(value) ? 0x8000 : 0;
  const float size = std::fabs(value);
  if (std::isnan(value)) return sign | 0x7E00;
  if (size == 0) return sign;
  if (size >= 65520.0f) return sign | 0x7C00;
  int exponent;
  std::frexp(size, &exponent);
  const int unit = std::max(exponent - 11, -24); // of the last place; halves round to nearest even
  const int steps = int(std::nearbyint(std::ldexp(size, -unit)));
  // steps carry into the exponent by themselves
  return static_cast<unsigned short>(sign + ((unit + 24) << 10) + steps);
}

// Whether all threads of a block came to the end of the kernel in a phase.
template <class Kernel> static bool run_phase(const Kernel &kernel) {
  volatile bool has_ended = true;
  for (threadIdx.y = 0; threadIdx.y < blockDim.y; threadIdx.y++)
    for (threadIdx.x = 0; threadIdx.x < blockDim.x; threadIdx.x++) {
      barriers = 0;
      if (setjmp(thread_start)) has_ended = false;
      else kernel();
    }
  return has_ended;
}

template <class... P, std::size_t... I>
static void run(void (*kernel)(P...), const unsigned int *shape, void **arguments,
                std::index_sequence<I...>) {
  gridDim = {shape[0], shape[1]};
  blockDim = {shape[2], shape[3]};
  for (blockIdx.y = 0; blockIdx.y < gridDim.y; blockIdx.y++)
    for (blockIdx.x = 0; blockIdx.x < gridDim.x; blockIdx.x++) {
      phase = 0;
      while (!run_phase([&] { kernel(*static_cast<P *>(arguments[I])...); })) phase++;
    }
}

// What an argument must be: 'i' a whole number, 'd' a double, 'p' a pointer.
template <class P> constexpr char kind_of() {
  static_assert(sizeof(P) == 8, "arguments are passed in 8 bytes each");
  return std::is_pointer<P>::value ? 'p' : std::is_floating_point<P>::value ? 'd' : 'i';
}
template <class... P> static const char *kinds(void (*)(P...)) {
  static const char found[] = {kind_of<P>()..., 0};
  return found;
}

#define LAUNCHER(NAME)                                                                             \
  extern "C" const char *kinds_##NAME() { return kinds(NAME); }                                    \
  extern "C" void launch_##NAME(const unsigned int *shape, void **arguments) {                     \
    launch(NAME, shape, arguments);                                                                \
  }
template <class... P>
static void launch(void (*kernel)(P...), const unsigned int *shape, void **arguments) {
  run(kernel, shape, arguments, std::index_sequence_for<P...>());
}
