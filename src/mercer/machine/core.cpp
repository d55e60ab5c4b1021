// Kernel products on CPUs, fused: no entry of the kernel matrix ever leaves the caches.
//
// One call works on a range of rows, on one thread, in its own workspace. Rows are taken in strips of STRIP, columns in
// panels of P; the statistic of a strip and a panel (squared distance, L1 distance or dot product) is formed in
// registers, kernel values in a buffer that fits the first cache, and the buffer is multiplied by the right-hand sides
// at once. A row's result depends on the panels alone, so how the rows are shared among threads does not change a bit.
//
// Compiled once for each instruction set; the vector width follows the compiler's flags. No C++ library is used.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(_WIN32)
#define API extern "C" __declspec(dllexport)
#else
#define API extern "C" __attribute__((visibility("default")))
#endif
#define INLINE inline __attribute__((always_inline))
#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

namespace {

#if defined(__AVX512F__)
constexpr int BYTES = 64, VECTORS = 4;
#elif defined(__AVX2__)
constexpr int BYTES = 32, VECTORS = 2;
#else
constexpr int BYTES = 16, VECTORS = 2;
#endif
constexpr int STRIP = 6;             // rows of a strip: with VECTORS it fills the registers with accumulators
constexpr int FIRST_CACHE = 28 << 10;  // bytes that one panel, one strip and the right-hand sides may take together
constexpr int64_t SECOND_CACHE = 512 << 10;
constexpr int WIDEST = 512, ROWS = 4096;
constexpr int DEPTH = 8, FACTORS = 8, STEPS = 32;

template <class T> struct Types;
template <> struct Types<float> {
  typedef float V __attribute__((vector_size(BYTES)));
  typedef int32_t I __attribute__((vector_size(BYTES)));
};
template <> struct Types<double> {
  typedef double V __attribute__((vector_size(BYTES)));
  typedef int64_t I __attribute__((vector_size(BYTES)));
};
template <class T> using Vec = typename Types<T>::V;
template <class T> using Int = typename Types<T>::I;
template <class T> constexpr int LANES = BYTES / int(sizeof(T));

template <class T> INLINE Vec<T> all(T value) { return value - Vec<T>{}; }
template <class T> INLINE Vec<T> load(const T* p) { return *reinterpret_cast<const Vec<T>*>(p); }
template <class T> INLINE void store(T* p, Vec<T> v) { *reinterpret_cast<Vec<T>*>(p) = v; }
template <class T> INLINE Vec<T> bits(Int<T> v) { return reinterpret_cast<Vec<T>>(v); }
template <class T> INLINE Int<T> bits(Vec<T> v, T) { return reinterpret_cast<Int<T>>(v); }

#if defined(__AVX512F__) || defined(__AVX2__)
#define VECTOR_OPERATIONS(BITS)                                                                                  \
  INLINE Vec<float> root(Vec<float> v) { return (Vec<float>)_mm##BITS##_sqrt_ps((__m##BITS)v); }                  \
  INLINE Vec<double> root(Vec<double> v) { return (Vec<double>)_mm##BITS##_sqrt_pd((__m##BITS##d)v); }            \
  INLINE Vec<float> larger(Vec<float> a, Vec<float> b) {                                                         \
    return (Vec<float>)_mm##BITS##_max_ps((__m##BITS)a, (__m##BITS)b);                                            \
  }                                                                                                              \
  INLINE Vec<double> larger(Vec<double> a, Vec<double> b) {                                                      \
    return (Vec<double>)_mm##BITS##_max_pd((__m##BITS##d)a, (__m##BITS##d)b);                                     \
  }                                                                                                              \
  INLINE Vec<float> smaller(Vec<float> a, Vec<float> b) {                                                        \
    return (Vec<float>)_mm##BITS##_min_ps((__m##BITS)a, (__m##BITS)b);                                            \
  }                                                                                                              \
  INLINE Vec<double> smaller(Vec<double> a, Vec<double> b) {                                                     \
    return (Vec<double>)_mm##BITS##_min_pd((__m##BITS##d)a, (__m##BITS##d)b);                                     \
  }
#endif
#if defined(__AVX512F__)
VECTOR_OPERATIONS(512)
INLINE bool any_above(Vec<float> a, float b) {
  return _mm512_cmp_ps_mask((__m512)a, _mm512_set1_ps(b), _CMP_GT_OQ) != 0;
}
INLINE bool any_above(Vec<double> a, double b) {
  return _mm512_cmp_pd_mask((__m512d)a, _mm512_set1_pd(b), _CMP_GT_OQ) != 0;
}
INLINE float sum(Vec<float> v) { return _mm512_reduce_add_ps((__m512)v); }
INLINE double sum(Vec<double> v) { return _mm512_reduce_add_pd((__m512d)v); }
#elif defined(__AVX2__)
VECTOR_OPERATIONS(256)
INLINE bool any_above(Vec<float> a, float b) {
  return _mm256_movemask_ps(_mm256_cmp_ps((__m256)a, _mm256_set1_ps(b), _CMP_GT_OQ)) != 0;
}
INLINE bool any_above(Vec<double> a, double b) {
  return _mm256_movemask_pd(_mm256_cmp_pd((__m256d)a, _mm256_set1_pd(b), _CMP_GT_OQ)) != 0;
}
INLINE float sum(Vec<float> v) {
  __m128 h = _mm_add_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
  h = _mm_add_ps(h, _mm_movehl_ps(h, h));
  return _mm_cvtss_f32(_mm_add_ss(h, _mm_movehdup_ps(h)));
}
INLINE double sum(Vec<double> v) {
  const __m128d h = _mm_add_pd(_mm256_castpd256_pd128((__m256d)v), _mm256_extractf128_pd((__m256d)v, 1));
  return _mm_cvtsd_f64(_mm_add_sd(h, _mm_unpackhi_pd(h, h)));
}
#else
#if defined(__x86_64__) || defined(_M_X64)
INLINE Vec<float> root(Vec<float> v) { return (Vec<float>)_mm_sqrt_ps((__m128)v); }
INLINE Vec<double> root(Vec<double> v) { return (Vec<double>)_mm_sqrt_pd((__m128d)v); }
#elif defined(__aarch64__)
INLINE Vec<float> root(Vec<float> v) { return (Vec<float>)vsqrtq_f32((float32x4_t)v); }
INLINE Vec<double> root(Vec<double> v) { return (Vec<double>)vsqrtq_f64((float64x2_t)v); }
#else
INLINE Vec<float> root(Vec<float> v) {
  for (int i = 0; i < 4; ++i) v[i] = __builtin_sqrtf(v[i]);
  return v;
}
INLINE Vec<double> root(Vec<double> v) {
  for (int i = 0; i < 2; ++i) v[i] = __builtin_sqrt(v[i]);
  return v;
}
#endif
template <class V> INLINE V larger(V a, V b) { return a > b ? a : b; }
template <class V> INLINE V smaller(V a, V b) { return a < b ? a : b; }
INLINE bool any_above(Vec<float> a, float b) { return (a[0] > b) | (a[1] > b) | (a[2] > b) | (a[3] > b); }
INLINE bool any_above(Vec<double> a, double b) { return (a[0] > b) | (a[1] > b); }
INLINE float sum(Vec<float> v) { return (v[0] + v[1]) + (v[2] + v[3]); }
INLINE double sum(Vec<double> v) { return v[0] + v[1]; }
#endif

template <class T> INLINE Vec<T> magnitude(Vec<T> v) {
  constexpr auto mask = sizeof(T) == 4 ? int64_t(0x7fffffff) : int64_t(0x7fffffffffffffff);
  return bits<T>(bits(v, T()) & (Int<T>{} + decltype(Int<T>{}[0] + 0)(mask)));
}
// ---- elementary functions: polynomials of least relative error on the reduced range, constant terms exact ----

template <class T, int N> INLINE Vec<T> horner(Vec<T> x, const double (&c)[N]) {
  Vec<T> p = all<T>(T(c[N - 1]));
  for (int k = N - 2; k >= 0; --k) p = p * x + T(c[k]);
  return p;
}

constexpr double EXP2_FLOAT[] = {0.693146977598991, 0.240222420853767, 0.05550733743471052, 0.00967151263995788,
                                 0.001326472713984852};
constexpr double EXP2_DOUBLE[] = {0.69314718055994530942,  0.2402265069591009822,   0.055504108664821594339,
                                  0.0096181291076068885273, 0.001333355814641693531, 0.00015403530441736050155,
                                  0.000015252733829836118394, 1.3215442587921689653e-6, 1.0178062445845773521e-7,
                                  7.0725859492692236999e-9, 4.4549605981865183938e-10};
constexpr double ATANH_FLOAT[] = {0.999999999314782428, 0.333334077407551237, 0.199874171285214108,
                                  0.149624164260567958};
constexpr double ATANH_DOUBLE[] = {1.0, 0.333333333333333292, 0.200000000000037554, 0.142857142844070365,
                                   0.111111113388329043, 0.0909088684009059562, 0.076935817138699277,
                                   0.0662435351603384489, 0.0663130579096023163};
constexpr double ASIN_FLOAT[] = {0.166666600007411389, 0.0750050366286103433, 0.0445170431883409113,
                                 0.0318070999457727956, 0.0144405160481713389, 0.0375143093868676386};
constexpr double ASIN_DOUBLE[] = {0.16666666666665409,   0.0750000000033699948, 0.0446428568283393036,
                                  0.0303819591365506048, 0.0223717580597950474, 0.0173597046289141529,
                                  0.0138852367490742206, 0.0121692034174447786, 0.006528010081286896,
                                  0.0195281721034306329, -0.0162241103815808318, 0.0319121748577576775};
constexpr double LOG2_E = 1.44269504088896340736, LN2 = 0.69314718055994530942;

template <class T> struct Layout;
template <> struct Layout<float> {
  static constexpr int MANTISSA = 23;
  static constexpr float MAGIC = 12582912.0f, LEAST_CHORD = 1e-30f, LOWEST = -126.0f, HIGHEST = 127.99999f, HUGE_EXPONENT = 1e30f,
                         LARGEST = 1e35f;
};
template <> struct Layout<double> {
  static constexpr int MANTISSA = 52;
  static constexpr double MAGIC = 6755399441055744.0, LEAST_CHORD = 1e-200, LOWEST = -1022.0, HIGHEST = 1023.9999999999, HUGE_EXPONENT = 1e300, LARGEST = 1e300;
};

// 2^x for finite x; 0 where it underflows, infinity where it overflows
template <class T> INLINE Vec<T> exp2(Vec<T> x) {
#if defined(__AVX512F__)
  Vec<T> n, p;
  if constexpr (sizeof(T) == 4)
    n = (Vec<T>)_mm512_roundscale_ps((__m512)x, 8);
  else
    n = (Vec<T>)_mm512_roundscale_pd((__m512d)x, 8);
  const Vec<T> f = x - n;
  if constexpr (sizeof(T) == 4) {
    p = f * horner<T>(f, EXP2_FLOAT) + T(1);
    return (Vec<T>)_mm512_scalef_ps((__m512)p, (__m512)n);
  } else {
    p = f * horner<T>(f, EXP2_DOUBLE) + T(1);
    return (Vec<T>)_mm512_scalef_pd((__m512d)p, (__m512d)n);
  }
#else
  const Vec<T> low = all<T>(Layout<T>::LOWEST), high = all<T>(Layout<T>::HIGHEST);
  const Vec<T> bounded = smaller(larger(x, low), high);
  const Vec<T> shifted = bounded + Layout<T>::MAGIC;
  const Vec<T> f = bounded - (shifted - Layout<T>::MAGIC);
  Vec<T> p;
  if constexpr (sizeof(T) == 4)
    p = f * horner<T>(f, EXP2_FLOAT) + T(1);
  else
    p = f * horner<T>(f, EXP2_DOUBLE) + T(1);
  const Vec<T> scaled = bits<T>(bits(p, T()) + (bits(shifted, T()) << Layout<T>::MANTISSA));
  return x < low ? Vec<T>{} : x > high ? all<T>(T(__builtin_inf())) : scaled;
#endif
}

// log2(1 + z), z >= 0, accurate also where z is tiny
template <class T> INLINE Vec<T> log2_1p(Vec<T> z) {
  typedef decltype(Int<T>{}[0] + 0) N;
  const Vec<T> u = z + T(1);
  const Vec<T> lost = (z - (u - T(1))) / u;
  const Int<T> raw = bits(u, T());
  const Int<T> power = (raw - N(sizeof(T) == 4 ? int64_t(0x3f3504f3) : int64_t(0x3fe6a09e667f3bcd))) >> Layout<T>::MANTISSA;
  const Vec<T> m = bits<T>(raw - (power << Layout<T>::MANTISSA));
  const Vec<T> t = (m - T(1)) / (m + T(1)), q = t * t;
  Vec<T> p;
  if constexpr (sizeof(T) == 4)
    p = horner<T>(q, ATANH_FLOAT);
  else
    p = horner<T>(q, ATANH_DOUBLE);
  return __builtin_convertvector(power, Vec<T>) + T(LOG2_E) * (T(2) * t * p + lost);
}

// asin(z), 0 <= z <= 1/2
template <class T> INLINE Vec<T> asin(Vec<T> z) {
  const Vec<T> t = z * z;
  if constexpr (sizeof(T) == 4)
    return z + z * t * horner<T>(t, ASIN_FLOAT);
  else
    return z + z * t * horner<T>(t, ASIN_DOUBLE);
}

// ---- profiles: the kernel's value, and its derivative ----
// A distance arrives as h = -gain s, a dot product as h = gain s: the factor spares the profile a multiplication, the
// sign a negation. Slopes are with respect to h. ON: the statistics that the profile may be taken of.

enum Op : int32_t { EXPONENTIAL, MATERN_12, MATERN_32, MATERN_52, POWER, POLYNOMIAL, WENDLAND, ROOT, ARCCOSINE,
                    IDENTITY, CONSTANT, SCALE, ADD, MULTIPLY };
enum Statistic : int32_t { SQUARED, DISTANCE, ABSOLUTE, DOT };  // DISTANCE: squared, for profiles with a kink at zero

constexpr int ON_SQUARED = 1, ON_ABSOLUTE = 2, ON_DOT = 4, ON_ANGLE = 8, ON_ALL = 15;

template <class T> struct Exponential {  // exp(p0 s); p0 < 0 for distances, > 0 for dot products
  static constexpr int ON = ON_ALL;
  explicit Exponential(const double*) {}
  static double gain(const double* p) { return __builtin_fabs(p[0]) * LOG2_E; }
  INLINE Vec<T> value(Vec<T> h) const { return exp2<T>(h); }
  INLINE Vec<T> slope(Vec<T>, Vec<T> k) const { return k * T(LN2); }
};
template <class T, int HALVES> struct Matern {  // of r = sqrt(2 nu s), in units of log2(e) here
  static constexpr int ON = ON_SQUARED;
  explicit Matern(const double*) {}
  static double gain(const double*) { return HALVES * LOG2_E * LOG2_E; }
  INLINE Vec<T> value(Vec<T> h) const {
    const Vec<T> r = root(-h), e = exp2<T>(-r);
    if (HALVES == 1) return e;
    if (HALVES == 3) return (r * T(LN2) + T(1)) * e;
    return (h * T(-LN2 * LN2 / 3) + (r * T(LN2) + T(1))) * e;
  }
  INLINE Vec<T> slope(Vec<T> h, Vec<T>) const {
    const Vec<T> r = root(-h), e = exp2<T>(-r);
    if (HALVES == 1) return h < T(0) ? T(0.5 * LN2) * e / r : Vec<T>{};
    if (HALVES == 3) return T(0.5 * LN2 * LN2) * e;
    return T(LN2 * LN2 / 6) * (r * T(LN2) + T(1)) * e;
  }
};
template <class T> struct Power {  // (1 + p0 s)^p1, p1 < 0; p0 is in h
  static constexpr int ON = ON_SQUARED;
  T exponent;
  explicit Power(const double* p) : exponent(T(p[1])) {}
  static double gain(const double* p) { return p[0]; }
  INLINE Vec<T> value(Vec<T> h) const {
    if (exponent == T(-0.5)) return T(1) / root(T(1) - h);
    if (exponent == T(-1)) return T(1) / (T(1) - h);
    return exp2<T>(exponent * log2_1p<T>(-h));
  }
  INLINE Vec<T> slope(Vec<T> h, Vec<T> k) const { return -exponent * k / (T(1) - h); }
};
template <class T> struct Polynomial {  // (s + p0)^p1, p1 a whole number
  static constexpr int ON = ON_DOT;
  T offset;
  int degree;
  explicit Polynomial(const double* p) : offset(T(p[0])), degree(int(p[1])) {}
  static double gain(const double*) { return 1; }
  static INLINE Vec<T> power(Vec<T> x, int n) {
    Vec<T> found = all<T>(T(1));
    for (; n; n >>= 1, x *= x)
      if (n & 1) found *= x;
    return found;
  }
  INLINE Vec<T> value(Vec<T> s) const { return power(s + offset, degree); }
  INLINE Vec<T> slope(Vec<T> s, Vec<T>) const { return T(degree) * power(s + offset, degree - 1); }
};
template <class T> struct Wendland {  // t^e (p1 + p2 r + p3 r^2), t = (1 - r)_+, e = p0; slope t^(e-1) (p4 + p5 r) [/ r]
  static constexpr int ON = ON_SQUARED;
  int power;
  T a, b, c, m, n;
  bool kink;
  explicit Wendland(const double* p)
      : power(int(p[0])), a(T(p[1])), b(T(p[2])), c(T(p[3])), m(T(p[4])), n(T(p[5])), kink(p[2] == 0) {}
  static double gain(const double*) { return 1; }
  INLINE Vec<T> value(Vec<T> h) const {
    const Vec<T> r = root(-h), t = larger(T(1) - r, Vec<T>{});
    return Polynomial<T>::power(t, power) * ((c * r + b) * r + a);
  }
  INLINE Vec<T> slope(Vec<T> h, Vec<T>) const {
    const Vec<T> r = root(-h), t = larger(T(1) - r, Vec<T>{});
    const Vec<T> found = -Polynomial<T>::power(t, power - 1) * (n * r + m);
    return kink ? (h < T(0) ? found / r : Vec<T>{}) : found;
  }
};
template <class T> struct Root {  // -sqrt(s), the kernel of the energy distance
  static constexpr int ON = ON_SQUARED;
  explicit Root(const double*) {}
  static double gain(const double*) { return 1; }
  INLINE Vec<T> value(Vec<T> h) const { return -root(-h); }
  INLINE Vec<T> slope(Vec<T> h, Vec<T>) const { return h < T(0) ? T(0.5) / root(-h) : Vec<T>{}; }
};
// Of the angle t between unit vectors: 1 - t / pi (p0 = 0) or (sin t + (pi - t) cos t) / pi (p0 = 1). h is the squared
// chord between u and v where they point the same way, minus that between u and -v where they do not, never 0: the
// angle is then as exact near 0 and pi as anywhere. Slopes are with respect to cos t.
template <class T> struct ArcCosine {
  static constexpr int ON = ON_ANGLE;
  static constexpr T INVERSE_PI = T(0.31830988618379067154);
  bool zero;
  explicit ArcCosine(const double* p) : zero(p[0] == 0) {}
  static double gain(const double*) { return 1; }
  INLINE Vec<T> turn(Vec<T> q) const {  // the angle to the nearer of v and -v, in units of pi
    const Vec<T> wide = T(1) - T(0.5) * q, z = q <= T(1) ? T(0.5) * root(q) : wide;
    const Vec<T> half = asin<T>(z) * INVERSE_PI;
    return q <= T(1) ? half + half : T(0.5) - half;
  }
  INLINE Vec<T> value(Vec<T> h) const {
    const Vec<T> q = magnitude<T>(h), t = turn(q);
    if (zero) return h > T(0) ? T(1) - t : t;
    const Vec<T> sine = T(0.5 * INVERSE_PI) * root(q * (T(4) - q)), cosine = T(1) - T(0.5) * q;
    return sine + (h > T(0) ? (T(1) - t) * cosine : -t * cosine);
  }
  INLINE Vec<T> slope(Vec<T> h, Vec<T>) const {
    const Vec<T> q = magnitude<T>(h);
    if (zero) return q > Layout<T>::LEAST_CHORD ? T(2 * INVERSE_PI) / root(q * (T(4) - q)) : Vec<T>{};
    const Vec<T> t = turn(q);
    return h > T(0) ? T(1) - t : t;
  }
};
template <class T> struct Identity {
  static constexpr int ON = ON_DOT;
  explicit Identity(const double*) {}
  static double gain(const double*) { return 1; }
  INLINE Vec<T> value(Vec<T> s) const { return s; }
  INLINE Vec<T> slope(Vec<T>, Vec<T>) const { return all<T>(T(1)); }
};

template <class T, class F> INLINE auto with_profile(int32_t op, const double* p, F&& f) {
  switch (op) {
    case EXPONENTIAL: return f(Exponential<T>(p));
    case MATERN_12: return f(Matern<T, 1>(p));
    case MATERN_32: return f(Matern<T, 3>(p));
    case MATERN_52: return f(Matern<T, 5>(p));
    case POWER: return f(Power<T>(p));
    case POLYNOMIAL: return f(Polynomial<T>(p));
    case WENDLAND: return f(Wendland<T>(p));
    case ROOT: return f(Root<T>(p));
    case ARCCOSINE: return f(ArcCosine<T>(p));
    default: return f(Identity<T>(p));
  }
}

// ---- what Python hands over; all matrices are row-major, strides in entries ----

struct Factor {  // one statistic, of coordinates (x - centre) * scale and (y - centre) * scale
  const void *x, *y;
  int64_t x_stride, y_stride;
  const double *scale, *centre;  // d numbers, or null
  void* dx;                      // n d: gradient with respect to the scaled coordinates of x, or null
  int32_t d, statistic;
};
struct Step {  // one step of the program, in postfix order; profiles consume a factor's statistic
  int32_t op, factor;
  double p[6];
};
struct Job {
  const Factor* factors;
  const Step* steps;
  int32_t factor_count, step_count;
  int64_t n, m, first, last;  // rows first .. last - 1 of n are this call's
  int64_t begin, end;         // and columns begin .. end - 1 of m
  const void* v;              // m r
  int64_t v_stride;
  void* out;  // n r
  int64_t out_stride;
  double* sums;  // n r (m r for `normal`): results are added here and not written to out; n, written, for `softmax`
  const void* weights;  // n r: factors of K v in K^T (weights * K v), or null
  int64_t weights_stride;
  const void *row_bias, *column_bias;  // n and m, added to the statistic of a dot product, or null
  const void* left;                    // n r: with it the gradient of sum_ij (left_i . v_j) k_ij is wanted
  int64_t left_stride;
  double* shares;  // 2 steps numbers: gradients of p0 and p1 of each step, added to
  const volatile int32_t* stop;
  int32_t r, part;  // part: 0 all, 1 columns <= row, 2 columns >= row
};
enum Outcome : int32_t { DONE = 0, NO_MEMORY = 1, STOPPED = 2, OUT_OF_RANGE = 3 };

template <class T> constexpr int UNIT = 4 * LANES<T>;
template <class T> constexpr T NEAR = sizeof(T) == 4 ? T(1e-3) : T(1e-6);
template <class T> constexpr T EPS = sizeof(T) == 4 ? T(1.1920929e-7) : T(2.220446049250313e-16);
constexpr double HARMLESS = 8e-6;
constexpr int DIRECT = 4;  // columns up to which differences are as cheap as the expanded form, and exact

int64_t rounded(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// The kernel program with what packing needs to know of each factor.
template <class T> struct Program {
  const Job& job;
  double gain[FACTORS], factor[FACTORS];  // of the statistic, and of the packed coordinates
  bool direct[FACTORS], squared[FACTORS], kink[FACTORS], angle[FACTORS];
  explicit Program(const Job& j) : job(j) {
    for (int f = 0; f < j.factor_count; ++f) gain[f] = 1, angle[f] = false;
    for (int s = 0; s < j.step_count; ++s) {
      const Step& step = j.steps[s];
      if (step.op == ARCCOSINE) angle[step.factor] = true;
      if (step.op <= IDENTITY)
        gain[step.factor] = with_profile<T>(step.op, step.p, [&](auto q) { return decltype(q)::gain(step.p); });
    }
    for (int f = 0; f < j.factor_count; ++f) {
      const Factor& part = j.factors[f];
      squared[f] = part.statistic == SQUARED || part.statistic == DISTANCE;
      kink[f] = part.statistic == DISTANCE;
      direct[f] = squared[f] && part.d <= DIRECT;
      factor[f] = part.statistic == ABSOLUTE ? gain[f] : __builtin_sqrt(squared[f] && !direct[f] ? 2 * gain[f] : gain[f]);
    }
  }
  bool expanded(int f) const { return squared[f] && !direct[f]; }
};

// Points begin .. begin + count - 1 in packed order [group][d][group size]; `bias`: minus half the squared norm of the
// packed coordinates where the squared distance is expanded, else zero. Returns half the largest squared norm.
template <class T>
double pack(const Program<T>& program, int f, bool rows, int64_t begin, int64_t count, int64_t room, int group, T* to,
            T* bias) {
  const Factor& part = program.job.factors[f];
  const int d = part.d;
  const int64_t stride = rows ? part.x_stride : part.y_stride;
  const T* from = static_cast<const T*>(rows ? part.x : part.y) + begin * stride;
  const void* extra = rows ? program.job.row_bias : program.job.column_bias;
  const bool biased = program.job.row_bias || program.job.column_bias;
  double largest = 0;
  for (int64_t g = 0; g < room; g += group) {
    T* block = to + g * d;
    const int here = int(count - g < group ? (count - g < 0 ? 0 : count - g) : group);
    for (int q0 = 0; q0 < group; q0 += 16) {
      const int q1 = q0 + 16 < group ? q0 + 16 : group;
      for (int k = 0; k < d; ++k) {
        const double centre = part.centre ? part.centre[k] : 0;
        const T scale = T(program.factor[f] * (part.scale ? part.scale[k] : 1));
        T* line = block + int64_t(k) * group;
        for (int q = q0; q < q1; ++q)
          line[q] = q < here ? (sizeof(T) == 4 && part.centre ? T(double(from[(g + q) * stride + k]) - centre)
                                                              : from[(g + q) * stride + k] - T(centre)) * scale
                             : T(0);
      }
    }
    for (int q = 0; q < group; ++q) {
      bias[g + q] = biased && q >= here ? -Layout<T>::HUGE_EXPONENT : T(0);  // where nothing is, exponents vanish
      double norm = 0;
      for (int k = 0; k < d; ++k) norm += double(block[int64_t(k) * group + q]) * block[int64_t(k) * group + q];
      if (largest == largest && !(0.5 * norm <= largest)) largest = 0.5 * norm;  // a NaN stays
      if (program.expanded(f)) {
        bias[g + q] = T(-0.5 * norm);
      } else if (extra && q < here) {
        bias[g + q] = T(LOG2_E) * static_cast<const T*>(extra)[begin + g + q];
      }
    }
  }
  return largest;
}

// ---- statistics of a strip of rows (xs: d STRIP) and a panel of columns (ys: d P) ----
// sink(i, p, h) takes VECTORS vectors of h: row i, from column p on.

template <class T> __attribute__((noinline)) void differences(const T* x, const T* y, int d, int P, Vec<T>* h) {
  Vec<T> acc[VECTORS] = {};
  for (int k = 0; k < d; ++k)
    for (int w = 0; w < VECTORS; ++w) {
      const Vec<T> gap = load(y + int64_t(k) * P + w * LANES<T>) - x[k * STRIP];
      acc[w] -= gap * gap;
    }
  for (int w = 0; w < VECTORS; ++w) h[w] = T(0.5) * acc[w];
}
// The chords that ArcCosine takes, from the dot products of unit vectors, for pairs so
// near that the differences (or sums) say more. h: the dot products, replaced.
template <class T> __attribute__((noinline)) void chords(const T* x, const T* y, int d, int P, Vec<T>* h) {
  Vec<T> near[VECTORS] = {}, far[VECTORS] = {};
  for (int k = 0; k < d; ++k)
    for (int w = 0; w < VECTORS; ++w) {
      const Vec<T> column = load(y + int64_t(k) * P + w * LANES<T>);
      const Vec<T> gap = column - x[k * STRIP], sum = column + x[k * STRIP];
      near[w] += gap * gap, far[w] += sum * sum;
    }
  for (int w = 0; w < VECTORS; ++w) {
    const Vec<T> exact = larger(all<T>(Layout<T>::LEAST_CHORD), h[w] > T(0) ? near[w] : far[w]);
    const Vec<T> size = magnitude<T>(h[w]), q = size > T(1) - NEAR<T> ? exact : T(2) - T(2) * size;
    h[w] = h[w] > T(0) ? q : -q;
  }
}
// Dot products, or minus the squared distances by the expanded form. `low`: the least yb where pairs too near for the
// expanded form are to be found and computed from their differences, else 1.
enum Form { PLAIN, SQUARES, CHORDS };
template <class T, Form FORM, class Sink>
INLINE void dots(const T* xs, const T* ys, int d, int P, const T* xb, const T* yb, T low, Sink&& sink) {
  constexpr int L = LANES<T>;
  for (int p = 0; p < P; p += VECTORS * L) {
    Vec<T> acc[STRIP][VECTORS];
    UNROLL for (int i = 0; i < STRIP; ++i)
      UNROLL for (int w = 0; w < VECTORS; ++w) acc[i][w] = load(yb + p + w * L) + xb[i];
    const T *x = xs, *y = ys + p;
    for (int k = 0; k < d; ++k, y += P, x += STRIP) {
      Vec<T> column[VECTORS];
      UNROLL for (int w = 0; w < VECTORS; ++w) column[w] = load(y + w * L);
      UNROLL for (int i = 0; i < STRIP; ++i)
        UNROLL for (int w = 0; w < VECTORS; ++w) acc[i][w] += column[w] * x[i];
    }
    UNROLL for (int i = 0; i < STRIP; ++i) {
      if (FORM == CHORDS) {
        Vec<T> most = magnitude<T>(acc[i][0]);
        UNROLL for (int w = 1; w < VECTORS; ++w) most = larger(most, magnitude<T>(acc[i][w]));
        if (__builtin_expect(any_above(most, T(1) - NEAR<T>), 0)) {
          Vec<T> exact[VECTORS];
          UNROLL for (int w = 0; w < VECTORS; ++w) exact[w] = acc[i][w];
          chords<T>(xs + i, ys + p, d, P, exact);
          UNROLL for (int w = 0; w < VECTORS; ++w) acc[i][w] = exact[w];
        } else {
          UNROLL for (int w = 0; w < VECTORS; ++w) {
            const Vec<T> q = T(2) - T(2) * magnitude<T>(acc[i][w]);
            acc[i][w] = acc[i][w] > T(0) ? q : -q;
          }
        }
      }
      if (FORM == SQUARES) {
        Vec<T> top = acc[i][0];
        UNROLL for (int w = 1; w < VECTORS; ++w) top = larger(top, acc[i][w]);
        if (__builtin_expect(low <= 0 && any_above(top, (xb[i] + low) * NEAR<T>), 0)) {
          Vec<T> exact[VECTORS];  // apart, so that the accumulators stay in registers
          differences<T>(xs + i, ys + p, d, P, exact);
          UNROLL for (int w = 0; w < VECTORS; ++w) acc[i][w] = exact[w];
        } else {
          UNROLL for (int w = 0; w < VECTORS; ++w) acc[i][w] = smaller(acc[i][w], Vec<T>{});
        }
      }
      sink(i, p, acc[i]);
    }
  }
}
// Minus the squared (or absolute) differences, one column of the points after the other.
template <class T, bool ABS, class Sink> INLINE void gaps(const T* xs, const T* ys, int d, int P, Sink&& sink) {
  constexpr int L = LANES<T>;
  for (int p = 0; p < P; p += VECTORS * L) {
    Vec<T> acc[STRIP][VECTORS] = {};
    for (int k = 0; k < d; ++k) {
      Vec<T> column[VECTORS];
      UNROLL for (int w = 0; w < VECTORS; ++w) column[w] = load(ys + int64_t(k) * P + p + w * L);
      UNROLL for (int i = 0; i < STRIP; ++i)
        UNROLL for (int w = 0; w < VECTORS; ++w) {
          const Vec<T> gap = column[w] - xs[k * STRIP + i];
          acc[i][w] -= ABS ? magnitude<T>(gap) : gap * gap;
        }
    }
    UNROLL for (int i = 0; i < STRIP; ++i) sink(i, p, acc[i]);
  }
}

// ---- a strip of values times a panel of right-hand sides: out[i r + c] += sum_p s[i P + p] v[c P + p] ----

template <class T, int C> void columns(const T* s, const T* v, int P, double* out, int r) {
  constexpr int L = LANES<T>;
  Vec<T> acc[STRIP][C] = {};
  for (int p = 0; p < P; p += L) {
    Vec<T> right[C];
    UNROLL for (int c = 0; c < C; ++c) right[c] = load(v + c * P + p);
    UNROLL for (int i = 0; i < STRIP; ++i) {
      const Vec<T> left = load(s + i * P + p);
      UNROLL for (int c = 0; c < C; ++c) acc[i][c] += left * right[c];
    }
  }
  UNROLL for (int i = 0; i < STRIP; ++i)
    UNROLL for (int c = 0; c < C; ++c) out[i * r + c] += sum(acc[i][c]);
}
template <class T> void multiply(const T* s, const T* v, int P, double* out, int r) {
  int c = 0;
  for (; c + VECTORS <= r; c += VECTORS) columns<T, VECTORS>(s, v + c * P, P, out + c, r);
  if (VECTORS == 4 && c + 2 <= r) columns<T, 2>(s, v + c * P, P, out + c, r), c += 2;
  if (c < r) columns<T, 1>(s, v + c * P, P, out + c, r);
}
// ---- one thread's buffers ----

struct Arena {
  char *base = nullptr, *at = nullptr;
  size_t needed = 0;
  bool open() {
    base = static_cast<char*>(malloc(needed + 64));
    at = reinterpret_cast<char*>(rounded(reinterpret_cast<int64_t>(base), 64));
    return base != nullptr;
  }
  template <class T> void reserve(int64_t count) { needed += size_t(rounded(count * int64_t(sizeof(T)), 64)); }
  template <class T> T* take(int64_t count) {
    T* found = reinterpret_cast<T*>(at);
    at += rounded(count * int64_t(sizeof(T)), 64);
    return found;
  }
  ~Arena() { free(base); }
};

INLINE double power_of_two(double x) { return exp2<double>(all<double>(x))[0]; }

template <class T> struct Work {
  const Job& job;
  Program<T> program;
  Arena arena;
  int P;
  int64_t rows;
  bool tape;
  T *xs[FACTORS], *xb[FACTORS], *ys[FACTORS], *yb[FACTORS], *stat[FACTORS], *value[STEPS], *adjoint[STEPS], *vp, *lp, *cp;
  double *acc, *state, *dacc[FACTORS], *mass[FACTORS];
  double x_norm[FACTORS], y_norm[FACTORS];
  int64_t panels = 1;  // how many panels of columns are packed at once
  bool keeps = false;  // whether one strip of all of them is kept
  T *all_ys[FACTORS], *all_yb[FACTORS], *all_v, *kept;
  double* norms;
  int left_of[STEPS], right_of[STEPS];

  Work(const Job& j, bool gradients) : job(j), program(j), tape(gradients) {
    int64_t width = 0, per_column = job.r < 4 ? job.r : 4;
    for (int f = 0; f < job.factor_count; ++f) {
      width += job.factors[f].d;
      per_column += job.factors[f].d + STRIP;
    }
    if (tape) per_column += 2 * int64_t(job.step_count) * STRIP;
    int64_t p = FIRST_CACHE / (per_column * int64_t(sizeof(T))) / UNIT<T> * UNIT<T>;
    const int64_t most = SECOND_CACHE / (per_column * int64_t(sizeof(T))) / UNIT<T> * UNIT<T>;
    if (p < 3 * UNIT<T>) p = most < 3 * UNIT<T> ? most : 3 * UNIT<T>;
    if (p > WIDEST) p = WIDEST;
    if (p < UNIT<T>) p = UNIT<T>;
    const int64_t all_columns = rounded(job.end - job.begin, UNIT<T>);
    P = int(p < all_columns ? p : all_columns);
    int64_t most_rows = (int64_t(1) << 21) / (int64_t(sizeof(T)) * (width + 1) + 16 * int64_t(job.r));
    if (most_rows > ROWS) most_rows = ROWS;
    if (most_rows < 16 * STRIP) most_rows = 16 * STRIP;
    rows = rounded(most_rows, STRIP);
    if (rows > rounded(job.last - job.first, STRIP)) rows = rounded(job.last - job.first, STRIP);
  }
  bool open() {
    for (int pass = 0; pass < 2; ++pass) {
      auto get = [&](auto*& to, int64_t count) {
        typedef typename std_remove<decltype(to)>::type E;
        if (pass) to = arena.template take<E>(count); else arena.template reserve<E>(count);
      };
      for (int f = 0; f < job.factor_count; ++f) {
        const int64_t d = job.factors[f].d;
        get(xs[f], rows * d + 1), get(xb[f], rows), get(stat[f], STRIP * P);
        get(all_ys[f], panels * P * d + 1), get(all_yb[f], panels * P);
        if (tape) get(dacc[f], rows * d + 1), get(mass[f], rows);
      }
      for (int s = 0; s < job.step_count; ++s)
        if (tape || job.steps[s].op == CONSTANT) {
          get(value[s], STRIP * P);
          if (tape) get(adjoint[s], STRIP * P);
        }
      get(all_v, panels * job.r * P + 1), get(acc, rows * job.r + 1), get(state, 2 * rows);
      get(lp, rows * job.r), get(cp, panels * job.r * P + 1), get(norms, panels * FACTORS);
      get(kept, keeps ? panels * STRIP * P : 1);
      if (!pass && !arena.open()) return false;
    }
    choose(0);
    return true;
  }
  void choose(int64_t panel) {  // which of the packed panels is worked on
    for (int f = 0; f < job.factor_count; ++f) {
      ys[f] = all_ys[f] + panel * P * job.factors[f].d;
      yb[f] = all_yb[f] + panel * P;
      y_norm[f] = norms[panel * FACTORS + f];
    }
    vp = all_v + panel * job.r * P;
  }
  template <class P1> struct std_remove;
  template <class E> struct std_remove<E*&> { typedef E type; };

  // False where squared distances would overflow, and where numbers are not finite: vector maxima drop NaN.
  bool fits(int f, double norm) const {
    return norm < (job.factors[f].statistic == DOT ? __builtin_inf() : double(Layout<T>::LARGEST));
  }
  bool take_rows(int64_t begin, int64_t count) {
    for (int f = 0; f < job.factor_count; ++f) {
      x_norm[f] = pack<T>(program, f, true, begin, count, rounded(count, STRIP), STRIP, xs[f], xb[f]);
      if (!fits(f, x_norm[f])) return false;
    }
    return true;
  }
  bool take_columns(int64_t begin, int64_t count) {
    for (int f = 0; f < job.factor_count; ++f) {
      y_norm[f] = pack<T>(program, f, false, begin, count, P, P, ys[f], yb[f]);
      norms[(ys[f] - all_ys[f]) / (P * int64_t(job.factors[f].d ? job.factors[f].d : 1)) * FACTORS + f] = y_norm[f];
      if (!fits(f, y_norm[f])) return false;
    }
    const T* v = static_cast<const T*>(job.v) + begin * job.v_stride;
    for (int c = 0; c < job.r; ++c)
      for (int p = 0; p < P; ++p) vp[int64_t(c) * P + p] = p < count ? v[p * job.v_stride + c] : T(0);
    return true;
  }
  template <int ON, class Sink> INLINE void statistic(int f, int64_t strip, Sink&& sink) {
    const int d = job.factors[f].d, kind = job.factors[f].statistic;
    const T* x = xs[f] + strip * d;
    if constexpr (ON & ON_ABSOLUTE)
      if (kind == ABSOLUTE) return gaps<T, true>(x, ys[f], d, P, sink);
    if constexpr (ON & ON_DOT)
      if (kind == DOT && !program.angle[f]) return dots<T, PLAIN>(x, ys[f], d, P, xb[f] + strip, yb[f], T(1), sink);
    if constexpr (ON & ON_ANGLE)
      if (program.angle[f]) return dots<T, CHORDS>(x, ys[f], d, P, xb[f] + strip, yb[f], T(1), sink);
    if constexpr (ON & ON_SQUARED) {
      if (program.direct[f]) return gaps<T, false>(x, ys[f], d, P, sink);
      const bool check = program.kink[f] || (x_norm[f] + y_norm[f]) * EPS<T> > HARMLESS;
      dots<T, SQUARES>(x, ys[f], d, P, xb[f] + strip, yb[f], check ? T(-y_norm[f]) : T(1), sink);
    }
  }
  auto storing(T* s) {
    return [s, P = P](int i, int p, const Vec<T>* h) {
      UNROLL for (int w = 0; w < VECTORS; ++w) store(s + i * P + p + w * LANES<T>, h[w]);
    };
  }
  void statistics(int64_t strip) {
    for (int f = 0; f < job.factor_count; ++f) statistic<ON_ALL>(f, strip, storing(stat[f]));
  }
  void dot(int64_t strip, double* out) {
    with_profile<T>(job.steps[0].op, job.steps[0].p, [&](auto profile) {
      Vec<T> acc[STRIP] = {};
      const T* v = vp;
      statistic<decltype(profile)::ON>(0, strip, [&acc, profile, v](int i, int p, const Vec<T>* h) {
        UNROLL for (int w = 0; w < VECTORS; ++w) acc[i] += profile.value(h[w]) * load(v + p + w * LANES<T>);
      });
      for (int i = 0; i < STRIP; ++i) out[i] += sum(acc[i]);
    });
  }
  void dot_both(int64_t strip, double* out) {  // rows as in `dot`, and the columns' sums in cp
    with_profile<T>(job.steps[0].op, job.steps[0].p, [&](auto profile) {
      Vec<T> acc[STRIP] = {}, below[VECTORS];
      const T *v = vp, *left = lp + strip;
      T* sums = cp;
      statistic<decltype(profile)::ON>(0, strip, [&acc, &below, profile, v, left, sums](int i, int p, const Vec<T>* h) {
        UNROLL for (int w = 0; w < VECTORS; ++w) {
          const Vec<T> k = profile.value(h[w]);
          acc[i] += k * load(v + p + w * LANES<T>);
          below[w] = (i == 0 ? load(sums + p + w * LANES<T>) : below[w]) + k * left[i];
          if (i == STRIP - 1) store(sums + p + w * LANES<T>, below[w]);
        }
      });
      for (int i = 0; i < STRIP; ++i) out[i] += sum(acc[i]);
    });
  }
  void multiply_both(int64_t strip) {
    const int r = job.r;
    const T* values = evaluate(strip);
    multiply<T>(values, vp, P, acc + strip * r, r);
    add_below(values, lp + strip * r, cp);
  }
  void add_below(const T* values, const T* left, T* to) {  // to[c P + p] += sum_i values[i P + p] left[i r + c]
    const int r = job.r;
    for (int c = 0; c < r; ++c) {
      T* sums = to + int64_t(c) * P;
      for (int p = 0; p < P; p += LANES<T>) {
        Vec<T> below = load(sums + p);
        UNROLL for (int i = 0; i < STRIP; ++i) below += load(values + i * P + p) * left[i * r + c];
        store(sums + p, below);
      }
    }
  }
  void mask(T* s, int64_t row, int64_t column) {  // entries outside the causal part become zero
    UNROLL for (int i = 0; i < STRIP; ++i)
      for (int p = 0; p < P; ++p)
        if (job.part == 1 ? column + p > row + i : column + p < row + i) s[i * P + p] = 0;
  }
  bool crosses(int64_t row, int64_t column, int64_t count) const {
    return job.part == 1 ? column + count - 1 > row : job.part == 2 && column < row + STRIP - 1;
  }
  bool outside(int64_t row, int64_t high, int64_t column, int64_t count) const {
    return job.part == 1 ? column > row + high - 1 : job.part == 2 && column + count - 1 < row;
  }
  // row i of the statistics becomes 2^(h - largest so far), zero outside the causal part; acc and the sum follow
  void rise(int i, int64_t row, int64_t column, int64_t wide, double* state, double* sums) {
    T* h = stat[0] + i * P;
    const int64_t from = job.part == 2 && row > column ? row - column : 0;
    const int64_t to = job.part == 1 && row + 1 - column < wide ? row + 1 - column : wide;
    if (from >= to) {
      memset(h, 0, sizeof(T) * size_t(P));
      return;
    }
    for (int64_t p = 0; p < from; ++p) h[p] = -Layout<T>::HUGE_EXPONENT;
    for (int64_t p = to; p < P; ++p) h[p] = -Layout<T>::HUGE_EXPONENT;
    Vec<T> most = load(h);
    for (int p = LANES<T>; p < P; p += LANES<T>) most = larger(most, load(h + p));
    T peak = T(state[0]);
    for (int l = 0; l < LANES<T>; ++l) peak = most[l] > peak ? most[l] : peak;
    if (double(peak) > state[0]) {
      const double shrink = power_of_two(state[0] - double(peak));
      state[0] = double(peak), state[1] *= shrink;
      for (int c = 0; c < job.r; ++c) sums[c] *= shrink;
    }
    Vec<T> acc = {};
    for (int p = 0; p < P; p += LANES<T>) {
      const Vec<T> k = exp2<T>(load(h + p) - peak);
      store(h + p, k);
      acc += k;
    }
    state[1] += sum(acc);
  }
  // kernel values of a strip, in the buffer that is returned
  T* evaluate(int64_t strip) {
    if (job.step_count == 1) {
      T* s = stat[0];
      with_profile<T>(job.steps[0].op, job.steps[0].p, [&](auto profile) {
        statistic<decltype(profile)::ON>(0, strip, [s, profile, P = P](int i, int p, const Vec<T>* h) {
          UNROLL for (int w = 0; w < VECTORS; ++w) store(s + i * P + p + w * LANES<T>, profile.value(h[w]));
        });
      });
      return s;
    }
    statistics(strip);
    T* stack[DEPTH];
    int top = 0;
    const int count = STRIP * P;
    for (int n = 0; n < job.step_count; ++n) {
      const Step& step = job.steps[n];
      if (step.op <= IDENTITY) {
        T* s = stat[step.factor];
        if (step.op != IDENTITY)
          with_profile<T>(step.op, step.p, [&](auto profile) {
            for (int p = 0; p < count; p += LANES<T>) store(s + p, profile.value(load(s + p)));
          });
        stack[top++] = s;
      } else if (step.op == CONSTANT) {
        for (int p = 0; p < count; p += LANES<T>) store(value[n] + p, all<T>(T(step.p[0])));
        stack[top++] = value[n];
      } else if (step.op == SCALE) {
        T* s = stack[top - 1];
        for (int p = 0; p < count; p += LANES<T>) store(s + p, load(s + p) * T(step.p[0]));
      } else {
        T *b = stack[--top], *a = stack[top - 1];
        if (step.op == ADD)
          for (int p = 0; p < count; p += LANES<T>) store(a + p, load(a + p) + load(b + p));
        else
          for (int p = 0; p < count; p += LANES<T>) store(a + p, load(a + p) * load(b + p));
      }
    }
    return stack[0];
  }
};

template <class T> int product(const Job& job) {
  Work<T> work(job, false);
  if (!work.open()) return NO_MEMORY;
  const bool one = job.step_count == 1 && job.r == 1;
  const int r = job.r, P = work.P;
  for (int64_t begin = job.first; begin < job.last; begin += work.rows) {
    const int64_t high = job.last - begin < work.rows ? job.last - begin : work.rows;
    if (!work.take_rows(begin, high)) return OUT_OF_RANGE;
    memset(work.acc, 0, sizeof(double) * size_t(work.rows) * size_t(r));
    for (int64_t column = job.begin; column < job.end; column += P) {
      const int64_t wide = job.end - column < P ? job.end - column : P;
      if (work.outside(begin, high, column, wide)) continue;
      if (job.stop && *job.stop) return STOPPED;
      if (!work.take_columns(column, wide)) return OUT_OF_RANGE;
      for (int64_t strip = 0; strip < high; strip += STRIP) {
        if (work.outside(begin + strip, STRIP, column, wide)) continue;
        const bool crossing = job.part && work.crosses(begin + strip, column, wide);
        double* out = work.acc + strip * r;
        if (one && !crossing) {  // values go from registers to the sum
          work.dot(strip, out);
          continue;
        }
        T* values = work.evaluate(strip);
        if (crossing) work.mask(values, begin + strip, column);
        multiply<T>(values, work.vp, P, out, r);
      }
    }
    T* out = static_cast<T*>(job.out);
    for (int64_t i = 0; i < high; ++i)
      for (int c = 0; c < r; ++c)
        if (job.sums)
          job.sums[(begin + i) * r + c] += work.acc[i * r + c];
        else
          out[(begin + i) * job.out_stride + c] = T(work.acc[i * r + c]);
  }
  return DONE;
}

// ---- K(x, x) v where K is symmetric: rows first .. last - 1 meet columns begin .. end - 1, and each entry serves both ----

template <class T> int both_sides(const Job& job) {
  Work<T> work(job, false);
  if (!work.open()) return NO_MEMORY;
  const int r = job.r, P = work.P;
  const T* v = static_cast<const T*>(job.v);
  for (int64_t begin = job.first; begin < job.last; begin += work.rows) {
    const int64_t high = job.last - begin < work.rows ? job.last - begin : work.rows;
    if (!work.take_rows(begin, high)) return OUT_OF_RANGE;
    for (int64_t i = 0; i < work.rows; ++i)
      for (int c = 0; c < r; ++c) work.lp[i * r + c] = i < high ? v[(begin + i) * job.v_stride + c] : T(0);
    memset(work.acc, 0, sizeof(double) * size_t(work.rows) * size_t(r));
    for (int64_t column = job.begin; column < job.end; column += P) {
      const int64_t wide = job.end - column < P ? job.end - column : P;
      if (job.stop && *job.stop) return STOPPED;
      if (!work.take_columns(column, wide)) return OUT_OF_RANGE;
      for (int64_t strip = 0; strip < high; strip += STRIP) {
        if (strip % (64 * STRIP) == 0) memset(work.cp, 0, sizeof(T) * size_t(r) * size_t(P));
        if (r == 1 && job.step_count == 1)
          work.dot_both(strip, work.acc + strip);
        else
          work.multiply_both(strip);
        if ((strip + STRIP) % (64 * STRIP) == 0 || strip + STRIP >= high)  // columns go on in double
          for (int64_t p = 0; p < wide; ++p)
            for (int c = 0; c < r; ++c) job.sums[(column + p) * r + c] += double(work.cp[int64_t(c) * P + p]);
      }
    }
    for (int64_t i = 0; i < high * r; ++i) job.sums[begin * r + i] += work.acc[i];
  }
  return DONE;
}

// ---- K^T (weights * (K v)): each entry of K is formed once; sums: m r, of this call alone ----

template <class T> int normal(const Job& job) {
  Work<T> work(job, false);
  const int r = job.r, P = work.P;
  work.panels = P ? (job.m + P - 1) / P : 0;
  work.keeps = true;
  if (!work.open()) return NO_MEMORY;
  for (int64_t panel = 0; panel < work.panels; ++panel) {
    work.choose(panel);
    if (!work.take_columns(panel * P, job.m - panel * P < P ? job.m - panel * P : P)) return OUT_OF_RANGE;
  }
  const T* weights = static_cast<const T*>(job.weights);
  T* sums = work.cp;  // panels r P
  for (int64_t begin = job.first; begin < job.last; begin += work.rows) {
    const int64_t high = job.last - begin < work.rows ? job.last - begin : work.rows;
    if (!work.take_rows(begin, high)) return OUT_OF_RANGE;
    memset(work.acc, 0, sizeof(double) * size_t(work.rows) * size_t(r));
    for (int64_t strip = 0; strip < high; strip += STRIP) {
      if (job.stop && *job.stop) return STOPPED;
      if (strip % (64 * STRIP) == 0) memset(sums, 0, sizeof(T) * size_t(work.panels) * size_t(r) * size_t(P));
      for (int64_t panel = 0; panel < work.panels; ++panel) {
        work.choose(panel);
        T* values = work.evaluate(strip);
        multiply<T>(values, work.vp, P, work.acc + strip * r, r);
        memcpy(work.kept + panel * STRIP * P, values, sizeof(T) * STRIP * size_t(P));
      }
      T* left = work.lp + strip * r;
      for (int i = 0; i < STRIP; ++i)
        for (int c = 0; c < r; ++c) {
          const double factor = weights && strip + i < high ? weights[(begin + strip + i) * job.weights_stride + c] : 1;
          left[i * r + c] = strip + i < high ? T(factor * work.acc[(strip + i) * r + c]) : T(0);
        }
      for (int64_t panel = 0; panel < work.panels; ++panel)
        work.add_below(work.kept + panel * STRIP * P, left, sums + panel * r * P);
      if ((strip + STRIP) % (64 * STRIP) == 0 || strip + STRIP >= high)
        for (int64_t column = 0; column < job.m; ++column)
          for (int c = 0; c < r; ++c)
            job.sums[column * r + c] += double(sums[(column / P * r + c) * P + column % P]);
    }
  }
  return DONE;
}

// ---- the matrix itself: out n m ----

template <class T> int block(const Job& job) {
  Work<T> work(job, false);
  if (!work.open()) return NO_MEMORY;
  const int P = work.P;
  T* out = static_cast<T*>(job.out);
  for (int64_t begin = job.first; begin < job.last; begin += work.rows) {
    const int64_t high = job.last - begin < work.rows ? job.last - begin : work.rows;
    if (!work.take_rows(begin, high)) return OUT_OF_RANGE;
    for (int64_t column = 0; column < job.m; column += P) {
      const int64_t wide = job.m - column < P ? job.m - column : P;
      if (job.stop && *job.stop) return STOPPED;
      if (!work.take_columns(column, wide)) return OUT_OF_RANGE;
      for (int64_t strip = 0; strip < high; strip += STRIP) {
        T* values = work.evaluate(strip);
        if (job.part) work.mask(values, begin + strip, column);
        for (int64_t i = 0; i < STRIP && strip + i < high; ++i)
          memcpy(out + (begin + strip + i) * job.out_stride + column, values + i * P, size_t(wide) * sizeof(T));
      }
    }
  }
  return DONE;
}

// ---- gradients of sum_ij (left_i . v_j) k(x_i, y_j) ----

// out[i d + k] += sum_p c[i P + p] (y_k - x_k), or the sign of that difference, or y_k + x_k where h is negative: the
// slope of an angle has no bound, times the chord it has, and what x adds is along x, where an angle has no slope
enum Gap { DIFFERENCE, SIGN, CHORD };
template <class T, Gap KIND>
void gap_sums(const T* xs, const T* ys, int d, int P, const T* c, double* out, const T* h = nullptr) {
  for (int k = 0; k < d; ++k) {
    Vec<T> acc[STRIP] = {};
    for (int p = 0; p < P; p += LANES<T>) {
      const Vec<T> y = load(ys + int64_t(k) * P + p);
      UNROLL for (int i = 0; i < STRIP; ++i) {
        const Vec<T> x = all<T>(xs[k * STRIP + i]), weight = load(c + i * P + p);
        const Vec<T> gap = y - (KIND == CHORD ? (load(h + i * P + p) < T(0) ? -x : x) : x);
        if (KIND == SIGN)
          acc[i] += gap > T(0) ? weight : gap < T(0) ? -weight : Vec<T>{};
        else
          acc[i] += weight * gap;
      }
    }
    UNROLL for (int i = 0; i < STRIP; ++i) out[i * d + k] += sum(acc[i]);
  }
}
template <class T> double inner(const T* a, const T* b, int64_t count) {  // b null: the sum of a
  double total = 0;
  for (int64_t begin = 0; begin < count; begin += 512) {
    Vec<T> acc = {};
    const int64_t end = begin + 512 < count ? begin + 512 : count;
    for (int64_t p = begin; p < end; p += LANES<T>) acc += b ? load(a + p) * load(b + p) : load(a + p);
    total += sum(acc);
  }
  return total;
}

template <class T> struct Gradient {
  Work<T>& work;
  const Job& job;
  const int P, count;
  int64_t strip, column, row;
  bool crossing;
  explicit Gradient(Work<T>& w) : work(w), job(w.job), P(w.P), count(STRIP * w.P) {}

  // adjoint of the last step: left . v, zero outside the causal part and beyond the last row
  void seed(T* to) {
    const int r = job.r;
    const T* left = work.lp + strip * r;
    for (int p = 0; p < P; p += LANES<T>) {
      Vec<T> acc[STRIP] = {};
      for (int c = 0; c < r; ++c) {
        const Vec<T> v = load(work.vp + int64_t(c) * P + p);
        UNROLL for (int i = 0; i < STRIP; ++i) acc[i] += v * left[i * r + c];
      }
      UNROLL for (int i = 0; i < STRIP; ++i) store(to + i * P + p, acc[i]);
    }
    if (crossing) work.mask(to, row, column);
  }
  void forward() {  // values of every step; profiles keep their statistic
    work.statistics(strip);
    int stack[DEPTH], top = 0;
    for (int n = 0; n < job.step_count; ++n) {
      const Step& step = job.steps[n];
      T* to = work.value[n];
      if (step.op <= IDENTITY) {
        const T* h = work.stat[step.factor];
        with_profile<T>(step.op, step.p, [&](auto profile) {
          for (int p = 0; p < count; p += LANES<T>) store(to + p, profile.value(load(h + p)));
        });
        if (crossing) work.mask(to, row, column);  // what is outside may be infinite, and zero times that is not zero
        work.left_of[n] = work.right_of[n] = -1;
      } else if (step.op == CONSTANT) {
        for (int p = 0; p < count; p += LANES<T>) store(to + p, all<T>(T(step.p[0])));
      } else if (step.op == SCALE) {
        const T* a = work.value[work.left_of[n] = stack[--top]];
        for (int p = 0; p < count; p += LANES<T>) store(to + p, load(a + p) * T(step.p[0]));
      } else {
        const T* b = work.value[work.right_of[n] = stack[--top]];
        const T* a = work.value[work.left_of[n] = stack[--top]];
        for (int p = 0; p < count; p += LANES<T>)
          store(to + p, step.op == ADD ? load(a + p) + load(b + p) : load(a + p) * load(b + p));
      }
      stack[top++] = n;
    }
  }
  void backward() {
    for (int n = job.step_count - 1; n >= 0; --n) {
      const Step& step = job.steps[n];
      T* adjoint = work.adjoint[n];
      double* share = job.shares ? job.shares + 2 * n : nullptr;
      if (step.op <= IDENTITY) {
        profile(n, adjoint, share);
        continue;
      }
      if (step.op == CONSTANT) {
        if (share) share[0] += inner<T>(adjoint, nullptr, count);
        continue;
      }
      const T* a = work.value[work.left_of[n]];
      T* to = work.adjoint[work.left_of[n]];
      if (step.op == SCALE) {
        if (share) share[0] += inner<T>(adjoint, a, count);
        for (int p = 0; p < count; p += LANES<T>) store(to + p, load(adjoint + p) * T(step.p[0]));
        continue;
      }
      const T* b = work.value[work.right_of[n]];
      T* other = work.adjoint[work.right_of[n]];
      for (int p = 0; p < count; p += LANES<T>) {
        const Vec<T> here = load(adjoint + p);
        store(to + p, step.op == ADD ? here : here * load(b + p));
        store(other + p, step.op == ADD ? here : here * load(a + p));
      }
    }
  }
  void profile(int n, T* adjoint, double* share) {
    const Step& step = job.steps[n];
    const T *h = work.stat[step.factor], *k = work.value[n];
    if (share && step.op == POWER) {  // p1: its own derivative is k log(1 + p0 s)
      for (int64_t begin = 0; begin < count; begin += 256) {
        Vec<T> acc = {};
        for (int64_t p = begin; p < begin + 256 && p < count; p += LANES<T>)
          acc += load(adjoint + p) * load(k + p) * log2_1p<T>(-load(h + p));
        share[1] += LN2 * sum(acc);
      }
    }
    with_profile<T>(step.op, step.p, [&](auto profile) {
      for (int p = 0; p < count; p += LANES<T>)
        store(adjoint + p, load(adjoint + p) * profile.slope(load(h + p), load(k + p)));
    });
    if (crossing) work.mask(adjoint, row, column);
    if (share) share[0] += inner<T>(adjoint, h, count);
    if (share && step.op == POLYNOMIAL) share[1] += inner<T>(adjoint, nullptr, count);
    points(step.factor, adjoint);
  }
  void points(int f, const T* c) {  // sums over the columns of this panel, in packed coordinates
    const Factor& part = job.factors[f];
    if (!part.dx) return;
    double* out = work.dacc[f] + strip * part.d;
    const T *x = work.xs[f] + strip * part.d, *y = work.ys[f];
    if (part.statistic == ABSOLUTE) return gap_sums<T, SIGN>(x, y, part.d, P, c, out);
    if (work.program.angle[f]) return gap_sums<T, CHORD>(x, y, part.d, P, c, out, work.stat[f]);
    if (work.program.direct[f]) return gap_sums<T, DIFFERENCE>(x, y, part.d, P, c, out);
    multiply<T>(c, y, P, out, part.d);
    if (work.program.expanded(f))
      for (int i = 0; i < STRIP; ++i) work.mass[f][strip + i] += inner<T>(c + i * P, nullptr, P);
  }
  void finish(int64_t begin, int64_t high) {  // to derivatives with respect to the scaled coordinates
    for (int f = 0; f < job.factor_count; ++f) {
      const Factor& part = job.factors[f];
      if (!part.dx) continue;
      const double gain = work.program.gain[f], factor = work.program.factor[f];
      for (int64_t i = 0; i < high; ++i) {
        const T* x = work.xs[f] + (i / STRIP) * STRIP * part.d + i % STRIP;
        T* to = static_cast<T*>(part.dx) + (begin + i) * part.d;
        for (int k = 0; k < part.d; ++k) {
          const double found = work.dacc[f][i * part.d + k];
          to[k] = T(part.statistic == ABSOLUTE ? gain * found
                    : work.program.squared[f]
                        ? 2 * gain / factor * (found - work.mass[f][i] * double(x[int64_t(k) * STRIP]))  // 0 if direct
                        : gain / factor * found);
        }
      }
    }
  }
};

template <class T> int gradient(const Job& job) {
  Work<T> work(job, true);
  if (!work.open()) return NO_MEMORY;
  Gradient<T> pass(work);
  const int r = job.r, P = work.P;
  for (int64_t begin = job.first; begin < job.last; begin += work.rows) {
    const int64_t high = job.last - begin < work.rows ? job.last - begin : work.rows;
    if (!work.take_rows(begin, high)) return OUT_OF_RANGE;
    const T* left = static_cast<const T*>(job.left) + begin * job.left_stride;
    for (int64_t i = 0; i < work.rows; ++i)
      for (int c = 0; c < r; ++c) work.lp[i * r + c] = i < high ? left[i * job.left_stride + c] : T(0);
    for (int f = 0; f < job.factor_count; ++f) {
      memset(work.dacc[f], 0, sizeof(double) * size_t(work.rows) * size_t(job.factors[f].d));
      memset(work.mass[f], 0, sizeof(double) * size_t(work.rows));
    }
    for (int64_t column = 0; column < job.m; column += P) {
      const int64_t wide = job.m - column < P ? job.m - column : P;
      if (work.outside(begin, high, column, wide)) continue;
      if (job.stop && *job.stop) return STOPPED;
      if (!work.take_columns(column, wide)) return OUT_OF_RANGE;
      for (int64_t strip = 0; strip < high; strip += STRIP) {
        if (work.outside(begin + strip, STRIP, column, wide)) continue;
        pass.strip = strip, pass.column = column, pass.row = begin + strip;
        pass.crossing = job.part && work.crosses(begin + strip, column, wide);
        pass.forward();
        pass.seed(work.adjoint[job.step_count - 1]);
        pass.backward();
      }
    }
    pass.finish(begin, high);
  }
  return DONE;
}

// ---- exp(dot product) with rows that sum to one, and the logarithms of the sums it had: one pass, no overflow ----
// Exponents are relative to the largest one of the row so far; a larger one scales down what was summed [milakov2018].

template <class T> int softmax(const Job& job) {
  Work<T> work(job, false);
  if (!work.open()) return NO_MEMORY;
  const int P = work.P, r = job.r;
  double* state = work.state;  // two numbers for each row: the largest exponent so far, and the sum relative to it
  for (int64_t begin = job.first; begin < job.last; begin += work.rows) {
    const int64_t high = job.last - begin < work.rows ? job.last - begin : work.rows;
    if (!work.take_rows(begin, high)) return OUT_OF_RANGE;
    memset(work.acc, 0, sizeof(double) * size_t(work.rows) * size_t(r));
    for (int64_t i = 0; i < work.rows; ++i) state[2 * i] = -Layout<T>::HUGE_EXPONENT, state[2 * i + 1] = 0;
    for (int64_t column = 0; column < job.m; column += P) {
      const int64_t wide = job.m - column < P ? job.m - column : P;
      if (work.outside(begin, high, column, wide)) continue;
      if (job.stop && *job.stop) return STOPPED;
      if (!work.take_columns(column, wide)) return OUT_OF_RANGE;
      for (int64_t strip = 0; strip < high; strip += STRIP) {
        if (work.outside(begin + strip, STRIP, column, wide)) continue;
        work.statistics(strip);
        double* sums = work.acc + strip * r;
        for (int i = 0; i < STRIP; ++i)
          work.rise(i, begin + strip + i, column, wide, state + 2 * (strip + i), sums + i * r);
        if (r) multiply<T>(work.stat[0], work.vp, P, sums, r);
      }
    }
    T* out = static_cast<T*>(job.out);
    for (int64_t i = 0; i < high; ++i) {
      const double total = state[2 * i + 1];
      for (int c = 0; c < r; ++c)
        out[(begin + i) * job.out_stride + c] = total > 0 ? T(work.acc[i * r + c] / total) : T(0);
      job.sums[begin + i] = total > 0 ? LN2 * (state[2 * i] + log2_1p<double>(all<double>(total - 1))[0]) : 0;
    }
  }
  return DONE;
}

// ---- what the registers alone can do, for benchmarks: fused multiply-adds, and exp2 with one multiply-add ----

template <class T> double peak_fma(int64_t rounds) {
  constexpr int MANY = BYTES == 64 ? 16 : 12;
  Vec<T> acc[MANY];
  for (int i = 0; i < MANY; ++i) acc[i] = all<T>(T(0.1) * i);
  const Vec<T> factor = all<T>(T(0.999)), term = all<T>(T(0.001));
  for (int64_t k = 0; k < rounds; ++k)
    UNROLL for (int i = 0; i < MANY; ++i) acc[i] = acc[i] * factor + term;
  Vec<T> total = {};
  for (int i = 0; i < MANY; ++i) total += acc[i];
  return sum(total);  // so that nothing is left out
}
template <class T> double peak_exp2(int64_t rounds) {
  alignas(64) T h[512];
  Vec<T> acc[4] = {};
  for (int i = 0; i < 512; ++i) h[i] = T(-0.01) * i;
  for (int64_t k = 0; k < rounds; ++k) {
    for (int p = 0; p < 512; p += UNIT<T>)
      UNROLL for (int w = 0; w < 4; ++w) acc[w] += exp2<T>(load(h + p + w * LANES<T>)) * T(0.5);
    __asm__ volatile("" ::: "memory");
  }
  return sum((acc[0] + acc[1]) + (acc[2] + acc[3]));
}

}  // namespace

API double mercer_peak_fma_float(int64_t rounds) { return peak_fma<float>(rounds); }
API double mercer_peak_exp2_float(int64_t rounds) { return peak_exp2<float>(rounds); }
API int32_t mercer_vector_bytes() { return BYTES; }
API int32_t mercer_version() { return 5; }
API int32_t mercer_product_float(const Job* job) { return product<float>(*job); }
API int32_t mercer_product_double(const Job* job) { return product<double>(*job); }
API int32_t mercer_both_float(const Job* job) { return both_sides<float>(*job); }
API int32_t mercer_both_double(const Job* job) { return both_sides<double>(*job); }
API int32_t mercer_normal_float(const Job* job) { return normal<float>(*job); }
API int32_t mercer_normal_double(const Job* job) { return normal<double>(*job); }
API int32_t mercer_block_float(const Job* job) { return block<float>(*job); }
API int32_t mercer_block_double(const Job* job) { return block<double>(*job); }
API int32_t mercer_gradient_float(const Job* job) { return gradient<float>(*job); }
API int32_t mercer_gradient_double(const Job* job) { return gradient<double>(*job); }
API int32_t mercer_softmax_float(const Job* job) { return softmax<float>(*job); }
API int32_t mercer_softmax_double(const Job* job) { return softmax<double>(*job); }
