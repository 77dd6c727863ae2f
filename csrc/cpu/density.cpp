// A small MLP's values, and its gradient by its parameters and input in one pass. A tile of points
// goes forward, keeping every layer's activations, and back. Each layer's derivative is transposed
// on the way, so that the weights' gradient is a product in the same register tiles, with outputs
// for lanes. Compiled once per vector level, STANLEY_LEVEL naming it.
#include "density.h"

#include "layers.h"

namespace stanley::cpu {
namespace STANLEY_LEVEL {
namespace {

template <class T>
inline int64_t whole_vectors(int64_t n) {
  return (n + kPerVector<T> - 1) / kPerVector<T> * kPerVector<T>;
}

// Sums lie layer by layer, a row of outputs for each input and one for the bias after them.
template <class T>
int64_t layer_size(const Net<T>& net, int l) {
  return (padded(net.widths[l]) + 1) * whole_vectors<T>(net.widths[l + 1]);
}

template <class T>
int64_t sums_size(const Net<T>& net) {
  int64_t size = 0;
  for (int l = 0; l < net.layers; ++l) size += layer_size(net, l);
  return size;
}

// What a tile keeps, each [row][point] but for `turned`.
template <class T>
struct Tile {
  T *z, *grad, *f;
  T *a, *b;   // derivatives by two layers
  T* turned;  // one of them, [point][row]
  T* layers;  // the activations of all hidden layers
  T* slopes;  // and the activation's derivatives there
};

template <class T>
int64_t scratch_size(const Net<T>& net) {
  const int64_t wide = widest(net), turned = whole_vectors<T>(wide);
  const int64_t rows = 2 * padded(net.widths[0]) + 1 + 2 * wide + turned + 2 * hidden(net);
  return rows * kColumns * kPerVector<T>;
}

template <class T>
Tile<T> divided(T* scratch, const Net<T>& net, int64_t points) {
  const int64_t wide = widest(net);
  Tile<T> tile;
  tile.z = scratch;
  tile.grad = tile.z + padded(net.widths[0]) * points;
  tile.f = tile.grad + padded(net.widths[0]) * points;
  tile.a = tile.f + points;
  tile.b = tile.a + wide * points;
  tile.turned = tile.b + wide * points;
  tile.layers = tile.turned + whole_vectors<T>(wide) * points;
  tile.slopes = tile.layers + hidden(net) * points;
  return tile;
}

// kRows rows of sums grow by those of `in` times the derivatives by `columns` vectors of outputs.
template <int columns, class T>
inline void outer_product(const T* in, int64_t in_stride, const T* turned, int64_t valid,
                          int64_t stride, T* sums) {
  constexpr int64_t n = kPerVector<T>;
  Vector<T> tile[kRows][columns];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < columns; ++c) tile[r][c] = at(sums + r * stride + c * n);
  for (int64_t i = 0; i < valid; ++i, turned += stride) {
    Vector<T> x[columns];
#pragma GCC unroll 4
    for (int c = 0; c < columns; ++c) x[c] = at(turned + c * n);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
      for (int c = 0; c < columns; ++c) tile[r][c] += x[c] * in[r * in_stride + i];
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < columns; ++c) at(sums + r * stride + c * n) = tile[r][c];
}

// A layer's sums, over the first `valid` points: of its input times its output's derivatives, and
// of these alone.
template <class T>
void add_layer(const T* in, int64_t inputs, int64_t points, const T* turned, int64_t valid,
               int64_t stride, T* sums) {
  constexpr int64_t n = kPerVector<T>;
  for (int64_t column = 0, left = stride / n; left > 0;) {
    const int64_t tiles = (left + kColumns - 1) / kColumns, columns = (left + tiles - 1) / tiles;
    for (int64_t row = 0; row < inputs; row += kRows) {
      const T *x = in + row * points, *y = turned + column;
      T* to = sums + row * stride + column;
      switch (columns) {
        case 1: outer_product<1>(x, points, y, valid, stride, to); break;
        case 2: outer_product<2>(x, points, y, valid, stride, to); break;
        default: outer_product<3>(x, points, y, valid, stride, to);
      }
    }
    left -= columns;
    column += columns * n;
  }
  T* bias = sums + inputs * stride;
  for (int64_t i = 0; i < valid; ++i, turned += stride)
    for (int64_t j = 0; j < stride; j += n) at(bias + j) += at(turned + j);
}

// The derivatives of f by a layer, [row][point], times grad_out: [point][row], padded with zeros to
// rows of `stride`.
template <class T>
void turn(const T* grad, int64_t rows, int64_t points, const T* grad_out, int64_t valid,
          int64_t stride, T* to) {
  for (int64_t i = 0; i < valid; ++i, to += stride) {
    for (int64_t row = 0; row < rows; ++row) to[row] = grad[row * points + i] * grad_out[i];
    for (int64_t row = rows; row < stride; ++row) to[row] = T(0);
  }
}

template <int columns, Activation activation, class T>
const T* forward(const Net<T>& net, const T* packed, const Tile<T>& tile) {
  constexpr int64_t points = columns * kPerVector<T>;
  const T* in = tile.z;
  int64_t done = 0;
  for (int l = 0; l + 1 < net.layers; ++l) {
    T* out = tile.layers + done;
    packed = forward_layer<columns, activation>(net, l, packed, in, out, tile.slopes + done);
    done += padded(net.widths[l + 1]) * points;
    in = out;
  }
  return packed;
}

template <int columns, class T>
const T* last_hidden(const Net<T>& net, const Tile<T>& tile) {
  const int64_t rows = hidden(net) - padded(net.widths[net.layers - 1]);
  return tile.layers + rows * columns * kPerVector<T>;
}

template <int columns, class T>
Tile<T> loaded(const DensityArgs<T>& a, T* scratch, int64_t first, int64_t valid) {
  constexpr int64_t points = columns * kPerVector<T>;
  const int64_t d = a.net->widths[0];
  const Tile<T> tile = divided(scratch, *a.net, points);
  std::memset(tile.z, 0, padded(d) * points * sizeof(T));
  to_lanes(a.z + first * d, valid, d, points, tile.z);
  return tile;
}

struct Value {
  template <int columns, Activation activation, class T>
  static void run(const DensityArgs<T>& a, T* scratch, int64_t first, int64_t valid, T*) {
    const Tile<T> tile = loaded<columns>(a, scratch, first, valid);
    const T* packed = forward<columns, activation>(*a.net, a.packed, tile);
    last_layer<columns>(*a.net, packed, last_hidden<columns>(*a.net, tile), tile.f);
    std::memcpy(a.f + first, tile.f, valid * sizeof(T));
  }
};

struct Gradient {
  template <int columns, Activation activation, class T>
  static void run(const DensityArgs<T>& a, T* scratch, int64_t first, int64_t valid, T* sums) {
    constexpr int64_t points = columns * kPerVector<T>;
    const Net<T>& net = *a.net;
    const int last = net.layers - 1;
    const Tile<T> tile = loaded<columns>(a, scratch, first, valid);
    const T* packed = forward<columns, activation>(net, a.packed, tile);
    const T *in = last_hidden<columns>(net, tile), *slopes = tile.slopes + (in - tile.layers);
    const T *grad = tile.f, *grad_out = a.grad_out + first;
    for (int64_t i = 0; i < points; ++i) tile.f[i] = T(1);
    sums += sums_size(net);
    for (int l = last;; --l) {
      if (a.with_parameters) {
        sums -= layer_size(net, l);
        const int64_t inputs = padded(net.widths[l]), outputs = net.widths[l + 1];
        const int64_t stride = whole_vectors<T>(outputs);
        turn(grad, outputs, points, grad_out, valid, stride, tile.turned);
        add_layer(in, inputs, points, tile.turned, valid, stride, sums);
      }
      if (l == 0) break;
      T* out = l % 2 ? tile.a : tile.b;
      packed = l == last ? backward_last_layer<columns>(net, packed, slopes, out)
                         : backward_layer<columns>(net, l, packed, grad, slopes, out);
      const int64_t below = l > 1 ? padded(net.widths[l - 1]) * points : 0;
      slopes -= below;
      in = l > 1 ? in - below : tile.z;
      grad = out;
    }
    if (!a.grad_z) return;
    backward_layer<columns>(net, 0, packed, grad, slopes, tile.grad);
    turn(tile.grad, net.widths[0], points, grad_out, valid, net.widths[0],
         a.grad_z + first * net.widths[0]);
  }
};

template <class Work, Activation activation, class T>
void run_groups(const DensityArgs<T>& a, T* scratch, int64_t begin, int64_t end, T* sums) {
  constexpr int64_t n = kPerVector<T>;
  for (int64_t tiles = (end - begin + kColumns - 1) / kColumns; tiles > 0; --tiles) {
    const int64_t columns = (end - begin + tiles - 1) / tiles;  // as even as can be
    const int64_t first = begin * n, left = a.points - first;
    const int64_t valid = left < columns * n ? left : columns * n;
    switch (columns) {
      case 1: Work::template run<1, activation>(a, scratch, first, valid, sums); break;
      case 2: Work::template run<2, activation>(a, scratch, first, valid, sums); break;
      default: Work::template run<3, activation>(a, scratch, first, valid, sums);
    }
    begin += columns;
  }
}

template <class Work, class T>
void run(const DensityArgs<T>& a, T* scratch, int64_t begin, int64_t end, T* sums) {
  a.net->activation == Activation::kLeaky
      ? run_groups<Work, Activation::kLeaky>(a, scratch, begin, end, sums)
      : run_groups<Work, Activation::kSilu>(a, scratch, begin, end, sums);
}

template <class T>
void unpack(const Net<T>& net, const T* sums, T* grad) {
  for (int l = 0; l < net.layers; ++l) {
    const int64_t inputs = net.widths[l], outputs = net.widths[l + 1];
    const int64_t stride = whole_vectors<T>(outputs);
    for (int64_t o = 0; o < outputs; ++o)
      for (int64_t i = 0; i < inputs; ++i) *grad++ = sums[i * stride + o];
    const T* bias = sums + padded(inputs) * stride;
    for (int64_t o = 0; o < outputs; ++o) *grad++ = bias[o];
    sums += layer_size(net, l);
  }
}

template <class T>
constexpr DensityKernels<T> kTable = {kPerVector<T>,    packed_size<T>, pack<T>,
                                      scratch_size<T>,  sums_size<T>,   run<Value, T>,
                                      run<Gradient, T>, unpack<T>};

}  // namespace

extern const Densities kDensities;
const Densities kDensities = {kTable<float>, kTable<double>};

}  // namespace STANLEY_LEVEL
}  // namespace stanley::cpu
