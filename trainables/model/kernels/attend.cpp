// Attention in its linear form, out = q (k^T v s), within blocks of timesteps, and its gradients.
//
// Spikes are bytes [T, B, N, heads * dim]; a block's rows are the tokens of its timesteps. Rows of a
// head are widened where they are used, and products of d x d stay in a thread's cache.
#include "matrix.h"

namespace {

struct Shape {
  int64_t blocks, steps, batch, tokens, heads, dim; // steps: timesteps of a block
  int64_t rows() const { return steps * tokens; }
  int64_t tasks() const { return blocks * batch * heads; }
  int64_t columns() const { return (dim + PANEL - 1) / PANEL * PANEL; }
  // Of widened rows: what the tiles of their columns read.
  template <class A> int64_t pitch() const {
    constexpr int64_t WIDTH = Lanes<A>::WIDTH;
    return dim <= WIDTH ? WIDTH : dim <= 2 * WIDTH ? 2 * WIDTH : columns();
  }
  // Where a block's row of a task's head lies.
  int64_t at(int64_t task, int64_t step) const {
    const int64_t head = task % heads, sample = task / heads % batch;
    const int64_t t = task / heads / batch * steps + step;
    return ((t * batch + sample) * tokens * heads + head) * dim;
  }
};

// The rows of a head in a block, with zeros behind each.
template <class A> class Rows {
public:
  explicit Rows(const Shape &shape)
      : values_(size_t(shape.rows() * shape.pitch<A>()), A(0)), pitch_(shape.pitch<A>()) {}

  template <class S> const A *widen(const S *from, const Shape &shape, int64_t task) {
    A *to = values_.data();
    for (int64_t step = 0; step < shape.steps; step++) {
      const S *row = from + shape.at(task, step);
      for (int64_t n = 0; n < shape.tokens; n++, row += shape.heads * shape.dim, to += pitch_)
        each_vector<A>(shape.dim, [&](int64_t at, int64_t count, auto full) {
          constexpr bool FULL = decltype(full)::value;
          store_some<FULL, A>(to + at, load_some<FULL, A>(row + at, count), count);
        });
    }
    return values_.data();
  }

private:
  std::vector<A, Aligned<A>> values_;
  int64_t pitch_;
};

// A d x d product as panels, and turned.
template <class A> struct Context {
  std::vector<A, Aligned<A>> plain, turned;
  explicit Context(const Shape &shape)
      : plain(size_t(shape.dim * shape.columns()), A(0)), turned(plain) {}

  // left^T right scale, summed over a block's rows.
  void sum(const Shape &shape, const A *left, const A *right, A scale) {
    const int64_t d = shape.dim, pitch = shape.pitch<A>();
    for (int64_t c0 = 0; c0 < d; c0 += PANEL)
      each_tile<A>(std::min(PANEL, d - c0), [&](int64_t at, int64_t n, auto tile) {
        for (int64_t i = 0; i < d; i += ROWS) {
          const A *lines[ROWS];
          for (int64_t r = 0; r < ROWS; r++) lines[r] = left + std::min(i + r, d - 1);
          auto sums = tile;
          std::memset(&sums, 0, sizeof sums);
          sums.add(lines, pitch, right + c0 + at, pitch, shape.rows());
          for (int64_t r = 0; r < std::min<int64_t>(ROWS, d - i); r++) {
            A *row = plain.data() + c0 * d + (i + r) * PANEL + at;
            store_row(sums, int(r), n, row);
            for (int64_t j = 0; j < n; j++) row[j] *= scale;
          }
        }
      });
    for (int64_t i = 0; i < d; i++)
      for (int64_t j = 0; j < d; j++)
        turned[size_t(i / PANEL * PANEL * d + j * PANEL + i % PANEL)] =
            plain[size_t(j / PANEL * PANEL * d + i * PANEL + j % PANEL)];
  }
};

// A block's rows times a d x d product, into a head's rows.
template <class S, class A>
void write(const Shape &shape, const A *rows, const A *panels, int64_t task, S *to) {
  const int64_t pitch = shape.pitch<A>(), d = shape.dim;
  for (int64_t step = 0; step < shape.steps; step++)
    multiply_panels(rows + step * shape.tokens * pitch, pitch, shape.tokens, d, panels, d,
                    to + shape.at(task, step), shape.heads * d);
}

template <class S, class A>
void attend(const uint8_t *q, const uint8_t *k, const uint8_t *v, const Shape &shape, A scale,
            S *out, int threads) {
#pragma omp parallel num_threads(threads)
  {
    Rows<A> left(shape), right(shape);
    Context<A> context(shape);
#pragma omp for schedule(static)
    for (int64_t task = 0; task < shape.tasks(); task++) {
      const A *rows_k = left.widen(k, shape, task), *rows_v = right.widen(v, shape, task);
      context.sum(shape, rows_k, rows_v, scale);
      write(shape, left.widen(q, shape, task), context.plain.data(), task, out);
    }
  }
}

template <class S, class A>
void attend_backward(const uint8_t *q, const uint8_t *k, const uint8_t *v, const S *grad,
                     const Shape &shape, A scale, S *grad_q, S *grad_k, S *grad_v, int threads) {
#pragma omp parallel num_threads(threads)
  {
    Rows<A> of_q(shape), of_k(shape), of_v(shape), of_grad(shape);
    Context<A> context(shape);
#pragma omp for schedule(static)
    for (int64_t task = 0; task < shape.tasks(); task++) {
      const A *rows_q = of_q.widen(q, shape, task), *rows_k = of_k.widen(k, shape, task);
      const A *rows_v = of_v.widen(v, shape, task), *rows_g = of_grad.widen(grad, shape, task);
      context.sum(shape, rows_k, rows_v, scale);
      write(shape, rows_g, context.turned.data(), task, grad_q);
      context.sum(shape, rows_q, rows_g, scale);
      write(shape, rows_v, context.turned.data(), task, grad_k);
      write(shape, rows_k, context.plain.data(), task, grad_v);
    }
  }
}

} // namespace

#define KERNELS(S, A, NAME)                                                                        \
  extern "C" void attend_##NAME(int64_t blocks, int64_t steps, int64_t batch, int64_t tokens,      \
                                int64_t heads, int64_t dim, double scale, const uint8_t *q,        \
                                const uint8_t *k, const uint8_t *v, S *out, int threads) {         \
    attend<S, A>(q, k, v, {blocks, steps, batch, tokens, heads, dim}, A(scale), out, threads);     \
  }                                                                                                \
  extern "C" void attend_backward_##NAME(                                                          \
      int64_t blocks, int64_t steps, int64_t batch, int64_t tokens, int64_t heads, int64_t dim,    \
      double scale, const uint8_t *q, const uint8_t *k, const uint8_t *v, const S *grad,           \
      S *grad_q, S *grad_k, S *grad_v, int threads) {                                              \
    attend_backward<S, A>(q, k, v, grad, {blocks, steps, batch, tokens, heads, dim}, A(scale),     \
                          grad_q, grad_k, grad_v, threads);                                        \
  }

KERNELS(float, float, f32)
KERNELS(double, double, f64)
KERNELS(Bf16, float, bf16)
