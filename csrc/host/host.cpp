// stanley_fast._host: noise and element arithmetic on NumPy arrays, in plain loops over the very
// functions that the CPU's and CUDA's kernels use. The tests' second oracle. No torch here.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>
#include <limits>
#include <optional>
#include <sstream>
#include <type_traits>
#include <utility>

#include "../half.h"
#include "../step.h"

namespace py = pybind11;
using namespace py::literals;

namespace stanley::host {
namespace {

// Arguments ---------------------------------------------------------------------------------------

template <class T>
using Array = py::array_t<T, py::array::c_style>;
using Clamp = std::optional<std::pair<double, double>>;

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw py::value_error(message.str());
}

std::string describe(const py::array& array) {
  return py::str("{} {}").format(array.dtype(), array.attr("shape"));
}

template <class T>
bool is(const py::array& array) {
  return py::isinstance<py::array_t<T>>(array);
}

// Calls f with a value of the array's type.
template <class F>
auto with_type(const char* name, const py::array& array, const F& f) {
  if (is<float>(array)) return f(float());
  if (is<double>(array)) return f(double());
  fail(name, " must be float32 or float64, got ", describe(array));
}

// Calls f with the update as a constant.
template <class F>
auto with_update(bool script, const F& f) {
  if (script) return f(std::integral_constant<Update, Update::kScript>());
  return f(std::integral_constant<Update, Update::kPaper>());
}

// `array` in row-major order, if it is of grad's type and shape.
template <class T>
Array<T> like(const char* name, const py::array& array, const py::array& grad) {
  if (!is<T>(array) || !array.attr("shape").equal(grad.attr("shape")))
    fail(name, " must have grad's dtype and shape, ", describe(grad), ", got ", describe(array));
  return Array<T>::ensure(array);
}

template <class T>
std::optional<Array<T>> like(const char* name, const std::optional<py::array>& array,
                             const py::array& grad) {
  if (!array) return std::nullopt;
  return like<T>(name, *array, grad);
}

template <class T>
Array<T> empty_like(const py::array& array) {
  return Array<T>(std::vector<py::ssize_t>(array.shape(), array.shape() + array.ndim()));
}

template <class T>
T positive(const char* name, double value) {
  const T rounded = static_cast<T>(value);
  if (!(rounded > T(0) && std::isfinite(rounded)))
    fail(name, " must be positive and finite, got ", value);
  return rounded;
}

uint64_t wrapped(const py::int_& value) {  // modulo 2^64
  return py::int_(value & py::int_(std::numeric_limits<uint64_t>::max())).cast<uint64_t>();
}

// Noise -------------------------------------------------------------------------------------------

struct Noise {
  uint64_t seed, block;  // the block of element 0 of the whole state
  uint32_t stream;
  uint64_t first;

  // Of local element i.
  template <class T>
  T normal(uint64_t i) const {
    const uint64_t element = first + i, at = block + element / 4;
    const Words4 words = philox(static_cast<uint32_t>(at), static_cast<uint32_t>(at >> 32), stream,
                                0, static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
    const uint32_t* pair = words.w + (element & 2);
    T n[2];
    box_muller(pair[0], pair[1], n);
    return n[element & 1];
  }
};

Noise noise_of(int64_t n, const py::int_& seed, const py::int_& offset, const py::int_& step,
               uint32_t stream, int64_t first, std::optional<int64_t> total) {
  const int64_t whole = total.value_or(n);
  if (first < 0 || n > whole || first > whole - n)
    fail("elements [first, first + n) must lie in [0, total), got first ", first, ", n ", n,
         ", total ", whole);
  const uint64_t per_step = static_cast<uint64_t>(whole / 4 + (whole % 4 != 0));
  return {wrapped(seed), wrapped(offset) + wrapped(step) * per_step, stream,
          static_cast<uint64_t>(first)};
}

py::array philox_words(const py::array& counter, const py::array& key) {
  if (!is<uint32_t>(counter) || counter.ndim() != 2 || counter.shape(1) != 4)
    fail("counter must be a uint32 array (n, 4), got ", describe(counter));
  if (!is<uint32_t>(key) || key.ndim() != 1 || key.shape(0) != 2)
    fail("key must be a uint32 array (2,), got ", describe(key));
  const auto c = py::array_t<uint32_t>(counter).unchecked<2>();
  const auto k = py::array_t<uint32_t>(key).unchecked<1>();
  Array<uint32_t> out = empty_like<uint32_t>(counter);
  auto words = out.mutable_unchecked<2>();
  for (py::ssize_t i = 0; i < c.shape(0); ++i) {
    const Words4 w = philox(c(i, 0), c(i, 1), c(i, 2), c(i, 3), k(0), k(1));
    for (int lane = 0; lane < 4; ++lane) words(i, lane) = w.w[lane];
  }
  return out;
}

py::array normal(int64_t n, const py::int_& seed, const py::int_& offset, const py::int_& step,
                 uint32_t stream, int64_t first, std::optional<int64_t> total,
                 const py::object& dtype) {
  if (n < 0) fail("n must be 0 or more, got ", n);
  const Noise noise = noise_of(n, seed, offset, step, stream, first, total);
  const py::array none(py::dtype::from_args(dtype), std::vector<py::ssize_t>{0});
  return with_type("dtype", none, [&](auto zero) -> py::array {
    using T = decltype(zero);
    Array<T> out(n);
    for (int64_t i = 0; i < n; ++i) out.mutable_data()[i] = noise.normal<T>(i);
    return out;
  });
}

py::array round(const py::array& x, const py::array& words) {
  if (!is<float>(x)) fail("x must be float32, got ", describe(x));
  if (!is<uint32_t>(words) || !words.attr("shape").equal(x.attr("shape")))
    fail("words must be uint32 and have x's shape, ", describe(x), ", got ", describe(words));
  const auto from = Array<float>::ensure(x);
  const auto w = Array<uint32_t>::ensure(words);
  Array<float> out = empty_like<float>(x);
  for (py::ssize_t i = 0; i < x.size(); ++i)
    out.mutable_data()[i] = rounded_stochastically(from.data()[i], w.data()[i]);
  return out;
}

// Equations 4 and 5 -------------------------------------------------------------------------------

py::array stepsizes(const py::array& grad, double threshold, double step_size) {
  return with_type("grad", grad, [&](auto zero) -> py::array {
    using T = decltype(zero);
    const T th = positive<T>("threshold", threshold), size = positive<T>("step_size", step_size);
    const Array<T> g = like<T>("grad", grad, grad);
    Array<T> out = empty_like<T>(grad);
    for (py::ssize_t i = 0; i < g.size(); ++i)
      out.mutable_data()[i] = stepsize(g.data()[i], th, size);
    return out;
  });
}

// What the forward and the backward pass of a step take besides z and grad.
template <class T>
struct Rule {
  std::optional<Array<T>> gamma;  // none: adaptive, Eq. 4
  T threshold, root_scale, noise_scale, lo, hi;
  Noise noise;

  Rate<T> rate_at(T grad, py::ssize_t i) const {
    return gamma ? given_rate(gamma->data()[i]) : adaptive_rate(grad, threshold, root_scale);
  }
  template <Update update>
  T moved(T z, T grad, Rate<T> rate, T xi) const {
    return gamma ? move<Gamma::kTensor, update>(z, grad, rate, xi)
                 : move<Gamma::kAdaptive, update>(z, grad, rate, xi);
  }
  T noise_at(py::ssize_t i) const { return noise_scale * noise.normal<T>(i); }
};

template <class T>
Rule<T> rule_of(const py::array& grad, const std::optional<py::array>& gamma, const Noise& noise,
                double threshold, double step_size, double noise_scale, const Clamp& clamp) {
  if (!(noise_scale >= 0)) fail("noise_scale must be 0 or more, got ", noise_scale);
  constexpr T infinity = std::numeric_limits<T>::infinity();
  return {like<T>("gamma", gamma, grad),
          positive<T>("threshold", threshold),
          static_cast<T>(root_scale_of(positive<double>("step_size", step_size), threshold)),
          static_cast<T>(noise_scale),
          clamp ? static_cast<T>(clamp->first) : -infinity,
          clamp ? static_cast<T>(clamp->second) : infinity,
          noise};
}

py::array step(const py::array& z, const py::array& grad, const std::optional<py::array>& gamma,
               const py::int_& seed, const py::int_& offset, const py::int_& step, double threshold,
               double step_size, double noise_scale, const Clamp& clamp, bool script, int64_t first,
               std::optional<int64_t> total) {
  const Noise noise = noise_of(grad.size(), seed, offset, step, 0, first, total);
  return with_type("grad", grad, [&](auto zero) -> py::array {
    using T = decltype(zero);
    const auto rule = rule_of<T>(grad, gamma, noise, threshold, step_size, noise_scale, clamp);
    const Array<T> from = like<T>("z", z, grad), g = like<T>("grad", grad, grad);
    Array<T> out = empty_like<T>(grad);
    with_update(script, [&](auto update) {
      for (py::ssize_t i = 0; i < g.size(); ++i) {
        const T gradient = g.data()[i];
        const Rate<T> rate = rule.rate_at(gradient, i);
        const T moved =
            rule.template moved<update()>(from.data()[i], gradient, rate, rule.noise_at(i));
        out.mutable_data()[i] = bound(moved, rule.lo, rule.hi);
      }
    });
    return out;
  });
}

py::tuple step_backward(const py::array& grad_out, const std::optional<py::array>& z,
                        const py::array& grad, const std::optional<py::array>& gamma,
                        const py::int_& seed, const py::int_& offset, const py::int_& step,
                        double threshold, double step_size, double noise_scale, const Clamp& clamp,
                        bool script, int64_t first, std::optional<int64_t> total) {
  if (clamp && !z) fail("z must be given where clamp is");
  const Noise noise = noise_of(grad.size(), seed, offset, step, 0, first, total);
  return with_type("grad", grad, [&](auto zero) -> py::tuple {
    using T = decltype(zero);
    const auto rule = rule_of<T>(grad, gamma, noise, threshold, step_size, noise_scale, clamp);
    const Array<T> incoming = like<T>("grad_out", grad_out, grad), g = like<T>("grad", grad, grad);
    const std::optional<Array<T>> from = like<T>("z", z, grad);
    Array<T> by_z = empty_like<T>(grad), by_grad = empty_like<T>(grad);
    Array<T> by_gamma = empty_like<T>(grad);
    with_update(script, [&](auto update) {
      for (py::ssize_t i = 0; i < g.size(); ++i) {
        const T gradient = g.data()[i];
        const Rate<T> rate = rule.rate_at(gradient, i);
        const T xi = rule.noise_at(i);
        const T moved =
            from ? rule.template moved<update()>(from->data()[i], gradient, rate, xi) : T(0);
        const T kept = moved < rule.lo || moved > rule.hi ? T(0) : incoming.data()[i];
        by_z.mutable_data()[i] = kept;
        by_grad.mutable_data()[i] =
            kept * (rule.gamma ? move_by_grad<update()>(rate)
                               : stanley_by_grad<update()>(gradient, rate, rule.threshold, xi));
        by_gamma.mutable_data()[i] = kept * move_by_gamma<update()>(gradient, rate, xi);
      }
    });
    if (rule.gamma) return py::make_tuple(by_z, by_grad, by_gamma);
    return py::make_tuple(by_z, by_grad);
  });
}

// Module ------------------------------------------------------------------------------------------

py::dict build_facts() {
  py::dict facts = py::module_::import("json").attr("loads")(STANLEY_BUILD);
#ifdef __clang__
  facts["compiler"] = "clang++ " __clang_version__;
#else
  facts["compiler"] = "g++ " __VERSION__;
#endif
  return facts;
}

template <class F, class... Leading>
void define_step(py::module_& m, const char* name, const F& f, const char* doc,
                 const Leading&... leading) {
  m.def(name, f, doc, leading..., "seed"_a, "offset"_a = 0, "step"_a = 0, py::kw_only(),
        "threshold"_a = 1.0, "step_size"_a = 1.0, "noise_scale"_a = 1.0, "clamp"_a = py::none(),
        "script"_a = false, "first"_a = 0, "total"_a = py::none());
}

}  // namespace

PYBIND11_MODULE(_host, m) {
  m.doc() = "Noise and steps on NumPy arrays; see _host.pyi.";
  m.def("philox", &philox_words, "Philox4x32-10 of each counter.", "counter"_a, "key"_a);
  m.def("normal", &normal, "The normals of a state's elements [first, first + n).", "n"_a, "seed"_a,
        "offset"_a = 0, "step"_a = 0, py::kw_only(), "stream"_a = 0, "first"_a = 0,
        "total"_a = py::none(), "dtype"_a = "float32");
  m.def("round_stochastically", &round, "To bfloat16, by the lower half of a word each.", "x"_a,
        "words"_a);
  m.def("stepsize", &stepsizes, "Eq. 4.", "grad"_a, py::kw_only(), "threshold"_a,
        "step_size"_a = 1.0);
  define_step(m, "step", &step, "Eq. 5 with gamma, or with Eq. 4's.", "z"_a, "grad"_a, "gamma"_a);
  define_step(m, "step_backward", &step_backward,
              "Gradients of step: in z, grad and a given gamma.", "grad_out"_a, "z"_a, "grad"_a,
              "gamma"_a);
  m.def("build_facts", &build_facts, "Compilers and what they compiled for.");
}

}  // namespace stanley::host
