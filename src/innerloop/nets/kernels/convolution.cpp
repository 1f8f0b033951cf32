// Convolutions of images with channels last, (images, rows, columns, channels), for one thread. They are products of
// matrices whose rows are read where they are, by pointers: no patches are copied ("indirect convolution", Dukhan,
// 2019, arXiv:1907.02129). T is float or double. Results are sums in another order than torch's.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

namespace kernels {

#ifdef __AVX512F__
constexpr int BYTES = 64;
#else
constexpr int BYTES = 32;
#endif
constexpr int L = BYTES / sizeof(T);
constexpr int R = 6, WIDE = 2 * L;  // a tile of a result, R rows of two vectors, stays in registers
constexpr int CHUNK = 192;          // positions that a weight's derivative sums at once, so that they stay in the cache
constexpr int64_t FEW = 8;          // channels below which a tap is too short for a pointer of its own
typedef T V __attribute__((vector_size(BYTES), aligned(sizeof(T))));
#define UNROLL _Pragma("GCC unroll 16")
#define EACH_CHANNEL(C) _Pragma("GCC ivdep") for (int64_t c = 0; c < (C); c++)

struct Geometry {
  int64_t images, rows, columns, channels, out_rows, out_columns, out_channels, height, width, stride, padding;
  int64_t of_out, of_in, of_row, of_column;  // strides of the weight, (out_channels, channels, height, width)
  int64_t in() const { return rows * columns * channels; }
  int64_t out() const { return out_rows * out_columns * out_channels; }
};

// Memory that a thread keeps for its next call.
static T* scratch(int which, size_t size) {
  static thread_local std::vector<T> kept[4];
  if (kept[which].size() < size) kept[which].resize(size);
  return kept[which].data();
}

// For each row of one image's result: its place `into` and, for each tap, the place of the row that is read, or -1
// outside of the image.
struct Plan {
  std::vector<int> taps;
  std::vector<int64_t> into, from;
  int64_t count() const { return into.size(); }
};

static Plan plan_of_output(const Geometry& g) {
  Plan plan;
  for (int t = 0; t < g.height * g.width; t++) plan.taps.push_back(t);
  for (int64_t i = 0; i < g.out_rows; i++)
    for (int64_t j = 0; j < g.out_columns; j++) {
      plan.into.push_back((i * g.out_columns + j) * g.out_channels);
      for (int t : plan.taps) {
        int64_t a = i * g.stride + t / g.width - g.padding, b = j * g.stride + t % g.width - g.padding;
        bool inside = a >= 0 && a < g.rows && b >= 0 && b < g.columns;
        plan.from.push_back(inside ? (a * g.columns + b) * g.channels : -1);
      }
    }
  return plan;
}

// The transpose: the rows of the input whose place modulo the stride is (row, column), which meet the same taps.
static Plan plan_of_input(const Geometry& g, int64_t row, int64_t column) {
  Plan plan;
  for (int t = 0; t < g.height * g.width; t++)
    if ((row + g.padding - t / g.width) % g.stride == 0 && (column + g.padding - t % g.width) % g.stride == 0)
      plan.taps.push_back(t);
  for (int64_t a = row; a < g.rows; a += g.stride)
    for (int64_t b = column; b < g.columns; b += g.stride) {
      plan.into.push_back((a * g.columns + b) * g.channels);
      for (int t : plan.taps) {
        int64_t i = a + g.padding - t / g.width, j = b + g.padding - t % g.width;
        bool inside = i >= 0 && i / g.stride < g.out_rows && j >= 0 && j / g.stride < g.out_columns;
        plan.from.push_back(inside ? (i / g.stride * g.out_columns + j / g.stride) * g.out_channels : -1);
      }
    }
  return plan;
}

// The weight as panels of WIDE columns, (panel, tap, inner, WIDE), with zeros beyond the last column.
static const T* panels(const T* weight, const Geometry& g, int64_t inner, int64_t of_inner, int64_t columns,
                       int64_t of_column) {
  int64_t taps = g.height * g.width, size = inner * WIDE, count = (columns + WIDE - 1) / WIDE;
  T* packed = scratch(0, count * taps * size);
  for (int64_t p = 0; p < count; p++) {
    int64_t wide = std::min<int64_t>(WIDE, columns - p * WIDE);
    for (int64_t t = 0; t < taps; t++) {
      const T* from = weight + t / g.width * g.of_row + t % g.width * g.of_column + p * WIDE * of_column;
      T* to = packed + (p * taps + t) * size;
      if (wide < WIDE) std::fill(to, to + size, T(0));
      for (int64_t i = 0; i < inner; i++)
        for (int64_t c = 0; c < wide; c++) to[i * WIDE + c] = from[i * of_inner + c * of_column];
    }
  }
  return packed;
}

static inline void store(T* to, const V* sum, int64_t wide, bool add) {
  if (wide == WIDE) {
    for (int q = 0; q < 2; q++) *(V*)(to + q * L) = add ? *(V*)(to + q * L) + sum[q] : sum[q];
    return;
  }
  for (int64_t c = 0; c < wide; c++) to[c] = add ? to[c] + sum[c / L][c % L] : sum[c / L][c % L];
}

// out = the rows of `in` that the plan names, times the panels, which have `taps` taps of `inner` rows.
static void product(const Plan& plan, int64_t taps, const T* in, int64_t in_image, const T* packed, int64_t inner, T* out,
                    int64_t out_image, int64_t columns, int64_t images) {
  int64_t used = plan.taps.size(), total = images * plan.count(), place = 0;
  std::vector<T> zeros(inner);
  std::vector<const T*> rows(used * R, zeros.data());
  T* into[R] = {};
  for (int64_t first = 0; first < total; first += R) {
    int64_t valid = std::min<int64_t>(R, total - first);
    for (int64_t r = 0; r < valid; r++) {
      into[r] = out + plan.into[place];
      for (int64_t t = 0; t < used; t++) {
        int64_t from = plan.from[place * used + t];
        rows[t * R + r] = from < 0 ? zeros.data() : in + from;
      }
      if (++place == plan.count()) place = 0, in += in_image, out += out_image;
    }
    for (int64_t p = 0; p * WIDE < columns; p++) {
      V sum[R][2] = {};
      for (int64_t t = 0; t < used; t++) {
        const T *b = packed + (p * taps + plan.taps[t]) * inner * WIDE, **a = &rows[t * R];
        const T *a0 = a[0], *a1 = a[1], *a2 = a[2], *a3 = a[3], *a4 = a[4], *a5 = a[5];
        for (int64_t k = 0; k < inner; k++, b += WIDE) {
          V left = *(const V*)b, right = *(const V*)(b + L);
          sum[0][0] += a0[k] * left, sum[0][1] += a0[k] * right;
          sum[1][0] += a1[k] * left, sum[1][1] += a1[k] * right;
          sum[2][0] += a2[k] * left, sum[2][1] += a2[k] * right;
          sum[3][0] += a3[k] * left, sum[3][1] += a3[k] * right;
          sum[4][0] += a4[k] * left, sum[4][1] += a4[k] * right;
          sum[5][0] += a5[k] * left, sum[5][1] += a5[k] * right;
        }
      }
      for (int64_t r = 0; r < valid; r++)
        store(into[r] + p * WIDE, sum[r], std::min<int64_t>(WIDE, columns - p * WIDE), false);
    }
  }
}

// M channels of (channel, column) += the sum over positions of a row of `in` times a row of the panel.
template <int M>
static void outer_products(const T* const* rows, const int* which, int64_t count, int64_t channel, const T* panel, T* to,
                           int64_t width) {
  V sum[M][2] = {};
  for (int64_t e = 0; e < count; e++) {
    const T *a = rows[e] + channel, *b = panel + which[e] * WIDE;
    V left = *(const V*)b, right = *(const V*)(b + L);
    UNROLL for (int m = 0; m < M; m++) sum[m][0] += a[m] * left, sum[m][1] += a[m] * right;
  }
  for (int m = 0; m < M; m++) store(to + m * width, sum[m], WIDE, true);
}

constexpr decltype(&outer_products<1>) OUTER_PRODUCTS[R] = {outer_products<1>, outer_products<2>, outer_products<3>,
                                                            outer_products<4>, outer_products<5>, outer_products<6>};

// The weight's derivative: (tap, channel, column) += the rows of `in` that the plan names, transposed, times `out`.
static void weight_product(const Plan& plan, const T* in, int64_t in_image, int64_t channels, const T* out,
                           int64_t columns, int64_t images, T* to) {
  int64_t taps = plan.taps.size(), total = images * plan.count();
  int64_t count = (columns + WIDE - 1) / WIDE, width = count * WIDE;
  T* packed = scratch(1, count * CHUNK * WIDE);
  const T* rows[CHUNK];
  int which[CHUNK];
  for (int64_t first = 0; first < total; first += CHUNK) {
    int64_t size = std::min<int64_t>(CHUNK, total - first);
    for (int64_t p = 0; p < count; p++) {
      int64_t wide = std::min<int64_t>(WIDE, columns - p * WIDE);
      T* panel = packed + p * CHUNK * WIDE;
      if (wide < WIDE) std::fill(panel, panel + size * WIDE, T(0));
      for (int64_t e = 0; e < size; e++)
        std::memcpy(panel + e * WIDE, out + (first + e) * columns + p * WIDE, sizeof(T) * wide);
    }
    for (int64_t t = 0; t < taps; t++) {
      int64_t found = 0, place = first % plan.count();
      const T* image = in + first / plan.count() * in_image;
      for (int64_t e = 0; e < size; e++) {
        int64_t from = plan.from[place * taps + t];
        if (from >= 0) rows[found] = image + from, which[found++] = e;
        if (++place == plan.count()) place = 0, image += in_image;
      }
      for (int64_t p = 0; p < count; p++)
        for (int64_t c = 0; c < channels; c += R)
          OUTER_PRODUCTS[std::min<int64_t>(R, channels - c) - 1](
              rows, which, found, c, packed + p * CHUNK * WIDE, to + (t * channels + c) * width + p * WIDE, width);
    }
  }
}

// With few channels, the pixels of a window's row are one long tap, read from a copy of the image with its padding.
static Plan plan_of_windows(Geometry g) {
  g.rows += 2 * g.padding, g.columns += 2 * g.padding, g.padding = 0;
  Plan all = plan_of_output(g), plan;
  plan.into = all.into;
  for (int t = 0; t < g.height; t++) plan.taps.push_back(t);
  for (size_t e = 0; e < all.from.size(); e += g.width) plan.from.push_back(all.from[e]);
  return plan;
}

static const T* padded(const T* image, const Geometry& g) {
  if (g.padding == 0) return image;
  int64_t row = g.columns * g.channels, wide = row + 2 * g.padding * g.channels, size = wide * (g.rows + 2 * g.padding);
  T* copy = scratch(2, size);
  std::fill(copy, copy + size, T(0));
  for (int64_t i = 0; i < g.rows; i++)
    std::memcpy(copy + (i + g.padding) * wide + g.padding * g.channels, image + i * row, sizeof(T) * row);
  return copy;
}

extern "C" void convolution(const T* x, const T* weight, T* y, const Geometry* geometry) {
  const Geometry& g = *geometry;
  const T* packed = panels(weight, g, g.channels, g.of_in, g.out_channels, g.of_out);
  if (g.channels >= FEW) {
    Plan plan = plan_of_output(g);
    product(plan, g.height * g.width, x, g.in(), packed, g.channels, y, g.out(), g.out_channels, g.images);
    return;
  }
  Plan plan = plan_of_windows(g);
  int64_t inner = g.width * g.channels;
  for (int64_t n = 0; n < g.images; n++, x += g.in(), y += g.out())
    product(plan, g.height, padded(x, g), 0, packed, inner, y, 0, g.out_channels, 1);
}

// The transpose of the convolution with respect to its input.
extern "C" void convolution_input(const T* y, const T* weight, T* x, const Geometry* geometry) {
  const Geometry& g = *geometry;
  const T* packed = panels(weight, g, g.out_channels, g.of_out, g.channels, g.of_in);
  for (int64_t row = 0; row < g.stride; row++)
    for (int64_t column = 0; column < g.stride; column++) {
      Plan plan = plan_of_input(g, row, column);
      product(plan, g.height * g.width, y, g.out(), packed, g.out_channels, x, g.in(), g.channels, g.images);
    }
}

// The transpose of the convolution with respect to its weight.
extern "C" void convolution_weight(const T* x, const T* y, T* weight, const Geometry* geometry) {
  const Geometry& g = *geometry;
  int64_t taps = g.height * g.width, width = (g.out_channels + WIDE - 1) / WIDE * WIDE;
  T* sum = scratch(3, taps * g.channels * width);
  std::fill(sum, sum + taps * g.channels * width, T(0));
  if (g.channels >= FEW) {
    Plan plan = plan_of_output(g);
    weight_product(plan, x, g.in(), g.channels, y, g.out_channels, g.images, sum);
  } else {
    Plan plan = plan_of_windows(g);
    for (int64_t n = 0; n < g.images; n++, x += g.in(), y += g.out())
      weight_product(plan, padded(x, g), 0, g.width * g.channels, y, g.out_channels, 1, sum);
  }
  for (int64_t o = 0; o < g.out_channels; o++)
    for (int64_t t = 0; t < taps; t++)
      for (int64_t c = 0; c < g.channels; c++) {
        int64_t place = o * g.of_out + c * g.of_in + t / g.width * g.of_row + t % g.width * g.of_column;
        weight[place] = sum[(t * g.channels + c) * width + o];
      }
}
