// Whole chains of a small MLP: lanes are chains, and a tile of them takes all its steps before the
// next one starts, so that activations stay in L1 and z is read and written once. Compiled once per
// vector level, STANLEY_LEVEL naming it.
#include "chain.h"

#include "layers.h"
#include "noise.h"

namespace stanley::cpu {
namespace STANLEY_LEVEL {
namespace {

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

// f into tile.f where it is wanted, its derivative by z into tile.grad.
template <int columns, Activation activation, class T>
void gradient(const Net<T>& net, const T* packed, const Tile<T>& tile, bool with_value) {
  constexpr int64_t chains = columns * kPerVector<T>;
  const int last = net.layers - 1;
  T *slopes = tile.slopes, *layers[] = {tile.a, tile.b};  // which take turns
  for (int l = 0; l < last; ++l) {
    const T* in = l ? layers[(l + 1) % 2] : tile.z;
    packed = forward_layer<columns, activation>(net, l, packed, in, layers[l % 2], slopes);
    slopes += padded(net.widths[l + 1]) * chains;
  }
  if (with_value) last_layer<columns>(net, packed, layers[(last + 1) % 2], tile.f);
  slopes -= padded(net.widths[last]) * chains;
  packed = backward_last_layer<columns>(net, packed, slopes, layers[last % 2]);
  for (int l = last - 1; l >= 0; --l) {
    if (l) slopes -= padded(net.widths[l]) * chains;
    T* out = l ? layers[l % 2] : tile.grad;
    packed = backward_layer<columns>(net, l, packed, layers[(l + 1) % 2], slopes, out);
  }
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
