// A small MLP in vector code: lanes are chains, and a tile is one to kColumns vectors of them. Each
// file that is compiled once per vector level includes this within its own copy of STANLEY_LEVEL's
// namespace.
//
// Every chain's arithmetic is the same in every lane and in tiles of every width.
#pragma once

#include "net.h"
#include "vector.h"

namespace stanley::cpu {
namespace STANLEY_LEVEL {
namespace {

// A register tile: its kRows x kColumns vectors take 24 of 32 registers, or 12 of 16.
constexpr int kRows = kBytes == 64 ? 8 : 4, kColumns = 3;
constexpr int kFew = 2;  // inputs that are not worth kRows rows: points in the plane

inline int64_t padded(int64_t rows) { return (rows + kRows - 1) / kRows * kRows; }

template <class T>
int64_t widest(const Net<T>& net) {
  int64_t most = 0;
  for (int l = 0; l < net.layers; ++l) most = net.widths[l] > most ? net.widths[l] : most;
  return padded(most);
}

template <class T>
int64_t hidden(const Net<T>& net) {
  int64_t rows = 0;
  for (int l = 1; l < net.layers; ++l) rows += padded(net.widths[l]);
  return rows;
}

// The order in which the net is read: layer by layer the bias and the weights in blocks of kRows
// outputs, [block][input][row]; the last layer's weights and bias; then the layers backwards in
// blocks of kRows inputs, [block][output][row]. Zeros fill the last block.
template <class T>
int64_t packed_size(const Net<T>& net) {
  int64_t size = padded(net.widths[net.layers - 1]) + kRows;
  for (int l = 0; l + 1 < net.layers; ++l) {
    const int64_t in = net.widths[l], out = net.widths[l + 1];
    size += padded(out) * (1 + in) + padded(in) * out;
  }
  return size;
}

template <class T>
T* pack_rows(const T* values, int64_t rows, int64_t row_stride, int64_t columns,
             int64_t column_stride, T* to) {
  for (int64_t first = 0; first < rows; first += kRows, to += columns * kRows)
    for (int64_t r = 0; r < kRows; ++r) {
      const T* row = values + (first + r) * row_stride;
      const bool filled = first + r < rows;
      for (int64_t c = 0; c < columns; ++c)
        to[c * kRows + r] = filled ? row[c * column_stride] : T(0);
    }
  return to;
}

template <class T>
void pack(const Net<T>& net, T* to) {
  const int last = net.layers - 1;
  for (int l = 0; l < last; ++l) {
    to = pack_rows(net.biases[l], net.widths[l + 1], 1, 1, 0, to);
    to = pack_rows(net.weights[l], net.widths[l + 1], net.widths[l], net.widths[l], 1, to);
  }
  to = pack_rows(net.weights[last], net.widths[last], 1, 1, 0, to);
  to = pack_rows(net.biases[last], 1, 1, 1, 0, to);
  for (int l = last - 1; l >= 0; --l)
    to = pack_rows(net.weights[l], net.widths[l], 1, net.widths[l + 1], net.widths[l], to);
}

// The first `rows` of kRows rows of a matrix times `in`, [k][chain], plus `start`; finish(row,
// column, sums) gets each vector of the product.
template <int columns, int rows = kRows, class T, class Finish>
inline __attribute__((always_inline)) void product(const T* weights, int64_t k, const T* in,
                                                   const T* start, const Finish& finish) {
  constexpr int64_t n = kPerVector<T>;
  Vector<T> sums[rows][columns];
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < columns; ++c) sums[r][c] = Vector<T>{} + (start ? start[r] : T(0));
  for (int64_t i = 0; i < k; ++i, weights += kRows, in += columns * n) {
    Vector<T> x[columns];
#pragma GCC unroll 4
    for (int c = 0; c < columns; ++c) x[c] = at(in + c * n);
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
      for (int c = 0; c < columns; ++c) sums[r][c] += x[c] * weights[r];
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < columns; ++c) finish(r, c, sums[r][c]);
}

// e^x for x in [-87, 88], good to 2 ulp; Cephes' expf.
inline float exponential(float x) {
  x = x < -87.0f ? -87.0f : (x > 88.0f ? 88.0f : x);
  const int32_t n = static_cast<int32_t>(x * 1.44269504f + (x < 0 ? -0.5f : 0.5f));
  const float whole = static_cast<float>(n);
  const float f = x - whole * 0.693359375f - whole * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * f + 1.3981999507e-3f;
  p = p * f + 8.3334519073e-3f;
  p = p * f + 4.1665795894e-2f;
  p = p * f + 1.6666665459e-1f;
  p = p * f + 5.0000001201e-1f;
  p = p * f * f + f + 1.0f;
  const int32_t bits = (n + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return p * power;
}

inline double exponential(double x) { return std::exp(x); }

// values becomes SiLU of itself, slopes its derivative.
template <class T>
__attribute__((noinline)) void silu(T* __restrict values, T* __restrict slopes, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const T x = values[i], sigmoid = T(1) / (T(1) + exponential(-x));
    values[i] = x * sigmoid;
    slopes[i] = sigmoid * (T(1) + x * (T(1) - sigmoid));
  }
}

// A block of kRows units: their activation into `out`, its derivative into `slopes`. Not inlined,
// so that the registers are the product's alone.
template <int columns, Activation activation, class T>
__attribute__((noinline)) void forward_block(const T* weights, int64_t k, const T* in,
                                             const T* bias, T leak, T* out, T* slopes) {
  constexpr int64_t n = kPerVector<T>, chains = columns * n;
  product<columns>(weights, k, in, bias, [&](int r, int c, Vector<T> x) {
    const int64_t i = r * chains + c * n;
    if (activation == Activation::kLeaky) {
      const Vector<T> by = x > 0 ? Vector<T>{} + T(1) : Vector<T>{} + leak;
      at(slopes + i) = by;
      x *= by;
    }
    at(out + i) = x;
  });
}

// The layer from widths[l] to widths[l + 1] and its activation, whose derivative goes into slopes.
// Returns what follows the layer in the packed net.
template <int columns, Activation activation, class T>
inline const T* forward_layer(const Net<T>& net, int l, const T* packed, const T* in, T* out,
                              T* slopes) {
  constexpr int64_t chains = columns * kPerVector<T>;
  const int64_t k = net.widths[l], rows = padded(net.widths[l + 1]);
  const T *bias = packed, *weights = bias + rows;
  for (int64_t row = 0; row < rows; row += kRows, weights += k * kRows)
    forward_block<columns, activation>(weights, k, in, bias + row, net.slope, out + row * chains,
                                       slopes + row * chains);
  if (activation == Activation::kSilu) silu(out, slopes, rows * chains);
  return weights;
}

// The last layer's output, one row.
template <int columns, class T>
inline void last_layer(const Net<T>& net, const T* packed, const T* in, T* f) {
  constexpr int64_t n = kPerVector<T>, chains = columns * n;
  const int64_t width = net.widths[net.layers - 1];
  const T *weights = packed, *bias = weights + padded(width);
  for (int c = 0; c < columns; ++c) {
    Vector<T> sum = Vector<T>{} + *bias;
    for (int64_t row = 0; row < width; ++row) sum += at(in + row * chains + c * n) * weights[row];
    at(f + c * n) = sum;
  }
}

// Its derivative by what the layer below had before its activation. Returns what follows.
template <int columns, class T>
inline const T* backward_last_layer(const Net<T>& net, const T* packed, const T* slopes, T* out) {
  constexpr int64_t n = kPerVector<T>, chains = columns * n;
  const int64_t width = net.widths[net.layers - 1];
  for (int64_t row = 0; row < width; ++row)
    for (int64_t i = row * chains; i < (row + 1) * chains; i += n)
      at(out + i) = at(slopes + i) * packed[row];
  return packed + padded(width) + kRows;
}

// The derivative by widths[l] from that by widths[l + 1], times the activation's slopes except at
// the input. Returns what follows.
template <int columns, class T>
inline const T* backward_layer(const Net<T>& net, int l, const T* packed, const T* in,
                               const T* slopes, T* out) {
  constexpr int64_t n = kPerVector<T>, chains = columns * n;
  const int64_t k = net.widths[l + 1], rows = padded(net.widths[l]);
  const T* start = nullptr;
  if (l == 0 && net.widths[0] <= kFew) {
    product<columns, kFew>(packed, k, in, start,
                           [&](int r, int c, Vector<T> x) { at(out + r * chains + c * n) = x; });
    return packed + rows * k;
  }
  for (int64_t row = 0; row < rows; row += kRows, packed += k * kRows) {
    T* to = out + row * chains;
    const T* by = slopes + row * chains;
    product<columns>(packed, k, in, start, [&](int r, int c, Vector<T> x) {
      const int64_t i = r * chains + c * n;
      at(to + i) = l ? x * at(by + i) : x;
    });
  }
  return packed;
}

// (chains, d) in memory to [row][chain] and back; chains beyond `valid` are left as they are.
template <class T>
inline void to_lanes(const T* from, int64_t valid, int64_t d, int64_t chains, T* to) {
  for (int64_t i = 0; i < valid; ++i)
    for (int64_t j = 0; j < d; ++j) to[j * chains + i] = from[i * d + j];
}

template <class T>
inline void from_lanes(const T* from, int64_t valid, int64_t d, int64_t chains, T* to) {
  for (int64_t i = 0; i < valid; ++i)
    for (int64_t j = 0; j < d; ++j) to[i * d + j] = from[j * chains + i];
}

}  // namespace
}  // namespace STANLEY_LEVEL
}  // namespace stanley::cpu
