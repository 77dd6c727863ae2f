// _direct: a small step of CPU tensors from Python to the kernel, without torch's dispatcher.
//
// Tensors are read by DLPack's C exchange protocol, which torch offers from 2.10 on; the kernel is
// the library's. Whatever is not the plain case, or not in order, is left to the operation.
#define PY_SSIZE_T_CLEAN
#include "direct.h"

#include <ATen/dlpack.h>  // DLPack's own header, in torch's copy: C, and nothing of torch
#include <Python.h>

#include <initializer_list>
#include <limits>

namespace stanley::direct {
namespace {

// From `connect`; references are kept for good.
struct {
  DirectStepFunction* step;
  const DLPackExchangeAPI* dlpack;
  PyTypeObject* tensor;
  PyObject *empty_like, *increment_version, *is_grad_enabled;
  PyObject *active_keys, *no_keys, *has_function_mode, *is_profiling, *forward_ad;
  PyObject *is_inference, *is_neg, *current_level, *requires_grad;
} given;

// True where a call answered no. An error is an answer too: that the operation is to say it.
bool is_no(PyObject* answer) {
  const bool no = answer == Py_False;
  if (!answer) PyErr_Clear();
  Py_XDECREF(answer);
  return no;
}

// Whether the dispatcher would have nothing to do but to find the kernel. Modes (fake tensors,
// make_fx), torch.func's transforms, torch.jit.trace, functionalization and inference mode all show
// in the keys that it adds to each call in this thread. In a profile the operation has to show.
bool is_quiet() {
  PyObject* keys = PyObject_CallNoArgs(given.active_keys);
  const bool none = keys && PyObject_RichCompareBool(keys, given.no_keys, Py_EQ) == 1;
  Py_XDECREF(keys);
  PyObject* level = none ? PyObject_GetAttr(given.forward_ad, given.current_level) : nullptr;
  const bool outside = level && PyLong_CheckExact(level) && PyLong_AsLong(level) < 0;
  Py_XDECREF(level);
  if (!outside) PyErr_Clear();
  return outside && is_no(PyObject_CallNoArgs(given.has_function_mode)) &&
         is_no(PyObject_CallNoArgs(given.is_profiling));
}

// Tensors -----------------------------------------------------------------------------------------

bool is_row_major(const DLTensor& t) {
  int64_t stride = 1;
  for (int32_t i = t.ndim - 1; i >= 0; --i) {
    if (t.shape[i] == 0) return true;
    if (t.shape[i] != 1 && t.strides[i] != stride) return false;
    stride *= t.shape[i];
  }
  return true;
}

struct Memory {
  DLTensor t;
  int64_t n;
  char* data;

  // Of a contiguous CPU tensor, not a subclass, whose memory holds its very values.
  bool read(PyObject* object) {
    if (Py_TYPE(object) != given.tensor) return false;
    if (given.dlpack->dltensor_from_py_object_no_sync(object, &t) != 0) {
      PyErr_Clear();
      return false;
    }
    if (t.device.device_type != kDLCPU || t.dtype.lanes != 1 || !is_row_major(t)) return false;
    n = 1;
    for (int32_t i = 0; i < t.ndim; ++i) n *= t.shape[i];
    data = static_cast<char*>(t.data) + t.byte_offset;
    if (!t.data && n > 0) return false;
    return is_no(PyObject_CallOneArg(given.is_neg, object));
  }

  bool is(DLDataTypeCode code, int bits) const {
    return t.dtype.code == code && t.dtype.bits == bits;
  }

  bool has_type_of(const Memory& other) const {
    return t.dtype.code == other.t.dtype.code && t.dtype.bits == other.t.dtype.bits;
  }

  bool has_shape_of(const Memory& other) const {
    if (t.ndim != other.t.ndim) return false;
    for (int32_t i = 0; i < t.ndim; ++i)
      if (t.shape[i] != other.t.shape[i]) return false;
    return true;
  }

  const char* end() const { return data + n * (t.dtype.bits / 8); }

  bool is_apart_from(const Memory& other) const {
    return end() <= other.data || other.end() <= data;
  }
};

bool read_format(const Memory& z, Format& format) {
  if (z.is(kDLFloat, 32)) return format = Format::kFloat32, true;
  if (z.is(kDLFloat, 64)) return format = Format::kFloat64, true;
  if (z.is(kDLFloat, 16)) return format = Format::kFloat16, true;
  if (z.is(kDLBfloat, 16)) return format = Format::kBFloat16, true;
  return false;
}

// Numbers -----------------------------------------------------------------------------------------
//
// Python's own alone: others may be tensors, symbols, or convert with a warning.

bool read(PyObject* object, int64_t& value) {
  if (!PyLong_CheckExact(object)) return false;
  int overflow;
  value = PyLong_AsLongLongAndOverflow(object, &overflow);
  return overflow == 0;
}

bool read(PyObject* object, double& value) {
  if (PyFloat_CheckExact(object)) {
    value = PyFloat_AS_DOUBLE(object);
    return true;
  }
  int64_t integer;
  if (!read(object, integer)) return false;
  value = static_cast<double>(integer);
  return true;
}

template <class T>
bool read(PyObject* object, std::optional<T>& value) {
  value.reset();
  return object == Py_None || read(object, value.emplace());
}

bool read_clamp(PyObject* clamp, double& lo, double& hi) {
  lo = -std::numeric_limits<double>::infinity();
  hi = std::numeric_limits<double>::infinity();
  if (clamp == Py_None) return true;
  return PyTuple_CheckExact(clamp) && PyTuple_GET_SIZE(clamp) == 2 &&
         read(PyTuple_GET_ITEM(clamp, 0), lo) && read(PyTuple_GET_ITEM(clamp, 1), hi);
}

// Whether it is the second of two words; false if it is neither.
bool read_choice(PyObject* word, const char* first, const char* second, bool& is_second) {
  if (!PyUnicode_CheckExact(word)) return false;
  is_second = PyUnicode_CompareWithASCIIString(word, second) == 0;
  return is_second || PyUnicode_CompareWithASCIIString(word, first) == 0;
}

// The step ----------------------------------------------------------------------------------------

enum Argument {
  kZ,
  kGrad,
  kGamma,
  kKey,
  kStep,
  kThreshold,
  kStepSize,
  kNoiseScale,
  kClamp,
  kUpdate,
  kRounding,
  kFirst,
  kTotal,
  kInPlace,
  kArguments
};

// gamma, or what Eq. 4 makes it from.
bool read_stepsize(PyObject* const* args, const Memory& z, bool in_place, DirectStep& s) {
  PyObject* gamma = args[kGamma];
  if (gamma == Py_None)
    return read(args[kThreshold], s.threshold) && read(args[kStepSize], s.step_size);
  if (Py_TYPE(gamma) != given.tensor) return read(gamma, s.gamma_number);
  Memory memory;
  if (!memory.read(gamma) || !memory.is(kDLFloat, s.format == Format::kFloat64 ? 64 : 32))
    return false;
  const bool is_one = memory.n == 1 && memory.t.ndim <= z.t.ndim;
  if (!is_one && !memory.has_shape_of(z)) return false;
  if (in_place && !memory.is_apart_from(z)) return false;
  s.gamma = memory.data;
  s.gammas = memory.n;
  return true;
}

// The key is read when the step is made.
bool read_key(PyObject* object, DirectStep& s) {
  Memory key;
  if (!key.read(object) || !key.is(kDLInt, 64) || key.t.ndim != 1 || key.n != 2) return false;
  s.key = reinterpret_cast<const int64_t*>(key.data);
  return true;
}

bool wants_gradient(PyObject* const* args) {
  if (is_no(PyObject_CallNoArgs(given.is_grad_enabled))) return false;
  for (const Argument i : {kZ, kGrad, kGamma})
    if (Py_TYPE(args[i]) == given.tensor && !is_no(PyObject_GetAttr(args[i], given.requires_grad)))
      return true;
  return false;
}

// All but `out`.
bool read_step(PyObject* const* args, Memory& z, DirectStep& s) {
  const bool in_place = args[kInPlace] == Py_True;
  Memory grad;
  if (!z.read(args[kZ]) || z.n > kGrain || !read_format(z, s.format) || !is_quiet()) return false;
  if (!grad.read(args[kGrad]) || !grad.has_type_of(z) || !grad.has_shape_of(z)) return false;
  if (in_place && grad.data != z.data && !grad.is_apart_from(z)) return false;
  s.n = z.n;
  s.z = z.data;
  s.grad = grad.data;
  return read_stepsize(args, z, in_place, s) && read_key(args[kKey], s) &&
         read(args[kStep], s.step) && read(args[kNoiseScale], s.noise_scale) &&
         read_clamp(args[kClamp], s.lo, s.hi) &&
         read_choice(args[kUpdate], "paper", "script", s.script) &&
         read_choice(args[kRounding], "nearest", "stochastic", s.stochastic) &&
         read(args[kFirst], s.first) && read(args[kTotal], s.total) && !wants_gradient(args);
}

// A new reference to the tensor that is to be written: z, its version counter moved on, or one like
// z. Null where that can't be.
PyObject* target(PyObject* z, bool in_place) {
  if (!in_place) return PyObject_CallOneArg(given.empty_like, z);
  if (!is_no(PyObject_CallOneArg(given.is_inference, z))) return nullptr;
  PyObject* done = PyObject_CallOneArg(given.increment_version, z);
  if (!done) return nullptr;
  Py_DECREF(done);
  return Py_NewRef(z);
}

PyObject* step(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (count != kArguments || !given.step) {
    PyErr_SetString(PyExc_RuntimeError, "_direct.step: not connected, or not its arguments");
    return nullptr;
  }
  Memory z, out;
  DirectStep s = {};
  if (!read_step(args, z, s) || !given.step(s)) Py_RETURN_NONE;
  PyObject* result = target(args[kZ], args[kInPlace] == Py_True);
  if (result && out.read(result) && out.has_type_of(z) && out.has_shape_of(z)) {
    s.out = out.data;
    if (given.step(s)) return result;
  }
  PyErr_Clear();
  Py_XDECREF(result);
  Py_RETURN_NONE;
}

PyObject* connect(PyObject*, PyObject* args) {
  PyObject *address, *tensor, *exchange;
  auto to = given;
  if (!PyArg_ParseTuple(args, "OO!OOOOOOOOO", &address, &PyType_Type, &tensor, &exchange,
                        &to.empty_like, &to.increment_version, &to.is_grad_enabled, &to.active_keys,
                        &to.no_keys, &to.has_function_mode, &to.is_profiling, &to.forward_ad))
    return nullptr;
  to.step = reinterpret_cast<DirectStepFunction*>(PyLong_AsVoidPtr(address));
  to.dlpack =
      static_cast<DLPackExchangeAPI*>(PyCapsule_GetPointer(exchange, "dlpack_exchange_api"));
  to.tensor = reinterpret_cast<PyTypeObject*>(tensor);
  to.is_inference = PyObject_GetAttrString(tensor, "is_inference");
  to.is_neg = PyObject_GetAttrString(tensor, "is_neg");
  to.current_level = PyUnicode_InternFromString("_current_level");
  to.requires_grad = PyUnicode_InternFromString("requires_grad");
  if (PyErr_Occurred()) return nullptr;
  if (to.dlpack->header.version.major != DLPACK_MAJOR_VERSION) Py_RETURN_FALSE;
  Py_INCREF(args);  // and with it what it holds
  given = to;
  Py_RETURN_TRUE;
}

PyMethodDef kMethods[] = {
    {"connect", connect, METH_VARARGS, "Hands over the library's function and torch's."},
    {"step", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(step)), METH_FASTCALL,
     "The new state, or None where the operation is to be asked."},
    {},
};

PyModuleDef kModule = {PyModuleDef_HEAD_INIT, "_direct", "See _direct.pyi.", -1, kMethods};

}  // namespace
}  // namespace stanley::direct

PyMODINIT_FUNC PyInit__direct() { return PyModule_Create(&stanley::direct::kModule); }
