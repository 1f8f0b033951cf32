// Batch norm by the images' own statistics, then a 2x2 max-pool (`pool`), then ReLU (`relu`), with two derivatives. Batch
// norm multiplies all positions of a channel by one factor, so a window's largest value is known before the norm: the
// smallest one if the factor is negative. Notation: x' is the normalised x, r the inverse deviation, slope the factor
// weight * r, and u the gradient for the norm: g where the pool kept x and ReLU lets it pass, and zero elsewhere.

struct NormGeometry {
  int64_t images, rows, columns, channels, pool, relu;
  int64_t positions() const { return images * rows * columns; }
};

// What is known of each channel. ReLU lets through what is above `lowest`.
struct Channels {
  const T *mean, *r;
  int64_t count;
  T lowest;
  std::vector<T> slopes, shifts, signs;
  const T *slope, *shift, *sign;
  Channels(const T* mean, const T* r, const T* weight, const T* bias, const NormGeometry& g)
      : mean(mean), r(r), count(g.channels), lowest(g.relu ? T(0) : -std::numeric_limits<T>::infinity()),
        slopes(count), shifts(count), signs(count), slope(slopes.data()), shift(shifts.data()), sign(signs.data()) {
    EACH_CHANNEL(count) {
      slopes[c] = weight[c] * r[c], shifts[c] = bias[c] - mean[c] * slopes[c], signs[c] = weight[c] < 0 ? T(-1) : T(1);
    }
  }
};

// Sums of each channel over many positions: parts of 64 terms are added up in double precision.
struct Sums {
  std::vector<double> totals;
  std::vector<T> parts;
  T* part;
  int terms = 0;
  Sums(int64_t channels) : totals(channels), parts(channels), part(parts.data()) {}
  void added() {
    if (++terms == 64) flush();
  }
  void flush() {
    for (size_t c = 0; c < parts.size(); c++) totals[c] += parts[c], parts[c] = 0;
    terms = 0;
  }
  T total(int64_t c) { return totals[c] + parts[c]; }
};

// One of a window's N places: which one the pool keeps, its value, and whether ReLU lets it pass.
template <int N> struct Kept {
  T place, value;
  bool passes;
  inline Kept(const Channels& n, const T* const* x, int64_t c) : place(0), value(x[0][c]) {
    T best = n.sign[c] * value;
    for (int k = 1; k < N; k++) {
      T other = n.sign[c] * x[k][c];
      bool more = other > best;
      best = more ? other : best, place = more ? T(k) : place, value = more ? x[k][c] : value;
    }
    passes = normed(n, c) > n.lowest;
  }
  inline T normed(const Channels& n, int64_t c) const { return n.slope[c] * value + n.shift[c]; }
  inline bool is(int k) const { return N == 1 || place == k; }
};

// Call at(places of a window in x, its place in y) for each window, and rest(place in x) for what is in none.
template <int N, typename At, typename Rest> static inline void windows(const NormGeometry& g, At at, Rest rest) {
  int64_t C = g.channels, row = g.columns * C, out = 0, side = N == 1 ? 1 : 2;
  for (int64_t n = 0; n < g.images; n++)
    for (int64_t i = 0; i < g.rows; i += side)
      for (int64_t j = 0; j < g.columns; j += side) {
        int64_t first = ((n * g.rows + i) * g.columns + j) * C, place[N];
        bool low = i + side <= g.rows, right = j + side <= g.columns;
        if (low && right) {
          for (int k = 0; k < N; k++) place[k] = first + k / 2 * row + k % 2 * C;
          at(place, out), out += C;
          continue;
        }
        rest(first);
        if (low) rest(first + row);
        if (right) rest(first + C);
      }
}

static void statistics(const T* x, int64_t n, int64_t C, double eps, T* mean, T* r) {
  Sums sum(C), squares(C);
  for (const T* row = x; row < x + n * C; row += C) {
    EACH_CHANNEL(C) sum.part[c] += row[c];
    sum.added();
  }
  EACH_CHANNEL(C) mean[c] = sum.total(c) / n;
  for (const T* row = x; row < x + n * C; row += C) {
    EACH_CHANNEL(C) squares.part[c] += (row[c] - mean[c]) * (row[c] - mean[c]);
    squares.added();
  }
  for (int64_t c = 0; c < C; c++) r[c] = 1 / std::sqrt(squares.total(c) / n + eps);
}

template <int N>
static void forward(const T* x, const T* weight, const T* bias, T* y, T* mean, T* r, double eps, const NormGeometry& g) {
  statistics(x, g.positions(), g.channels, eps, mean, r);
  Channels n(mean, r, weight, bias, g);
  windows<N>(g, [&](const int64_t* place, int64_t out) {
    const T* w[N];
    for (int k = 0; k < N; k++) w[k] = x + place[k];
    T* to = y + out;
    EACH_CHANNEL(n.count) {
      T normed = Kept<N>(n, w, c).normed(n, c);
      to[c] = normed <= n.lowest ? n.lowest : normed;
    }
  }, [](int64_t) {});
}

// of_x = slope (u - mean(u) - x' mean(u x')), of_weight = sum(u x'), of_bias = sum(u)
template <int N>
static void backward(const T* g, const T* x, const T* weight, const T* bias, const T* mean, const T* r, T* of_x,
                     T* of_weight, T* of_bias, const NormGeometry& geometry) {
  Channels n(mean, r, weight, bias, geometry);
  int64_t C = n.count, count = geometry.positions();
  Sums u_sum(C), ux_sum(C);
  windows<N>(geometry, [&](const int64_t* place, int64_t out) {
    const T *w[N], *from = g + out;
    for (int k = 0; k < N; k++) w[k] = x + place[k];
    EACH_CHANNEL(C) {
      Kept<N> kept(n, w, c);
      T u = kept.passes ? from[c] : T(0);
      u_sum.part[c] += u, ux_sum.part[c] += u * (kept.value - mean[c]) * r[c];
    }
    u_sum.added(), ux_sum.added();
  }, [](int64_t) {});
  std::vector<T> factors(C), constants(C);
  T *factor = factors.data(), *constant = constants.data();
  for (int64_t c = 0; c < C; c++) {
    of_bias[c] = u_sum.total(c), of_weight[c] = ux_sum.total(c);
    factor[c] = -n.slope[c] * r[c] * of_weight[c] / count;
    constant[c] = -n.slope[c] * of_bias[c] / count - mean[c] * factor[c];
  }
  windows<N>(geometry, [&](const int64_t* place, int64_t out) {
    const T *w[N], *from = g + out;
    for (int k = 0; k < N; k++) w[k] = x + place[k];
    EACH_CHANNEL(C) {
      Kept<N> kept(n, w, c);
      T u = kept.passes ? n.slope[c] * from[c] : T(0);
      for (int k = 0; k < N; k++) of_x[place[k] + c] = factor[c] * w[k][c] + constant[c] + (kept.is(k) ? u : T(0));
    }
  }, [&](int64_t place) { EACH_CHANNEL(C) of_x[place + c] = factor[c] * x[place + c] + constant[c]; });
}

// The gradient of <v, of_x> + <a, of_weight> + <b, of_bias> with respect to g, x and weight, with dx' = r (dx - mean(dx)
// - x' mean(x' dx)) and dr = -r^2 mean(x' dx). gx_sum, g_sum: of_weight and of_bias.
template <int N>
static void second(const T* v, const T* a, const T* b, const T* g, const T* x, const T* weight, const T* bias,
                   const T* mean, const T* r, const T* gx_sum, const T* g_sum, T* of_g, T* of_x, T* of_weight,
                   const NormGeometry& geometry) {
  Channels n(mean, r, weight, bias, geometry);
  int64_t C = n.count, count = geometry.positions();
  Sums v_sum(C), vx_sum(C), vu_sum(C);
  auto add = [&](int64_t place) {
    EACH_CHANNEL(C) {
      T entry = v[place + c];
      v_sum.part[c] += entry, vx_sum.part[c] += entry * (x[place + c] - mean[c]) * r[c];
    }
    v_sum.added(), vx_sum.added();
  };
  windows<N>(geometry, [&](const int64_t* place, int64_t out) {
    const T *w[N], *from = g + out;
    for (int k = 0; k < N; k++) w[k] = x + place[k], add(place[k]);
    EACH_CHANNEL(C) {
      Kept<N> kept(n, w, c);
      T at_kept = v[place[0] + c];
      for (int k = 1; k < N; k++) at_kept = kept.is(k) ? v[place[k] + c] : at_kept;
      vu_sum.part[c] += kept.passes ? at_kept * from[c] : T(0);
    }
    vu_sum.added();
  }, add);
  // of_g = slope v + x_slope x + constant where it passes, and of_x = v_factor v + x_factor x + u_factor u + rest.
  std::vector<T> parts(6 * C);
  T *x_slope = &parts[0], *constant = x_slope + C, *v_factor = constant + C, *u_factor = v_factor + C,
    *x_factor = u_factor + C, *rest = x_factor + C;
  for (int64_t c = 0; c < C; c++) {
    T v_mean = v_sum.total(c) / count, vx_mean = vx_sum.total(c) / count;
    T g_mean = g_sum[c] / count, gx_mean = gx_sum[c] / count, covariance = vu_sum.total(c) / count - v_mean * g_mean;
    T curve = n.slope[c] * r[c], direct = a[c] * r[c];
    x_slope[c] = (a[c] - n.slope[c] * vx_mean) * r[c];
    constant[c] = b[c] - n.slope[c] * v_mean - x_slope[c] * mean[c];
    v_factor[c] = -curve * gx_mean, u_factor[c] = direct - curve * vx_mean;
    x_factor[c] = (curve * (3 * vx_mean * gx_mean - covariance) - direct * gx_mean) * r[c];
    rest[c] = -v_factor[c] * v_mean - u_factor[c] * g_mean - x_factor[c] * mean[c];
    of_weight[c] = count * r[c] * (covariance - vx_mean * gx_mean);
  }
  windows<N>(geometry, [&](const int64_t* place, int64_t out) {
    const T *w[N], *from = g + out;
    for (int k = 0; k < N; k++) w[k] = x + place[k];
    T* to = of_g + out;
    EACH_CHANNEL(C) {
      Kept<N> kept(n, w, c);
      T u = kept.passes ? u_factor[c] * from[c] : T(0), at_kept = v[place[0] + c];
      for (int k = 0; k < N; k++) {
        T entry = v[place[k] + c];
        at_kept = kept.is(k) ? entry : at_kept;
        of_x[place[k] + c] = v_factor[c] * entry + x_factor[c] * w[k][c] + rest[c] + (kept.is(k) ? u : T(0));
      }
      to[c] = kept.passes ? n.slope[c] * at_kept + x_slope[c] * kept.value + constant[c] : T(0);
    }
  }, [&](int64_t place) {
    EACH_CHANNEL(C) of_x[place + c] = v_factor[c] * v[place + c] + x_factor[c] * x[place + c] + rest[c];
  });
}

extern "C" void norm(const T* x, const T* weight, const T* bias, T* y, T* mean, T* r, double eps, const NormGeometry* g) {
  (g->pool ? forward<4> : forward<1>)(x, weight, bias, y, mean, r, eps, *g);
}

extern "C" void norm_backward(const T* g, const T* x, const T* weight, const T* bias, const T* mean, const T* r, T* of_x,
                              T* of_weight, T* of_bias, const NormGeometry* geometry) {
  (geometry->pool ? backward<4> : backward<1>)(g, x, weight, bias, mean, r, of_x, of_weight, of_bias, *geometry);
}

extern "C" void norm_second(const T* v, const T* a, const T* b, const T* g, const T* x, const T* weight, const T* bias,
                            const T* mean, const T* r, const T* gx_sum, const T* g_sum, T* of_g, T* of_x, T* of_weight,
                            const NormGeometry* geometry) {
  (geometry->pool ? second<4> : second<1>)(v, a, b, g, x, weight, bias, mean, r, gx_sum, g_sum, of_g, of_x, of_weight,
                                           *geometry);
}

}  // namespace kernels
