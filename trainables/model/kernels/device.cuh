// What the CUDA kernels share: storage types, reads and writes of several values, walks, sums.
//
// Compiled at run time, a storage type at a time: S is how tensors are stored (STORAGE), A in what is
// computed (WIDE). Needs no header of CUDA's. A tensor of currents is [T, rows, channels] with
// channels contiguous (channels-last): a row is a sample's pixel. Threads lie along channels, V of
// them each, and walk down rows. Reductions add in a fixed order: the same bits in every run.

typedef long long i64;
typedef unsigned char u8;

struct Bf16 {
  unsigned short bits;
};
struct Half {
  unsigned short bits;
};

typedef STORAGE S;
typedef WIDE A;

constexpr int BLOCK = 256;   // threads of a sweep
constexpr int FINISH_X = 32; // channels of a block that adds up partial sums
constexpr int FINISH_Y = 32; // its slices of the partial sums

__device__ inline float load(float x) { return x; }
__device__ inline double load(double x) { return x; }
__device__ inline float load(u8 x) { return x; }
__device__ inline float load(Bf16 x) {
  return __uint_as_float(static_cast<unsigned int>(x.bits) << 16);
}
__device__ inline float load(Half x) {
#ifdef __CUDA_ARCH__
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(x.bits));
  return value;
#else
  return half_to_float(x.bits);
#endif
}

__device__ inline void store(float &to, float x) { to = x; }
__device__ inline void store(double &to, double x) { to = x; }
__device__ inline void store(u8 &to, float x) { to = static_cast<u8>(x); }
__device__ inline void store(Bf16 &to, float x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(to.bits) : "f"(x));
#else
  const unsigned int bits = __float_as_uint(x);
  const unsigned int rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  // to nearest even; NaN stays NaN
  to.bits = static_cast<unsigned short>(x == x ? rounded : (bits >> 16) | 0x40u);
#endif
}
__device__ inline void store(Half &to, float x) {
#ifdef __CUDA_ARCH__
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.bits) : "f"(x));
#else
  to.bits = float_to_half(x);
#endif
}

// V values side by side, read and written in as few accesses as there can be.
template <class E, int V> struct alignas(sizeof(E) * V) Pack {
  E values[V];
};

template <int V, class E> __device__ inline Pack<E, V> fetch(const E *from) {
  return *reinterpret_cast<const Pack<E, V> *>(from);
}

template <int V, class E> __device__ inline void unpack(const Pack<E, V> &pack, A (&to)[V]) {
#pragma unroll
  for (int i = 0; i < V; i++) to[i] = load(pack.values[i]);
}

template <int V, class E> __device__ inline void read(const E *from, A (&to)[V]) {
  unpack<V>(fetch<V>(from), to);
}

template <int V, class E> __device__ inline void write(E *to, const A (&from)[V]) {
  Pack<E, V> pack;
#pragma unroll
  for (int i = 0; i < V; i++) store(pack.values[i], from[i]);
  *reinterpret_cast<Pack<E, V> *>(to) = pack;
}

template <int V> __device__ inline void fill(A (&to)[V], A value) {
#pragma unroll
  for (int i = 0; i < V; i++) to[i] = value;
}

// A thread's first channel, its first row and how far it is to its next.
template <int V> __device__ inline i64 first_channel() {
  return (static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x) * V;
}
__device__ inline i64 first_row() {
  return static_cast<i64>(blockIdx.y) * blockDim.y + threadIdx.y;
}
__device__ inline i64 row_step() { return static_cast<i64>(gridDim.y) * blockDim.y; }
__device__ inline int thread() { return static_cast<int>(threadIdx.y * blockDim.x + threadIdx.x); }

// A batch norm as it is applied, x * scale + shift; nothing happens where `mean` is null.
template <int V> struct Norm {
  A scale[V], shift[V];

  __device__ Norm(const double *mean, const double *inverse, const A *weight, const A *bias,
                  i64 channel) {
    fill(scale, A(1));
    fill(shift, A(0));
    if (!mean) return;
#pragma unroll
    for (int i = 0; i < V; i++) {
      const double factor = static_cast<double>(weight[channel + i]) * inverse[channel + i];
      scale[i] = static_cast<A>(factor);
      shift[i] = static_cast<A>(static_cast<double>(bias[channel + i]) - mean[channel + i] * factor);
    }
  }
};

// A block's sums of two numbers a channel, added over its threads in order into partial[block row].
template <int V>
__device__ inline void store_sums(const double (&first)[V], const double (&second)[V], i64 channels,
                                  double *partial) {
  __shared__ double sums[2 * BLOCK * V];
  const int width = static_cast<int>(blockDim.x) * V;
  double *mine = sums + threadIdx.y * 2 * width + threadIdx.x * V;
#pragma unroll
  for (int i = 0; i < V; i++) mine[i] = first[i], mine[width + i] = second[i];
  __syncthreads();
  for (int at = thread(); at < 2 * width; at += BLOCK) {
    double total = 0;
    for (unsigned int y = 0; y < blockDim.y; y++) total += sums[y * 2 * width + at];
    const i64 channel = static_cast<i64>(blockIdx.x) * width + at % width;
    if (channel < channels) partial[(blockIdx.y * 2 + at / width) * channels + channel] = total;
  }
}

// A channel's sum of partial sums, for the threads of slice 0; `stride` values lie between two.
__device__ inline double total_of(const double *partial, i64 count, i64 stride,
                                  double (&sums)[FINISH_Y][FINISH_X]) {
  double sum = 0;
  for (i64 i = threadIdx.y; i < count; i += FINISH_Y) sum += partial[i * stride];
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  double total = 0;
  for (int y = 0; y < FINISH_Y && !threadIdx.y; y++) total += sums[y][threadIdx.x];
  return total;
}
