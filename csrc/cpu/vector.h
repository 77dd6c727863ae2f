// Vectors of the level that a file is compiled for, in its namespace STANLEY_LEVEL.
#pragma once

#include <cstdint>

namespace stanley::cpu {
namespace STANLEY_LEVEL {
namespace {

#if defined(__AVX512F__)
constexpr int kBytes = 64;  // of a vector
#elif defined(__AVX2__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif

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

}  // namespace
}  // namespace STANLEY_LEVEL
}  // namespace stanley::cpu
