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

#define LANES 16 /* numbers that are added up side by side, and keys that are widened at a time */
#define BLOCK 64 /* tokens whose weights are summed at a time, as in sampling.py */
#define INLINED static inline __attribute__((always_inline)) /* with a constant D the loops over it are unrolled */
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

/* Heads of queries or keys. */
void heads_forward(const number *from, int64_t stride, int64_t n, int64_t H, int64_t D,
                   const float *weight, float eps, const float *cosine, const float *sine, number *to, float *scale) {
    PARALLEL(n * H * D)
    for (int64_t i = 0; i < n; i++)
        for (int64_t h = 0; h < H; h++) {
            int64_t row = i * H + h;
            float factor = turn_head(from + i * stride + h * D, D, weight, eps, cosine + i * D, sine + i * D, to + row * D);
            if (weight) scale[row] = factor;
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

/* silu(gate)·up; a row of either begins `stride` numbers behind the one before */
void gate_forward(const number *gates, const number *ups, int64_t stride, int64_t n, int64_t m, number *to) {
    PARALLEL(n * m)
    for (int64_t i = 0; i < n; i++) {
        const number *gate = gates + i * stride, *up = ups + i * stride;
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

/* e[h, j] = q[h]·key j for neighbouring keys, which are widened once for all heads that share them. */
INLINED void score_keys(const float *restrict q, const number *restrict keys, int64_t n, const int64_t D, int64_t heads,
                        float *restrict e, int64_t stride) {
    float room[WIDENED(LANES * D)];
    for (int64_t first = 0; first < n; first += LANES) {
        int64_t m = n - first < LANES ? n - first : LANES;
        const float *some = widened(keys + first * D, m * D, room);
        for (int64_t h = 0; h < heads; h++)
            for (int64_t j = 0; j < m; j++) {
                float sum = 0;
#pragma omp simd reduction(+ : sum)
                for (int64_t i = 0; i < D; i++) sum += q[h * D + i] * some[j * D + i];
                e[h * stride + first + j] = sum;
            }
    }
}

/* mixed[h] += Σ e[h, j]·value j, likewise */
INLINED void mix_values(const float *restrict e, int64_t stride, const number *restrict values, int64_t n, const int64_t D,
                        int64_t heads, float *restrict mixed) {
    float room[WIDENED(LANES * D)];
    for (int64_t first = 0; first < n; first += LANES) {
        int64_t m = n - first < LANES ? n - first : LANES;
        const float *some = widened(values + first * D, m * D, room);
        for (int64_t h = 0; h < heads; h++)
            for (int64_t at = 0; at < D; at += LANES) {
                int64_t width = D - at < LANES ? D - at : LANES;
                float sum[LANES], *own = mixed + h * D + at;
                memcpy(sum, own, width * sizeof(float));
                for (int64_t j = 0; j < m; j++) {
                    float share = e[h * stride + first + j];
#pragma omp simd
                    for (int64_t i = 0; i < width; i++) sum[i] += share * some[j * D + at + i];
                }
                memcpy(own, sum, width * sizeof(float));
            }
    }
}

/* The query heads of one key head over the seen part of their prompt and response. `e` has room for all scores. */
INLINED void attend_heads(const float *restrict q, int64_t heads, const int64_t D, const number *keys, const number *values,
                          int64_t n_prompt, const number *own_keys, const number *own_values, int64_t n_own, float factor,
                          float *restrict e, float *restrict mixed, number *restrict to) {
    int64_t n = n_prompt + n_own;
    score_keys(q, keys, n_prompt, D, heads, e, n);
    score_keys(q, own_keys, n_own, D, heads, e + n_prompt, n);
    for (int64_t h = 0; h < heads; h++) {
        float *own = e + h * n, peak = -INFINITY, sum = 0;
#pragma omp simd reduction(max : peak)
        for (int64_t j = 0; j < n; j++) peak = own[j] > peak ? own[j] : peak;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < n; j++) {
            own[j] = exponential((own[j] - peak) * factor);
            sum += own[j];
        }
        float share = 1 / sum;
#pragma omp simd
        for (int64_t j = 0; j < n; j++) own[j] *= share;
    }
    memset(mixed, 0, heads * D * sizeof(float));
    mix_values(e, n, values, n_prompt, D, heads, mixed);
    mix_values(e + n_prompt, n, own_values, n_own, D, heads, mixed);
    for (int64_t i = 0; i < heads * D; i++) to[i] = rounded(mixed[i]);
}

/* Heads of tokens as products leave them, and what turns them: a token's row begins `*_stride` numbers behind the last. */
typedef struct {
    const number *q, *k, *v;
    int64_t q_stride, k_stride, v_stride, heads, K, D;
    const float *weight_q, *weight_k;
    float eps_q, eps_k;
    const float *cosine, *sine;
    float factor;
} given_heads;

/* Key and value of head g of token i, turned, to where they are kept. */
static inline void keep_head(const given_heads *a, int64_t i, int64_t g, number *key, number *value) {
    turn_head(a->k + i * a->k_stride + g * a->D, a->D, a->weight_k, a->eps_k, a->cosine + i * a->D, a->sine + i * a->D, key);
    memcpy(value, a->v + i * a->v_stride + g * a->D, a->D * sizeof(number));
}

/* Attention of the query heads that share key head g of token i; `room` is for 2·heads·D numbers and all scores. */
static inline void attend_token(const given_heads *a, int64_t i, int64_t g, const number *keys, const number *values,
                                int64_t n_prompt, const number *own_keys, const number *own_values, int64_t n_own,
                                float *room, number *to) {
    int64_t heads = a->heads, D = a->D;
    float *asks = room, *mixed = asks + heads * D, *e = mixed + heads * D;
    for (int64_t h = 0; h < heads; h++) {
        number turned[D];
        turn_head(a->q + i * a->q_stride + (g * heads + h) * D, D, a->weight_q, a->eps_q, a->cosine + i * D,
                  a->sine + i * D, turned);
        for (int64_t j = 0; j < D; j++) asks[h * D + j] = wide(turned[j]);
    }
#define ATTEND(size) attend_heads(asks, heads, size, keys, values, n_prompt, own_keys, own_values, n_own, a->factor, e, mixed, to)
    if (D == 64) ATTEND(64);
    else if (D == 128) ATTEND(128);
    else ATTEND(D);
}

/* A token of each row: its queries and keys normed and rotated, its keys and values stored at `offsets` of the response's
 * buffers [R, K, T, D], its heads' attention over its prompt, `lengths` tokens at `slots` of [S, K, L, D], and its
 * response. Window 0 = none. Returns 0 where memory is short. */
int decode_rows(const given_heads *a, int64_t R, const number *prompt_keys, const number *prompt_values, int64_t L,
                const int64_t *slots, const int64_t *lengths, number *keys, number *values, int64_t T,
                const int64_t *offsets, int64_t window, number *to) {
    int64_t K = a->K, D = a->D;
    int short_of_memory = 0;
#pragma omp parallel SHARED(R *K *a->heads *D * 16) reduction(| : short_of_memory)
    {
        float *room = malloc(a->heads * (2 * D + L + T) * sizeof(float));
        short_of_memory |= !room;
#pragma omp for schedule(static)
        for (int64_t unit = 0; unit < R * K; unit++) {
            if (!room) continue;
            int64_t r = unit / K, g = unit % K, at = (slots[r] * K + g) * L, n_own = offsets[r] + 1, n_prompt = lengths[r];
            number *own_keys = keys + unit * T * D, *own_values = values + unit * T * D;
            keep_head(a, r, g, own_keys + offsets[r] * D, own_values + offsets[r] * D);
            if (window && n_prompt + n_own > window) {
                int64_t unseen = n_prompt + n_own - window, of_prompt = unseen < n_prompt ? unseen : n_prompt;
                at += of_prompt, n_prompt -= of_prompt, unseen -= of_prompt, n_own -= unseen;
                own_keys += unseen * D, own_values += unseen * D;
            }
            attend_token(a, r, g, prompt_keys + at * D, prompt_values + at * D, n_prompt, own_keys, own_values, n_own, room,
                         to + unit * a->heads * D);
        }
        free(room);
    }
    return !short_of_memory;
}

/* Whole prompts side by side, n tokens: keys and values stored at `columns` of `slots`, then the causal attention of those
 * at `rows` (or of all), n_read of them. */
int prefill_rows(const given_heads *a, int64_t n, number *keys, number *values, int64_t L, const int64_t *slots,
                 const int64_t *columns, const int64_t *rows, int64_t n_read, int64_t window, number *to) {
    int64_t K = a->K, D = a->D;
    int short_of_memory = 0;
#pragma omp parallel SHARED(n *K *a->heads *D) reduction(| : short_of_memory)
    {
        float *room = malloc(a->heads * (2 * D + L) * sizeof(float));
        short_of_memory |= !room;
#pragma omp for schedule(static)
        for (int64_t unit = 0; unit < n * K; unit++) {
            int64_t i = unit / K, g = unit % K, at = ((slots[i] * K + g) * L + columns[i]) * D;
            keep_head(a, i, g, keys + at, values + at);
        }
#pragma omp for schedule(static, 16)
        for (int64_t unit = 0; unit < n_read * K; unit++) {
            if (!room) continue;
            int64_t i = rows ? rows[unit / K] : unit / K, g = unit % K, n_seen = columns[i] + 1;
            int64_t first = window && n_seen > window ? n_seen - window : 0, at = ((slots[i] * K + g) * L + first) * D;
            attend_token(a, i, g, keys + at, values + at, n_seen - first, NULL, NULL, 0, room, to + unit * a->heads * D);
        }
        free(room);
    }
    return !short_of_memory;
}

/* A token of each row of logits: the first whose running sum of weights w = e^(logit − peak) is above uniform·Σ w, and
 * log(w/Σ w). Sums are double, over blocks of tokens, and within the chosen block one by one, as in sampling.draw_tokens. */
int draw_rows(const float *logits, int64_t stride, int64_t R, int64_t V, const double *uniforms, int64_t *tokens,
              float *logprobs) {
    int64_t n_blocks = (V + BLOCK - 1) / BLOCK;
    int short_of_memory = 0;
#pragma omp parallel SHARED(R *V) reduction(| : short_of_memory)
    {
        double *edges = malloc(n_blocks * sizeof(double));
        short_of_memory |= !edges;
#pragma omp for schedule(static)
        for (int64_t r = 0; r < R; r++) {
            if (!edges) continue;
            const float *own = logits + r * stride;
            float peak = -INFINITY;
#pragma omp simd reduction(max : peak)
            for (int64_t j = 0; j < V; j++) peak = own[j] > peak ? own[j] : peak;
            double total = 0;
            for (int64_t b = 0; b < n_blocks; b++) {
                int64_t first = b * BLOCK, n = V - first < BLOCK ? V - first : BLOCK;
                double sum = 0;
#pragma omp simd reduction(+ : sum)
                for (int64_t j = 0; j < n; j++) sum += exponential(own[first + j] - peak);
                edges[b] = total += sum;
            }
            double target = uniforms[r] * total;
            int64_t block = 0;
            while (block < n_blocks - 1 && !(edges[block] > target)) block++;
            int64_t chosen = block * BLOCK, end = chosen + BLOCK < V ? chosen + BLOCK : V;
            double running = block ? edges[block - 1] : 0;
            float weight = 0;
            /* rounding may leave the last sum a hair below the target: then the block's last possible token is meant */
            for (int64_t j = block * BLOCK; j < end && !(running > target); j++) {
                float w = exponential(own[j] - peak);
                if (!(w > 0)) continue;
                running += w;
                chosen = j;
                weight = w;
            }
            tokens[r] = chosen;
            logprobs[r] = total == total ? (float)log(weight / total) : NAN;
        }
        free(edges);
    }
    return !short_of_memory;
}
