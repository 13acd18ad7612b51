/* What the compiled passes share: the number that enters and leaves a product, and how heads are turned.
 *
 * Compiled where a C compiler is found (native.py), once with NARROW for products in bfloat16 and once without for
 * float32: everything but "number" is float32. Rows are dealt to OpenMP's threads in fixed shares, so that the same number of
 * threads gives the same bits.
 */
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LANES 16 /* numbers that are added up side by side, and keys that are widened at a time */
#define BLOCK 64 /* tokens whose weights are summed at a time, as in sampling.py */
#define INLINED static inline __attribute__((always_inline)) /* with a constant D the loops over it are unrolled */
#define FULL(n) (((n) + LANES - 1) / LANES * LANES)
#define SMALL 16384 /* numbers below which another thread costs more than it does */
#define SHARED(numbers) if ((numbers) > SMALL)
#define AS_PRAGMA(words) _Pragma(#words)
#define PARALLEL(numbers) AS_PRAGMA(omp parallel for schedule(static) if ((numbers) > SMALL))

#ifdef NARROW
typedef uint16_t number;
static inline float wide(number x) {
    uint32_t bits = (uint32_t)x << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
static inline number rounded(float x) { /* to nearest, ties to even; infinities and NaNs stay what they are */
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return (number)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
#define WIDENED(n) (n)
INLINED const float *widened(const number *restrict from, int64_t n, float *restrict room) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) room[i] = wide(from[i]);
    return room;
}
#else
typedef float number;
static inline float wide(number x) { return x; }
static inline number rounded(float x) { return x; }
#define WIDENED(n) 1
INLINED const float *widened(const number *from, int64_t n, float *room) {
    (void)n, (void)room;
    return from;
}
#endif

/* e^x by 2^i · e^r, |r| ≤ ln 2 / 2, Taylor to r^6 / 720: relative error below 3e-7; 0 below −87, NaN stays NaN. */
static inline float exponential(float x) {
    float bound = x < -87.0f ? -87.0f : x;
    bound = bound > 88.0f ? 88.0f : bound;
    float shifted = bound * 1.44269504f + 12582912.0f;
    float whole = shifted - 12582912.0f;
    float r = (bound - whole * 0.693359375f) + whole * 2.12194440e-4f;
    float p = 1.0f + r * (1.0f + r * (0.5f + r * (1.0f / 6 + r * (1.0f / 24 + r * (1.0f / 120 + r * (1.0f / 720))))));
    uint32_t bits, zero; /* unsigned: a NaN's may overflow */
    float one = 12582912.0f, power;
    memcpy(&bits, &shifted, 4);
    memcpy(&zero, &one, 4);
    bits = (bits - zero + 127) << 23;
    memcpy(&power, &bits, 4);
    return x < -87.0f ? 0.0f : p * power;
}

/* Lanes added up, and the highest of them, by halves */
static inline float total(float lane[LANES]) {
    for (int n = LANES / 2; n; n /= 2)
        for (int l = 0; l < n; l++) lane[l] += lane[l + n];
    return lane[0];
}

static inline float topmost(float lane[LANES]) {
    for (int n = LANES / 2; n; n /= 2)
        for (int l = 0; l < n; l++) lane[l] = lane[l + n] > lane[l] ? lane[l + n] : lane[l];
    return lane[0];
}

/* A head normed where there is a weight, rotated by the angles of its position, rounded; returns the norm's scale. */
static inline float turn_head(const number *own, int64_t D, const float *weight, float eps, const float *c, const float *s,
                              number *y) {
    int64_t half = D / 2;
    float x[D], squares = 0, factor = 1;
#pragma omp simd reduction(+ : squares)
    for (int64_t j = 0; j < D; j++) {
        x[j] = wide(own[j]);
        squares += x[j] * x[j];
    }
    if (weight) {
        factor = 1 / sqrtf(squares / D + eps);
#pragma omp simd
        for (int64_t j = 0; j < D; j++) x[j] = x[j] * factor * weight[j];
    }
#pragma omp simd
    for (int64_t j = 0; j < half; j++) {
        y[j] = rounded(x[j] * c[j] - x[j + half] * s[j]);
        y[j + half] = rounded(x[j + half] * c[j + half] + x[j] * s[j + half]);
    }
    return factor;
}
