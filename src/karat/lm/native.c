/* What a decoder block does between its matrix products, in one pass over memory each.
 *
 * Compiled where a C compiler is found (native.py), once with NARROW for products in bfloat16 and once without for
 * float32: "number" is what enters and leaves a product, everything else is float32. Rows are dealt to OpenMP's threads in
 * fixed shares, so that the same number of threads gives the same bits. Letters as in fused_block.py: n rows, d hidden size,
 * H heads, D head size, m MLP size, V vocabulary, P pieces, q and k their queries and keys.
 */
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

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
#else
typedef float number;
static inline float wide(number x) { return x; }
static inline number rounded(float x) { return x; }
#endif

/* e^x by 2^i · e^r, |r| ≤ ln 2 / 2, Taylor to r^6 / 720: relative error below 3e-7; 0 below −87, NaN stays NaN. */
static inline float exponential(float x) {
    float bound = x < -87.0f ? -87.0f : x;
    bound = bound > 88.0f ? 88.0f : bound;
    float shifted = bound * 1.44269504f + 12582912.0f;
    float whole = shifted - 12582912.0f;
    float r = (bound - whole * 0.693359375f) + whole * 2.12194440e-4f;
    float p = 1.0f + r * (1.0f + r * (0.5f + r * (1.0f / 6 + r * (1.0f / 24 + r * (1.0f / 120 + r * (1.0f / 720))))));
    int32_t bits, zero;
    float one = 12582912.0f, power;
    memcpy(&bits, &shifted, 4);
    memcpy(&zero, &one, 4);
    bits = (bits - zero + 127) << 23;
    memcpy(&power, &bits, 4);
    return x < -87.0f ? 0.0f : p * power;
}

void narrow_rows(const float *from, const int64_t *rows, int64_t n, int64_t d, number *to, int64_t stride) {
    PARALLEL(n * d)
    for (int64_t i = 0; i < n; i++) {
        const float *x = from + (rows ? rows[i] : i) * d;
        number *y = to + i * stride;
#pragma omp simd
        for (int64_t j = 0; j < d; j++) y[j] = rounded(x[j]);
    }
}

/* to[i] = from[i] + change[i], or for rows: to[rows[i]] = from[i] + change[i] */
void add_rows(const float *from, const number *change, const int64_t *rows, int64_t n, int64_t d, float *to) {
    PARALLEL(n * d)
    for (int64_t i = 0; i < n; i++) {
        const float *x = from + i * d;
        const number *c = change + i * d;
        float *y = to + (rows ? rows[i] : i) * d;
#pragma omp simd
        for (int64_t j = 0; j < d; j++) y[j] = x[j] + wide(c[j]);
    }
}

/* sum = x[rows] + change, normed = sum·scale·weight with scale = 1/√(mean(sum²) + eps) */
void norm_forward(const float *x, const number *change, const int64_t *rows, int64_t n, int64_t d, const float *weight,
                  float eps, float *sum, number *normed, float *scale) {
    PARALLEL(n * d)
    for (int64_t i = 0; i < n; i++) {
        const float *own = x + (rows ? rows[i] : i) * d;
        if (change) {
            const number *c = change + i * d;
            float *s = sum + i * d;
#pragma omp simd
            for (int64_t j = 0; j < d; j++) s[j] = own[j] + wide(c[j]);
            own = s;
        }
        float squares = 0;
#pragma omp simd reduction(+ : squares)
        for (int64_t j = 0; j < d; j++) squares += own[j] * own[j];
        float factor = 1 / sqrtf(squares / d + eps);
        number *y = normed + i * d;
#pragma omp simd
        for (int64_t j = 0; j < d; j++) y[j] = rounded(own[j] * factor * weight[j]);
        scale[i] = factor;
    }
}

/* The threads' shares of a weight's gradient, added up in their order. */
static void add_shares(const float *shares, int n_shares, int64_t d, float *total) {
    memset(total, 0, d * sizeof(float));
    for (int t = 0; t < n_shares; t++)
        for (int64_t j = 0; j < d; j++) total[j] += shares[t * d + j];
}

/* of_x = residual + s·(w·g − x̂·mean(w·g·x̂)) with x̂ = s·x; of_weight = Σ g·x̂. `at` says where the residual of a row
 * stands, −1 = nowhere; narrow_of_x (may be absent) is of_x rounded. Returns 0 where memory is short. */
int norm_backward(const float *x, const float *scale, int64_t n, int64_t d, const float *weight, const number *grad,
                  const float *residual, const int64_t *at, float *of_x, number *narrow_of_x, float *of_weight) {
    int n_shares = n * d > SMALL ? omp_get_max_threads() : 1;
    float *shares = calloc((size_t)n_shares * d, sizeof(float));
    if (!shares) return 0;
#pragma omp parallel num_threads(n_shares)
    {
        float *share = shares + (int64_t)omp_get_thread_num() * d;
#pragma omp for schedule(static)
        for (int64_t i = 0; i < n; i++) {
            const float *own = x + i * d;
            const number *g = grad + i * d;
            float *y = of_x + i * d, factor = scale[i], mean = 0;
            int64_t place = at ? at[i] : i;
#pragma omp simd reduction(+ : mean)
            for (int64_t j = 0; j < d; j++) {
                float product = wide(g[j]) * own[j] * factor;
                share[j] += product;
                mean += product * weight[j];
            }
            mean /= d;
            if (place < 0) {
#pragma omp simd
                for (int64_t j = 0; j < d; j++) y[j] = factor * (wide(g[j]) * weight[j] - own[j] * factor * mean);
            } else {
                const float *r = residual + place * d;
#pragma omp simd
                for (int64_t j = 0; j < d; j++) y[j] = r[j] + factor * (wide(g[j]) * weight[j] - own[j] * factor * mean);
            }
            if (narrow_of_x) {
                number *z = narrow_of_x + i * d;
#pragma omp simd
                for (int64_t j = 0; j < d; j++) z[j] = rounded(y[j]);
            }
        }
    }
    add_shares(shares, n_shares, d, of_weight);
    free(shares);
    return 1;
}

/* Heads of queries or keys: normed where there is a weight, rotated by the angles of their position, rounded. */
void heads_forward(const number *from, int64_t stride, int64_t n, int64_t H, int64_t D,
                   const float *weight, float eps, const float *cosine, const float *sine, number *to, float *scale) {
    int64_t half = D / 2;
    PARALLEL(n * H * D)
    for (int64_t i = 0; i < n; i++) {
        const float *c = cosine + i * D, *s = sine + i * D;
        float x[D];
        for (int64_t h = 0; h < H; h++) {
            const number *own = from + i * stride + h * D;
            number *y = to + (i * H + h) * D;
            float squares = 0;
#pragma omp simd reduction(+ : squares)
            for (int64_t j = 0; j < D; j++) {
                x[j] = wide(own[j]);
                squares += x[j] * x[j];
            }
            if (weight) {
                float factor = 1 / sqrtf(squares / D + eps);
                scale[i * H + h] = factor;
#pragma omp simd
                for (int64_t j = 0; j < D; j++) x[j] = x[j] * factor * weight[j];
            }
#pragma omp simd
            for (int64_t j = 0; j < half; j++) {
                y[j] = rounded(x[j] * c[j] - x[j + half] * s[j]);
                y[j + half] = rounded(x[j + half] * c[j + half] + x[j] * s[j + half]);
            }
        }
    }
}

/* The way back: from the gradient of rotated heads, float32 by row or, with `places`, numbers at places[row]. */
int heads_backward(const number *from, int64_t stride, int64_t n, int64_t H, int64_t D,
                   const float *weight, const float *cosine, const float *sine, const float *scale, const float *grad,
                   const number *apart, const int64_t *places, number *to, int64_t to_stride, float *of_weight) {
    int64_t half = D / 2;
    int n_shares = n * H * D > SMALL ? omp_get_max_threads() : 1;
    float *shares = calloc((size_t)n_shares * D, sizeof(float));
    if (!shares) return 0;
#pragma omp parallel num_threads(n_shares)
    {
        float *share = shares + (int64_t)omp_get_thread_num() * D, g[D], back[D];
#pragma omp for schedule(static)
        for (int64_t i = 0; i < n; i++) {
            const float *c = cosine + i * D, *s = sine + i * D;
            for (int64_t h = 0; h < H; h++) {
                int64_t row = i * H + h;
                if (places) {
                    const number *own = apart + places[row] * D;
#pragma omp simd
                    for (int64_t j = 0; j < D; j++) g[j] = wide(own[j]);
                } else {
                    memcpy(g, grad + row * D, D * sizeof(float));
                }
#pragma omp simd
                for (int64_t j = 0; j < half; j++) {
                    back[j] = g[j] * c[j] + g[j + half] * s[j + half];
                    back[j + half] = g[j + half] * c[j + half] - g[j] * s[j];
                }
                number *y = to + i * to_stride + h * D;
                if (!weight) {
#pragma omp simd
                    for (int64_t j = 0; j < D; j++) y[j] = rounded(back[j]);
                    continue;
                }
                const number *own = from + i * stride + h * D;
                float factor = scale[row], mean = 0;
#pragma omp simd reduction(+ : mean)
                for (int64_t j = 0; j < D; j++) {
                    float product = back[j] * wide(own[j]) * factor;
                    share[j] += product;
                    mean += product * weight[j];
                }
                mean /= D;
#pragma omp simd
                for (int64_t j = 0; j < D; j++)
                    y[j] = rounded(factor * (back[j] * weight[j] - wide(own[j]) * factor * mean));
            }
        }
    }
    if (weight) add_shares(shares, n_shares, D, of_weight);
    free(shares);
    return 1;
}

/* to[i] = the head at[i] of rows laid out [position, head]: at = position·H + head */
void gather_heads(const number *from, int64_t stride, int64_t H, int64_t D, const int64_t *at, int64_t n, number *to) {
    PARALLEL(n * D)
    for (int64_t i = 0; i < n; i++)
        memcpy(to + i * D, from + (at[i] / H) * stride + (at[i] % H) * D, D * sizeof(number));
}

/* to[at] += from, [P, H, k] rows: a head is one thread's, whatever pieces share it */
void scatter_heads(const number *from, const int64_t *at, int64_t P, int64_t H, int64_t k, int64_t D, float *to) {
    PARALLEL(P * H * k * D)
    for (int64_t h = 0; h < H; h++)
        for (int64_t p = 0; p < P; p++)
            for (int64_t i = 0; i < k; i++) {
                int64_t row = (p * H + h) * k + i;
                const number *x = from + row * D;
                float *y = to + at[row] * D;
#pragma omp simd
                for (int64_t j = 0; j < D; j++) y[j] += wide(x[j]);
            }
}

/* Softmax of scores·factor over keys first[p, i] … last[p, i] − 1, 0 elsewhere; in place. Scores are [P, H, q, k]. */
int attend_forward(number *scores, int64_t P, int64_t H, int64_t q, int64_t k, const int32_t *first, const int32_t *last,
                   float factor) {
    int short_of_memory = 0;
#pragma omp parallel SHARED(P *H *q *k) reduction(| : short_of_memory)
    {
        float *e = malloc(k * sizeof(float));
        short_of_memory |= !e;
#pragma omp for schedule(static)
        for (int64_t row = 0; row < P * H * q; row++) {
            if (!e) continue;
            int64_t seen = (row / (H * q)) * q + row % q, from = first[seen], to = last[seen];
            number *own = scores + row * k;
            float peak = -INFINITY, sum = 0;
#pragma omp simd reduction(max : peak)
            for (int64_t j = from; j < to; j++) {
                e[j] = wide(own[j]) * factor;
                peak = e[j] > peak ? e[j] : peak;
            }
#pragma omp simd reduction(+ : sum)
            for (int64_t j = from; j < to; j++) {
                e[j] = exponential(e[j] - peak);
                sum += e[j];
            }
            float share = 1 / sum;
            for (int64_t j = 0; j < from; j++) own[j] = 0;
#pragma omp simd
            for (int64_t j = from; j < to; j++) own[j] = rounded(e[j] * share);
            for (int64_t j = to; j < k; j++) own[j] = 0;
        }
        free(e);
    }
    return !short_of_memory;
}

/* grad = factor·p·(grad − Σ grad·p), in place; where p is 0, 0 */
void attend_backward(const number *probs, number *grad, int64_t rows, int64_t k, float factor) {
    PARALLEL(rows *k)
    for (int64_t row = 0; row < rows; row++) {
        const number *p = probs + row * k;
        number *g = grad + row * k;
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < k; j++) sum += wide(g[j]) * wide(p[j]);
#pragma omp simd
        for (int64_t j = 0; j < k; j++) g[j] = rounded(factor * wide(p[j]) * (wide(g[j]) - sum));
    }
}

/* silu(gate)·up of rows [gate, up] */
void gate_forward(const number *both, int64_t n, int64_t m, number *to) {
    PARALLEL(n * m)
    for (int64_t i = 0; i < n; i++) {
        const number *gate = both + i * 2 * m, *up = gate + m;
        number *y = to + i * m;
#pragma omp simd
        for (int64_t j = 0; j < m; j++) {
            float g = wide(gate[j]);
            y[j] = rounded(g / (1 + exponential(-g)) * wide(up[j]));
        }
    }
}

/* The gradients of [gate, up], and silu(gate)·up once more for that of the next layer's weight. */
void gate_backward(const number *both, const number *grad, int64_t n, int64_t m, number *of_both, number *again) {
    PARALLEL(n * m)
    for (int64_t i = 0; i < n; i++) {
        const number *gate = both + i * 2 * m, *up = gate + m, *own = grad + i * m;
        number *of_gate = of_both + i * 2 * m, *of_up = of_gate + m, *y = again + i * m;
#pragma omp simd
        for (int64_t j = 0; j < m; j++) {
            float g = wide(gate[j]), u = wide(up[j]), d = wide(own[j]);
            float s = 1 / (1 + exponential(-g)), silu = g * s;
            of_gate[j] = rounded(d * u * s * (1 + g - silu));
            of_up[j] = rounded(d * silu);
            y[j] = rounded(silu * u);
        }
    }
}

/* logits → probabilities in place, but p − 1 at the token of a row; log p there in float32. */
int choose_forward(number *logits, const int64_t *tokens, int64_t n, int64_t V, const float *bias, float temperature,
                   float *logprobs) {
    int short_of_memory = 0;
#pragma omp parallel SHARED(n *V) reduction(| : short_of_memory)
    {
        float *e = malloc(V * sizeof(float));
        short_of_memory |= !e;
#pragma omp for schedule(static)
        for (int64_t i = 0; i < n; i++) {
            if (!e) continue;
            number *own = logits + i * V;
            float peak = -INFINITY, sum = 0;
            if (bias)
#pragma omp simd reduction(max : peak)
                for (int64_t j = 0; j < V; j++) {
                    e[j] = (wide(own[j]) + bias[j]) / temperature;
                    peak = e[j] > peak ? e[j] : peak;
                }
            else
#pragma omp simd reduction(max : peak)
                for (int64_t j = 0; j < V; j++) {
                    e[j] = wide(own[j]) / temperature;
                    peak = e[j] > peak ? e[j] : peak;
                }
            float chosen = e[tokens[i]] - peak;
#pragma omp simd reduction(+ : sum)
            for (int64_t j = 0; j < V; j++) {
                e[j] = exponential(e[j] - peak);
                sum += e[j];
            }
            float share = 1 / sum;
#pragma omp simd
            for (int64_t j = 0; j < V; j++) own[j] = rounded(e[j] * share);
            logprobs[i] = chosen - logf(sum);
            own[tokens[i]] = rounded(expm1f(logprobs[i]));
        }
        free(e);
    }
    return !short_of_memory;
}
