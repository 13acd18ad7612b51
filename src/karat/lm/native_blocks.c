/* What a decoder block does between its matrix products, in one pass over memory each.
 *
 * Letters as in fused_block.py: n rows, d hidden size, H heads, D head size, m MLP size, V vocabulary, P pieces, q and k their
 * queries and keys.
 */
#include "native.h"

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

/* to[j][i] = from[i][j] of a square of LANES rows and columns, or what there is of one */
static void turn_square(const float *from, int64_t d, int64_t height, int64_t width, float *to, int64_t n) {
    if (height == LANES && width == LANES) {
        float square[LANES][LANES];
        for (int r = 0; r < LANES; r++)
            for (int c = 0; c < LANES; c++) square[c][r] = from[r * d + c];
        for (int c = 0; c < LANES; c++) memcpy(to + c * n, square[c], sizeof square[c]);
    } else
        for (int64_t c = 0; c < width; c++)
            for (int64_t r = 0; r < height; r++) to[c * n + r] = from[r * d + c];
}

/* to[j][i] = from[i][j] of n rows of d numbers, by pieces that a core's nearest memory holds */
void turn_rows(const float *from, int64_t n, int64_t d, float *to) {
#pragma omp parallel for collapse(2) schedule(static) if (n * d > SMALL)
    for (int64_t i = 0; i < n; i += BLOCK)
        for (int64_t j = 0; j < d; j += BLOCK)
            for (int64_t r = i; r < n && r < i + BLOCK; r += LANES)
                for (int64_t c = j; c < d && c < j + BLOCK; c += LANES)
                    turn_square(from + r * d + c, d, n - r < LANES ? n - r : LANES, d - c < LANES ? d - c : LANES,
                                to + c * n + r, n);
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

/* The way back: from the gradient of rotated heads in float32. */
int heads_backward(const number *from, int64_t stride, int64_t n, int64_t H, int64_t D,
                   const float *weight, const float *cosine, const float *sine, const float *scale, const float *grad,
                   number *to, int64_t to_stride, float *of_weight) {
    int64_t half = D / 2;
    int n_shares = n * H * D > SMALL ? omp_get_max_threads() : 1;
    float *shares = calloc((size_t)n_shares * D, sizeof(float));
    if (!shares) return 0;
#pragma omp parallel num_threads(n_shares)
    {
        float *share = shares + (int64_t)omp_get_thread_num() * D, back[D];
#pragma omp for schedule(static)
        for (int64_t i = 0; i < n; i++) {
            const float *c = cosine + i * D, *s = sine + i * D;
            for (int64_t h = 0; h < H; h++) {
                int64_t row = i * H + h;
                const float *g = grad + row * D;
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

/* The gradients of [gate, up], and silu(gate)·up once more for that of the next layer's weight; it may take grad's place. */
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
