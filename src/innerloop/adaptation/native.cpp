// What the translated loops of native.py call. T is float or double.
#include <cmath>
#include <cstring>
namespace {
constexpr int L = 32 / sizeof(T);
typedef T V __attribute__((vector_size(32), aligned(sizeof(T))));
#define UNROLL _Pragma("GCC unroll 16")

static inline T relu(T x) { return x <= 0 ? T(0) : x; }
static inline T clamp(T x, T low, T high) { return x < low ? low : x > high ? high : x; }
static inline T larger(T x, T y) { return y > x || y != y ? y : x; }
static inline T power(T x, T n) { return n == 2 ? x * x : std::pow(x, n); }

// R rows and Q vectors of columns of C = A B, where B and C have rows of N. They are summed in registers.
template <int R, int Q, int K, int N, int a0, int a1>
static inline __attribute__((always_inline)) void block(const T* A, const T* B, T* C) {
  V sum[R][Q] = {};
  for (int k = 0; k < K; k++)
    UNROLL for (int q = 0; q < Q; q++) {
      V b = *(const V*)(B + k * N + q * L);
      UNROLL for (int r = 0; r < R; r++) sum[r][q] += A[r * a0 + k * a1] * b;
    }
  UNROLL for (int r = 0; r < R; r++)
    UNROLL for (int q = 0; q < Q; q++) *(V*)(C + r * N + q * L) = sum[r][q];
}

// C = A B, (M, K) times (K, N), with strides a0, a1 and b0, b1. C is contiguous.
template <int M, int K, int N, int a0, int a1, int b0, int b1>
static __attribute__((noinline)) void mm(const T* __restrict A, const T* __restrict B, T* __restrict C, T* copy) {
  if (N > 1 && (b1 != 1 || b0 != N)) {
    for (int k = 0; k < K; k++)
      for (int j = 0; j < N; j++) copy[k * N + j] = B[k * b0 + j * b1];
    B = copy;
  }
  constexpr int stride = N > 1 ? N : b0, vectors = N / L, wide = vectors / 5, rest = vectors % 5;
  constexpr int R = M % 5 == 0 ? 5 : M % 4 == 0 ? 4 : M % 2 == 0 ? 2 : 1;
  for (int i = 0; i < M; i += R) {
    for (int w = 0; w < wide; w++) block<R, 5, K, N, a0, a1>(A + i * a0, B + w * 5 * L, C + i * N + w * 5 * L);
    if constexpr (rest > 0) block<R, rest, K, N, a0, a1>(A + i * a0, B + wide * 5 * L, C + i * N + wide * 5 * L);
    for (int r = i; r < i + R; r++)
      for (int j = vectors * L; j < N; j++) {
        T sum = 0;
        for (int k = 0; k < K; k++) sum += A[r * a0 + k * a1] * B[k * stride + j];
        C[r * N + j] = sum;
      }
  }
}
}  // namespace
