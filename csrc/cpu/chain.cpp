// Whole chains of a small MLP: lanes are chains, and a tile of them takes all its steps before the
// next one starts, so that activations stay in L1 and z is read and written once. Compiled once per
// vector level, STANLEY_LEVEL naming it.
//
// Every chain's arithmetic is the same in every lane and in tiles of every width.
#include "chain.h"

#include "noise.h"

namespace stanley::cpu {
namespace STANLEY_LEVEL {
namespace {

constexpr int kBytes = 8 * kLanes;  // of a vector
// A register tile: its kRows x kColumns vectors take 24 of 32 registers, or 12 of 16.
constexpr int kRows = kBytes == 64 ? 8 : 4, kColumns = 3;

template <class T>
constexpr int64_t kPerVector = kBytes / static_cast<int64_t>(sizeof(T));

template <class T>
struct VectorOf {
  typedef T type __attribute__((vector_size(kBytes), may_alias));
};

template <class T>
using Vector = typename VectorOf<T>::type;

template <class T>
inline Vector<T>& at(T* p) {
  return *reinterpret_cast<Vector<T>*>(p);
}

template <class T>
inline const Vector<T>& at(const T* p) {
  return *reinterpret_cast<const Vector<T>*>(p);
}

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

// What a tile keeps, each [row][chain].
template <class T>
struct Tile {
  T *z, *grad, *xi, *gamma, *watch;  // a row per element of a chain
  T* f;                              // one row
  T *a, *b;                          // activations, or derivatives by them, of two layers
  T* slopes;                         // the activation's derivative at all hidden units
};

template <class T>
int64_t scratch_size(const Net<T>& net) {
  const int64_t rows = 5 * padded(net.widths[0]) + 1 + 2 * widest(net) + hidden(net);
  return rows * kColumns * kPerVector<T>;
}

template <class T>
Tile<T> divided(T* scratch, const Net<T>& net, int64_t chains) {
  const int64_t state = padded(net.widths[0]) * chains, layer = widest(net) * chains;
  T *f = scratch + 5 * state, *a = f + chains;
  return {
      scratch, scratch + state, scratch + 2 * state, scratch + 3 * state, scratch + 4 * state, f,
      a,       a + layer,       a + 2 * layer};
}

// kRows rows of a matrix times `in`, [k][chain], plus `start`; finish(row, column, sums) gets each
// vector of the product.
template <int columns, class T, class Finish>
inline __attribute__((always_inline)) void product(const T* weights, int64_t k, const T* in,
                                                   const T* start, const Finish& finish) {
  constexpr int64_t n = kPerVector<T>;
  Vector<T> sums[kRows][columns];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < columns; ++c) sums[r][c] = Vector<T>{} + (start ? start[r] : T(0));
  for (int64_t i = 0; i < k; ++i, weights += kRows, in += columns * n) {
    Vector<T> x[columns];
#pragma GCC unroll 4
    for (int c = 0; c < columns; ++c) x[c] = at(in + c * n);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
      for (int c = 0; c < columns; ++c) sums[r][c] += x[c] * weights[r];
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
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

// How far a pass through the net has come: what is read next, and the two layers' places.
template <class T>
struct Place {
  const T* weights;
  T *slopes, *in, *out;

  void turn() {
    T* was = in;
    in = out;
    out = was;
  }
};

// Leaves the last hidden layer in place.in, the slopes and weights after those it used.
template <int columns, Activation activation, class T>
inline void forward(const Net<T>& net, const Tile<T>& tile, Place<T>& place) {
  constexpr int64_t n = kPerVector<T>, chains = columns * n;
  const Vector<T> slope = Vector<T>{} + net.slope, one = Vector<T>{} + T(1);
  for (int l = 0; l + 1 < net.layers; ++l) {
    const int64_t k = net.widths[l], rows = padded(net.widths[l + 1]);
    const T *in = l ? place.in : tile.z, *bias = place.weights, *weights = bias + rows;
    for (int64_t row = 0; row < rows; row += kRows, weights += k * kRows) {
      T *to = place.out + row * chains, *slope_to = place.slopes + row * chains;
      product<columns>(weights, k, in, bias + row, [&](int r, int c, Vector<T> x) {
        const int64_t i = r * chains + c * n;
        if (activation == Activation::kLeaky) {
          const Vector<T> by = x > 0 ? one : slope;
          at(slope_to + i) = by;
          x *= by;
        }
        at(to + i) = x;
      });
    }
    if (activation == Activation::kSilu) silu(place.out, place.slopes, rows * chains);
    place.weights = weights;
    place.slopes += rows * chains;
    place.turn();
  }
}

// The last layer: f into tile.f where it is wanted, its derivative by the layer below into
// place.in.
template <int columns, class T>
inline void last_layer(const Net<T>& net, const Tile<T>& tile, bool with_value, Place<T>& place) {
  constexpr int64_t n = kPerVector<T>, chains = columns * n;
  const int64_t width = net.widths[net.layers - 1], rows = padded(width);
  const T *weights = place.weights, *bias = weights + rows;
  for (int c = 0; with_value && c < columns; ++c) {
    Vector<T> f = Vector<T>{} + *bias;
    for (int64_t row = 0; row < width; ++row)
      f += at(place.in + row * chains + c * n) * weights[row];
    at(tile.f + c * n) = f;
  }
  place.slopes -= rows * chains;
  for (int64_t row = 0; row < width; ++row)
    for (int64_t i = row * chains; i < (row + 1) * chains; i += n)
      at(place.out + i) = at(place.slopes + i) * weights[row];
  place.weights = bias + kRows;
  place.turn();
}

// The derivative by z into tile.grad.
template <int columns, class T>
inline void backward(const Net<T>& net, const Tile<T>& tile, Place<T>& place) {
  constexpr int64_t n = kPerVector<T>, chains = columns * n;
  for (int l = net.layers - 2; l >= 0; --l) {
    const int64_t k = net.widths[l + 1], rows = padded(net.widths[l]);
    if (l) place.slopes -= rows * chains;
    for (int64_t row = 0; row < rows; row += kRows, place.weights += k * kRows) {
      T* to = (l ? place.out : tile.grad) + row * chains;
      const T *by = place.slopes + row * chains, *start = nullptr;
      product<columns>(place.weights, k, place.in, start, [&](int r, int c, Vector<T> x) {
        const int64_t i = r * chains + c * n;
        at(to + i) = l ? x * at(by + i) : x;
      });
    }
    place.turn();
  }
}

template <int columns, Activation activation, class T>
void gradient(const Net<T>& net, const T* packed, const Tile<T>& tile, bool with_value) {
  Place<T> place = {packed, tile.slopes, tile.a, tile.b};
  forward<columns, activation>(net, tile, place);
  last_layer<columns>(net, tile, with_value, place);
  backward<columns>(net, tile, place);
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

template <Gamma kind, class T>
inline Rate<T> rate_at(const ChainArgs<T>& a, Rate<T> scalar, T grad, T given) {
  if (kind == Gamma::kAdaptive) return adaptive_rate(grad, a.threshold, a.root_scale);
  return kind == Gamma::kScalar ? scalar : given_rate(given);
}

// One transition of n elements. watch becomes NaN where z or the gradient is not finite.
template <Gamma kind, Update update, class T>
__attribute__((noinline)) void transition(const ChainArgs<T>& args, const Tile<T>& tile,
                                          int64_t n) {
  const ChainArgs<T> a = args;  // a copy that z cannot alias
  const Rate<T> scalar = given_rate(a.gamma_value);
  T *z = tile.z, *watch = tile.watch;
  const T *grad = tile.grad, *xi = tile.xi, *given = tile.gamma;
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    watch[i] += (z[i] - z[i]) + (grad[i] - grad[i]);
    const T g = bound(grad[i], -a.grad_clamp, a.grad_clamp);
    const Rate<T> rate = rate_at<kind>(a, scalar, g, given[i]);
    z[i] = bound(move<kind, update>(z[i], g, rate, a.noise_scale * xi[i]), a.lo, a.hi);
  }
}

template <class T>
void transition(const ChainArgs<T>& a, const Tile<T>& tile, int64_t n) {
  constexpr Update paper = Update::kPaper, script = Update::kScript;
  switch (a.kind) {
    case Gamma::kAdaptive:
      return a.script ? transition<Gamma::kAdaptive, script>(a, tile, n)
                      : transition<Gamma::kAdaptive, paper>(a, tile, n);
    case Gamma::kScalar:
      return a.script ? transition<Gamma::kScalar, script>(a, tile, n)
                      : transition<Gamma::kScalar, paper>(a, tile, n);
    case Gamma::kTensor:
      return a.script ? transition<Gamma::kTensor, script>(a, tile, n)
                      : transition<Gamma::kTensor, paper>(a, tile, n);
  }
}

template <class T>
inline T gamma_at(const ChainArgs<T>& a, T grad, T given) {
  if (a.kind == Gamma::kAdaptive) return stepsize(grad, a.threshold, a.step_size);
  return a.kind == Gamma::kScalar ? a.gamma_value : given;
}

// Sums over the first `valid` chains, into their groups' rows of stats, which are `stride` apart.
template <class T>
void record(const ChainArgs<T>& a, const Tile<T>& tile, int64_t chains, int64_t valid,
            double* stats, int64_t stride) {
  constexpr int64_t n = kPerVector<T>;
  for (int64_t chain = 0; chain < valid; ++chain) {
    double* sums = stats + chain / n * stride;
    sums[kLogDensity] += tile.f[chain];
    for (int64_t j = 0; j < a.net->widths[0]; ++j) {
      const int64_t i = j * chains + chain;
      const T gamma = gamma_at(a, tile.grad[i], tile.gamma[i]);
      sums[kGradAbs] += std::fabs(tile.grad[i]);
      sums[kStepsize] += gamma;
      sums[kAtMax] += gamma >= a.step_size;
    }
  }
}

template <int columns, Activation activation, class T>
void run_tile(const ChainArgs<T>& a, T* scratch, int64_t group) {
  constexpr int64_t n = kPerVector<T>, chains = columns * n;
  const Net<T>& net = *a.net;
  const int64_t d = net.widths[0], first = group * n, left = a.chains - first;
  const int64_t valid = left < chains ? left : chains;
  const Tile<T> tile = divided(scratch, net, chains);
  std::memset(scratch, 0, 5 * padded(d) * chains * sizeof(T));
  to_lanes(a.z + first * d, valid, d, chains, tile.z);
  if (a.kind == Gamma::kTensor) to_lanes(a.gamma + first * d, valid, d, chains, tile.gamma);
  Draw draw;
  alignas(64) T normal[4 * kBlocks];
  Noise noise = a.noise;
  for (int64_t step = 0; step < a.steps; ++step, noise.block += a.blocks_per_step) {
    if (a.noise_scale != T(0)) {
      const T* xi = normals(noise, noise.first + first * d, valid * d, draw, normal);
      to_lanes(xi, valid, d, chains, tile.xi);
    }
    gradient<columns, activation>(net, a.packed, tile, a.stats != nullptr);
    if (a.stats)
      record(a, tile, chains, valid, a.stats + (group * a.steps + step) * kStats, a.steps * kStats);
    transition(a, tile, d * chains);
  }
  for (int64_t i = 0; i < d * chains; ++i)
    if (tile.watch[i] != T(0)) tile.z[i] = tile.watch[i];
  from_lanes(tile.z, valid, d, chains, a.out + first * d);
}

template <Activation activation, class T>
void run_groups(const ChainArgs<T>& a, T* scratch, int64_t begin, int64_t end) {
  for (int64_t tiles = (end - begin + kColumns - 1) / kColumns; tiles > 0; --tiles) {
    const int64_t columns = (end - begin + tiles - 1) / tiles;  // as even as can be
    switch (columns) {
      case 1: run_tile<1, activation>(a, scratch, begin); break;
      case 2: run_tile<2, activation>(a, scratch, begin); break;
      default: run_tile<3, activation>(a, scratch, begin);
    }
    begin += columns;
  }
}

template <class T>
void run(const ChainArgs<T>& a, T* scratch, int64_t begin, int64_t end) {
  a.net->activation == Activation::kLeaky ? run_groups<Activation::kLeaky>(a, scratch, begin, end)
                                          : run_groups<Activation::kSilu>(a, scratch, begin, end);
}

template <class T>
constexpr ChainKernels<T> kTable = {kPerVector<T>, packed_size<T>, pack<T>, scratch_size<T>,
                                    run<T>};

}  // namespace

extern const Chains kChains;
const Chains kChains = {kTable<float>, kTable<double>};

}  // namespace STANLEY_LEVEL
}  // namespace stanley::cpu
