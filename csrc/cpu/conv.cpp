// A convolutional net's value and its gradient by the image, one image at a time, so that a layer
// stays in L2. Convolutions are Winograd's F(4x4, 3x3) (Lavin and Gray 2016): tiles of 6x6 inputs
// are transformed, multiplied channel by channel as 36 matrix products, and transformed back to 4x4
// outputs, a quarter of the multiplications. Going back to the input is a convolution with the
// weights turned round. Compiled once per vector level, STANLEY_LEVEL naming it.
//
// Channels are lanes. An image's arithmetic is its own: the same bits in any batch.
#include "conv.h"

#include <cstring>

#include "vector.h"

namespace stanley::cpu {
namespace STANLEY_LEVEL {
namespace {

constexpr int64_t n = kPerVector<float>;
using Lanes = Vector<float>;
using Ints = Vector<int32_t>;
typedef int8_t Signs __attribute__((vector_size(n), may_alias));

constexpr int kIn = 6, kOut = 4, kPoints = kIn * kIn;

// Interpolation at 0, +-a, +-b and infinity. These are exact in binary, and rounding grows half as
// much as at the usual 0, +-1, +-2.
constexpr float a = 0.625f, b = 1.5f, aa = a * a, bb = b * b;

// A register tile of the products: kRows tiles by up to kColumns vectors of channels.
constexpr int kRows = 6, kColumns = kBytes == 64 ? 4 : 2;

inline int64_t padded(int64_t channels) { return (channels + n - 1) / n * n; }

inline int64_t least(int64_t x, int64_t y) { return x < y ? x : y; }

// How a feature map lies in memory: [row][column][channel], with a border of zeros, filled up to
// whole tiles.
struct Map {
  explicit Map(const ConvNet& net)
      : height(net.height),
        width(net.width),
        tile_rows((height + kOut - 1) / kOut),
        tile_columns((width + kOut - 1) / kOut),
        rows(tile_rows * kOut + 2),
        pitch(tile_columns * kOut + 2) {}

  int64_t tiles() const { return tile_rows * tile_columns; }
  int64_t size(int64_t channels) const { return rows * pitch * channels; }
  // Where an image's pixel is, in pixels.
  int64_t pixel(int64_t y, int64_t x) const { return (y + 1) * pitch + x + 1; }

  int64_t height, width, tile_rows, tile_columns, rows, pitch;
};

// Zeros all around the image.
void clear_border(const Map& map, int64_t channels, float* to) {
  for (int64_t y = 0; y < map.rows; ++y) {
    float* row = to + y * map.pitch * channels;
    const bool inside = y >= 1 && y <= map.height;
    const int64_t right = inside ? 1 + map.width : 0;
    if (inside) std::memset(row, 0, channels * sizeof(float));
    std::memset(row + right * channels, 0, (map.pitch - right) * channels * sizeof(float));
  }
}

// The transforms along one dimension --------------------------------------------------------------

inline void to_points(const Lanes x[kIn], Lanes y[kIn]) {
  const Lanes even_a = x[4] - bb * x[2], odd_a = a * (x[3] - bb * x[1]);
  const Lanes even_b = x[4] - aa * x[2], odd_b = b * (x[3] - aa * x[1]);
  y[0] = aa * bb * x[0] - (aa + bb) * x[2] + x[4];
  y[1] = even_a + odd_a;
  y[2] = even_a - odd_a;
  y[3] = even_b + odd_b;
  y[4] = even_b - odd_b;
  y[5] = aa * bb * x[1] - (aa + bb) * x[3] + x[5];
}

inline void from_points(const Lanes y[kIn], Lanes x[kOut]) {
  const Lanes even_a = y[1] + y[2], odd_a = a * (y[1] - y[2]);
  const Lanes even_b = y[3] + y[4], odd_b = b * (y[3] - y[4]);
  x[0] = y[0] + even_a + even_b;
  x[1] = odd_a + odd_b;
  x[2] = aa * even_a + bb * even_b;
  x[3] = aa * odd_a + bb * odd_b + y[5];
}

inline void weights_to_points(const Lanes w[3], Lanes u[kIn]) {
  constexpr float at_a = 0.5f / (aa * (aa - bb)), at_b = 0.5f / (bb * (bb - aa));
  const Lanes even_a = at_a * (w[0] + aa * w[2]), odd_a = at_a * a * w[1];
  const Lanes even_b = at_b * (w[0] + bb * w[2]), odd_b = at_b * b * w[1];
  u[0] = w[0] / (aa * bb);
  u[1] = even_a + odd_a;
  u[2] = even_a - odd_a;
  u[3] = even_b + odd_b;
  u[4] = even_b - odd_b;
  u[5] = w[2];
}

// Weights -----------------------------------------------------------------------------------------

inline int columns_of(int64_t vectors) {
  if (vectors >= kColumns) return kColumns;
  return vectors >= 2 ? 2 : 1;
}

// One convolution's weights: for every point a matrix [input][output], in blocks of `columns_of`
// vectors of outputs.
inline int64_t layer_size(int64_t inputs, int64_t outputs) {
  return kPoints * inputs * padded(outputs);
}

// w(output, input, tap) to points.
template <class Weight>
void pack_layer(int64_t inputs, int64_t outputs, const Weight& w, float* to) {
  const int64_t size = inputs * padded(outputs);
  for (int64_t first = 0; first < outputs;) {
    const int columns = columns_of((padded(outputs) - first) / n);
    for (int64_t i = 0; i < inputs; ++i)
      for (int c = 0; c < columns; ++c) {
        Lanes taps[3][3], half[3][kIn];
        for (int tap = 0; tap < 9; ++tap)
          for (int64_t lane = 0; lane < n; ++lane) {
            const int64_t o = first + c * n + lane;
            taps[tap % 3][tap / 3][lane] = o < outputs ? w(o, i, tap) : 0.0f;
          }
        for (int x = 0; x < 3; ++x) weights_to_points(taps[x], half[x]);
        for (int y = 0; y < kIn; ++y) {
          const Lanes row[3] = {half[0][y], half[1][y], half[2][y]};
          Lanes points[kIn];
          weights_to_points(row, points);
          for (int x = 0; x < kIn; ++x)
            at(to + (y * kIn + x) * size + first * inputs + (i * columns + c) * n) = points[x];
        }
      }
    first += columns * n;
  }
}

// In the order in which they are read: layer by layer the bias and the weights; the read-out as the
// last map lies, without its border, and its bias; then the layers' weights backwards.
int64_t packed_size(const ConvNet& net) {
  int64_t size = net.height * net.width * padded(net.channels[net.layers]) + n;
  for (int l = 0; l < net.layers; ++l) {
    const int64_t in = net.channels[l], out = net.channels[l + 1];
    size += padded(out) + layer_size(in, out) + layer_size(out, in);
  }
  return size;
}

void pack(const ConvNet& net, const ConvWeights& given, float* to) {
  std::memset(to, 0, packed_size(net) * sizeof(float));
  for (int l = 0; l < net.layers; ++l) {
    const int64_t in = net.channels[l], out = net.channels[l + 1];
    const float* w = given.weights[l];
    std::memcpy(to, given.biases[l], out * sizeof(float));
    to += padded(out);
    pack_layer(
        in, out, [=](int64_t o, int64_t i, int tap) { return w[(o * in + i) * 9 + tap]; }, to);
    to += layer_size(in, out);
  }
  const int64_t last = net.channels[net.layers], pixels = net.height * net.width;
  for (int64_t c = 0; c < last; ++c)
    for (int64_t i = 0; i < pixels; ++i) to[i * padded(last) + c] = given.readout[c * pixels + i];
  to += pixels * padded(last);
  *to = *given.readout_bias;
  to += n;
  for (int l = net.layers - 1; l >= 0; --l) {
    const int64_t in = net.channels[l], out = net.channels[l + 1];
    const float* w = given.weights[l];
    pack_layer(
        out, in, [=](int64_t i, int64_t o, int tap) { return w[(o * in + i) * 9 + 8 - tap]; }, to);
    to += layer_size(out, in);
  }
}

// A convolution -----------------------------------------------------------------------------------

// Tiles that are worked on at once: their points before and after the products fit into L2.
inline int64_t tiles_at_once(int64_t channels) {
  const int64_t tiles = 18 * 128 / channels / kRows * kRows;
  return tiles < kRows ? kRows : least(tiles, 8 * kRows);
}

// `count` tiles of the map from `first` on, to [point][tile][channel].
void tiles_to_points(const Map& map, const float* from, int64_t channels, int64_t first,
                     int64_t count, float* to) {
  for (int64_t t = 0; t < count; ++t) {
    const int64_t y0 = (first + t) / map.tile_columns * kOut;
    const int64_t x0 = (first + t) % map.tile_columns * kOut;
    for (int64_t c = 0; c < channels; c += n) {
      const float* corner = from + (y0 * map.pitch + x0) * channels + c;
      Lanes half[kIn][kIn];
      for (int x = 0; x < kIn; ++x) {
        Lanes column[kIn], points[kIn];
#pragma GCC unroll 6
        for (int y = 0; y < kIn; ++y) column[y] = at(corner + (y * map.pitch + x) * channels);
        to_points(column, points);
#pragma GCC unroll 6
        for (int y = 0; y < kIn; ++y) half[y][x] = points[y];
      }
      for (int y = 0; y < kIn; ++y) {
        Lanes points[kIn];
        to_points(half[y], points);
#pragma GCC unroll 6
        for (int x = 0; x < kIn; ++x)
          at(to + ((y * kIn + x) * count + t) * channels + c) = points[x];
      }
    }
  }
}

// `rows` tiles of one point: `columns` vectors of their outputs.
template <int rows, int columns>
inline void product(const float* in, int64_t inputs, int64_t stride, const float* weights,
                    float* out, int64_t outputs) {
  Lanes sums[rows][columns];
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < columns; ++c) sums[r][c] = Lanes{};
  for (int64_t i = 0; i < inputs; ++i, weights += columns * n) {
    Lanes w[columns];
#pragma GCC unroll 4
    for (int c = 0; c < columns; ++c) w[c] = at(weights + c * n);
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
      for (int c = 0; c < columns; ++c) sums[r][c] += w[c] * in[r * stride + i];
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < columns; ++c) at(out + r * outputs + c * n) = sums[r][c];
}

template <int columns>
void products(const float* in, int64_t inputs, int64_t stride, const float* weights, float* out,
              int64_t outputs, int64_t tiles) {
  for (; tiles >= kRows; tiles -= kRows, in += kRows * stride, out += kRows * outputs)
    product<kRows, columns>(in, inputs, stride, weights, out, outputs);
  switch (tiles) {
    case 1: return product<1, columns>(in, inputs, stride, weights, out, outputs);
    case 2: return product<2, columns>(in, inputs, stride, weights, out, outputs);
    case 3: return product<3, columns>(in, inputs, stride, weights, out, outputs);
    case 4: return product<4, columns>(in, inputs, stride, weights, out, outputs);
    case 5: return product<5, columns>(in, inputs, stride, weights, out, outputs);
  }
}

// At each point the tiles' channels times the weights. `outputs` are padded, and so is a tile's
// stride.
void all_products(const float* in, int64_t inputs, const float* weights, float* out,
                  int64_t outputs, int64_t tiles) {
  const int64_t stride = padded(inputs);
  for (int point = 0; point < kPoints; ++point, in += tiles * stride, out += tiles * outputs)
    for (int64_t first = 0; first < outputs;) {
      const int columns = columns_of((outputs - first) / n);
      switch (columns) {
        case 1: products<1>(in, inputs, stride, weights, out + first, outputs, tiles); break;
        case 2: products<2>(in, inputs, stride, weights, out + first, outputs, tiles); break;
        default: products<kColumns>(in, inputs, stride, weights, out + first, outputs, tiles);
      }
      first += columns * n;
      weights += columns * n * inputs;
    }
}

// Where an activation passes its input on as it is: -1, elsewhere 0.
inline Signs passes(Lanes x) { return __builtin_convertvector(x > 0, Signs); }

inline Signs& signs_at(int8_t* p) { return *reinterpret_cast<Signs*>(p); }

inline Lanes times_slope(Lanes x, Signs passes, Lanes slope) {
  return __builtin_convertvector(passes, Ints) != 0 ? x : x * slope;
}

// What becomes of an output: forward the bias and the activation, which leaves its signs; backward
// its derivative, by those of the layer below; at the image nothing. Signs lie as the map does.
struct Finish {
  const float* bias;
  int8_t* signs;
  float slope;
};

void tiles_from_points(const Map& map, const float* from, int64_t channels, int64_t first,
                       int64_t count, const Finish& finish, float* to) {
  const Lanes slope = Lanes{} + finish.slope;
  for (int64_t t = 0; t < count; ++t) {
    const int64_t y0 = (first + t) / map.tile_columns * kOut;
    const int64_t x0 = (first + t) % map.tile_columns * kOut;
    const int64_t rows = least(map.height - y0, kOut), columns = least(map.width - x0, kOut);
    for (int64_t c = 0; c < channels; c += n) {
      Lanes half[kOut][kIn];
      for (int x = 0; x < kIn; ++x) {
        Lanes points[kIn], column[kOut];
#pragma GCC unroll 6
        for (int y = 0; y < kIn; ++y)
          points[y] = at(from + ((y * kIn + x) * count + t) * channels + c);
        from_points(points, column);
#pragma GCC unroll 4
        for (int y = 0; y < kOut; ++y) half[y][x] = column[y];
      }
      for (int64_t y = 0; y < rows; ++y) {
        Lanes row[kOut];
        from_points(half[y], row);
        const int64_t start = map.pixel(y0 + y, x0) * channels + c;
        for (int64_t x = 0; x < columns; ++x) {
          const int64_t i = start + x * channels;
          Lanes value = row[x];
          if (finish.bias) {
            value += at(finish.bias + c);
            signs_at(finish.signs + i) = passes(value);
            value = value > 0 ? value : value * slope;
          } else if (finish.signs) {
            value = times_slope(value, signs_at(finish.signs + i), slope);
          }
          at(to + i) = value;
        }
      }
    }
  }
}

// Points of the tiles that are worked on, before and after the products.
struct Workspace {
  float *before, *after;
};

void convolve(const Map& map, const float* from, int64_t inputs, const float* weights,
              int64_t outputs, const Finish& finish, const Workspace& work, float* to) {
  const int64_t in = padded(inputs), out = padded(outputs), most = tiles_at_once(in + out);
  clear_border(map, out, to);
  for (int64_t first = 0; first < map.tiles(); first += most) {
    const int64_t count = least(map.tiles() - first, most);
    tiles_to_points(map, from, in, first, count, work.before);
    all_products(work.before, inputs, weights, work.after, out, count);
    tiles_from_points(map, work.after, out, first, count, finish, to);
  }
}

// The net -----------------------------------------------------------------------------------------

int64_t widest(const ConvNet& net) {
  int64_t most = 0;
  for (int l = 0; l <= net.layers; ++l) most = net.channels[l] > most ? net.channels[l] : most;
  return padded(most);
}

// Points of one side of a convolution take at most this.
int64_t points_size(const ConvNet& net) {
  int64_t most = 0;
  for (int l = 0; l < net.layers; ++l) {
    const int64_t in = padded(net.channels[l]), out = padded(net.channels[l + 1]);
    const int64_t size = kPoints * tiles_at_once(in + out) * (in > out ? in : out);
    most = size > most ? size : most;
  }
  return most;
}

// Signs of all layers, in floats.
int64_t signs_size(const ConvNet& net, const Map& map) {
  int64_t size = 0;
  for (int l = 1; l <= net.layers; ++l) size += map.size(padded(net.channels[l]));
  return size / static_cast<int64_t>(sizeof(float));
}

int64_t scratch_size(const ConvNet& net) {
  const Map map(net);
  return 2 * map.size(widest(net)) + 2 * points_size(net) + signs_size(net, map);
}

// What an image keeps.
struct Image {
  Image(const ConvNet& net, const Map& map, float* scratch) {
    for (float*& each : maps) {
      each = scratch;
      scratch += map.size(widest(net));
    }
    work.before = scratch;
    work.after = work.before + points_size(net);
    int8_t* bytes = reinterpret_cast<int8_t*>(work.after + points_size(net));
    for (int l = 1; l <= net.layers; ++l) {
      signs[l] = bytes;
      bytes += map.size(padded(net.channels[l]));
    }
  }

  float* maps[2];  // of a layer and the one before it: activations, then derivatives by them
  int8_t* signs[kMaxConvolutions + 1];
  Workspace work;
};

// (channels, height, width) to a map and back.
void load(const Map& map, int64_t channels, const float* z, float* to) {
  std::memset(to, 0, map.size(padded(channels)) * sizeof(float));
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t y = 0; y < map.height; ++y)
      for (int64_t x = 0; x < map.width; ++x) to[map.pixel(y, x) * padded(channels) + c] = *z++;
}

void store(const Map& map, int64_t channels, const float* from, float* z) {
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t y = 0; y < map.height; ++y)
      for (int64_t x = 0; x < map.width; ++x) *z++ = from[map.pixel(y, x) * padded(channels) + c];
}

// The read-out of a map, which becomes the derivative by what it was before its activation.
float read_out(const Map& map, int64_t channels, const float* weights, float slope, float* layer) {
  double sum = 0;
  for (int64_t y = 0; y < map.height; ++y) {
    Lanes row = {};
    int64_t i = map.pixel(y, 0) * channels;
    for (int64_t end = i + map.width * channels; i < end; i += n, weights += n) {
      const Lanes value = at(layer + i), w = at(weights);
      row += value * w;
      at(layer + i) = value > 0 ? w : w * slope;
    }
    for (int64_t lane = 0; lane < n; ++lane) sum += row[lane];
  }
  return static_cast<float>(sum + *weights);
}

void run_image(const ConvArgs& args, const Map& map, const Image& image, int64_t index) {
  const ConvNet& net = *args.net;
  const int64_t size = net.channels[0] * net.height * net.width;
  const int64_t last = padded(net.channels[net.layers]);
  const float* packed = args.packed;
  load(map, net.channels[0], args.z + index * size, image.maps[0]);
  for (int l = 0; l < net.layers; ++l) {
    const int64_t in = net.channels[l], out = net.channels[l + 1];
    float* to = image.maps[(l + 1) % 2];
    const Finish finish = {packed, image.signs[l + 1], net.slope};
    packed += padded(out);
    convolve(map, image.maps[l % 2], in, packed, out, finish, image.work, to);
    packed += layer_size(in, out);
  }
  args.f[index] = read_out(map, last, packed, net.slope, image.maps[net.layers % 2]);
  if (!args.grad) return;
  packed += net.height * net.width * last + n;
  for (int l = net.layers - 1; l >= 0; --l) {
    const int64_t in = net.channels[l], out = net.channels[l + 1];
    float* to = image.maps[l % 2];
    const Finish finish = {nullptr, l ? image.signs[l] : nullptr, net.slope};
    convolve(map, image.maps[(l + 1) % 2], out, packed, in, finish, image.work, to);
    packed += layer_size(out, in);
  }
  store(map, net.channels[0], image.maps[0], args.grad + index * size);
}

void run(const ConvArgs& args, float* scratch, int64_t begin, int64_t end) {
  const Map map(*args.net);
  const Image image(*args.net, map, scratch);
  for (int64_t i = begin; i < end; ++i) run_image(args, map, image, i);
}

}  // namespace

extern const Convs kConvs;
const Convs kConvs = {packed_size, pack, scratch_size, run};

}  // namespace STANLEY_LEVEL
}  // namespace stanley::cpu
