/* What the sampler does between matrix products: attention over kept keys, and the draw of a token.
 *
 * Letters as in fused_decode.py: R rows, K key heads, D head size, S slots for prompts of L tokens, T tokens of a response, V
 * vocabulary.
 */
#include "native.h"

typedef float lanes __attribute__((vector_size(LANES * sizeof(float)), may_alias, aligned(sizeof(float))));
#if defined(__clang__) || __GNUC__ >= 12
#define PICKED(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
typedef int32_t places __attribute__((vector_size(LANES * sizeof(int32_t))));
#define PICKED(a, b, ...) __builtin_shuffle(a, b, (places){__VA_ARGS__})
#endif
/* Lane i: of a where the bit of i that the name says is 0, of b where it is 1, the sum of the two lanes that differ in it. */
#define FOLD_1(a, b) (PICKED(a, b, 0, 17, 2, 19, 4, 21, 6, 23, 8, 25, 10, 27, 12, 29, 14, 31) + \
                      PICKED(a, b, 1, 16, 3, 18, 5, 20, 7, 22, 9, 24, 11, 26, 13, 28, 15, 30))
#define FOLD_2(a, b) (PICKED(a, b, 0, 1, 18, 19, 4, 5, 22, 23, 8, 9, 26, 27, 12, 13, 30, 31) + \
                      PICKED(a, b, 2, 3, 16, 17, 6, 7, 20, 21, 10, 11, 24, 25, 14, 15, 28, 29))
#define FOLD_4(a, b) (PICKED(a, b, 0, 1, 2, 3, 20, 21, 22, 23, 8, 9, 10, 11, 28, 29, 30, 31) + \
                      PICKED(a, b, 4, 5, 6, 7, 16, 17, 18, 19, 12, 13, 14, 15, 24, 25, 26, 27))
#define FOLD_8(a, b) (PICKED(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 24, 25, 26, 27, 28, 29, 30, 31) + \
                      PICKED(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23))

/* Lane j: own·some[j], where there are so many; else of the last. Numbers of a key that fill no lanes are left out. */
INLINED lanes scores_of(const float *restrict own, const float *restrict some, const int64_t m, const int64_t D) {
    lanes rows[LANES];
    for (int64_t j = 0; j < LANES; j++) {
        const float *key = some + (j < m ? j : m - 1) * D;
        rows[j] = *(const lanes *)own * *(const lanes *)key;
        for (int64_t i = LANES; i + LANES <= D; i += LANES) rows[j] += *(const lanes *)(own + i) * *(const lanes *)(key + i);
    }
    for (int64_t j = 0; j < 8; j++) rows[j] = FOLD_1(rows[2 * j], rows[2 * j + 1]);
    for (int64_t j = 0; j < 4; j++) rows[j] = FOLD_2(rows[2 * j], rows[2 * j + 1]);
    for (int64_t j = 0; j < 2; j++) rows[j] = FOLD_4(rows[2 * j], rows[2 * j + 1]);
    return FOLD_8(rows[0], rows[1]);
}

/* e[h, j] = q[h]·key j for neighbouring keys, which are widened once for all heads that share them. */
INLINED void score_keys(const float *restrict q, const number *restrict keys, int64_t n, const int64_t D, int64_t heads,
                        float *restrict e, int64_t stride) {
    float room[WIDENED(LANES * D)];
    for (int64_t first = 0; first < n; first += LANES) {
        int64_t m = n - first < LANES ? n - first : LANES;
        const float *some = widened(keys + first * D, m * D, room);
        for (int64_t h = 0; h < heads; h++) {
            const float *own = q + h * D;
            float *to = e + h * stride + first;
            lanes sums = {0};
            if (D >= LANES) sums = m == LANES ? scores_of(own, some, LANES, D) : scores_of(own, some, m, D);
            if (m == LANES) *(lanes *)to = sums;
            for (int64_t j = 0; m < LANES && j < m; j++) to[j] = sums[j];
            for (int64_t i = D - D % LANES; i < D; i++)
                for (int64_t j = 0; j < m; j++) to[j] += own[i] * some[j * D + i];
        }
    }
}

/* mixed[i] += Σ e[j]·value j[i] for the first `width` lanes of some values, of which even and odd ones are summed apart. */
INLINED void mix_some(const float *restrict e, const float *restrict some, int64_t m, const int64_t D, const int64_t width,
                      float *restrict mixed) {
    lanes even[width], odd[width];
    for (int64_t a = 0; a < width; a++) even[a] = ((const lanes *)mixed)[a], odd[a] = (lanes){0};
    int64_t j = 0;
    for (; j + 1 < m; j += 2)
        for (int64_t a = 0; a < width; a++) {
            even[a] += e[j] * ((const lanes *)(some + j * D))[a];
            odd[a] += e[j + 1] * ((const lanes *)(some + (j + 1) * D))[a];
        }
    if (j < m)
        for (int64_t a = 0; a < width; a++) even[a] += e[j] * ((const lanes *)(some + j * D))[a];
    for (int64_t a = 0; a < width; a++) ((lanes *)mixed)[a] = even[a] + odd[a];
}

/* mixed[h] += Σ e[h, j]·value j, likewise */
INLINED void mix_values(const float *restrict e, int64_t stride, const number *restrict values, int64_t n, const int64_t D,
                        int64_t heads, float *restrict mixed) {
    float room[WIDENED(LANES * D)];
    for (int64_t first = 0; first < n; first += LANES) {
        int64_t m = n - first < LANES ? n - first : LANES;
        const float *some = widened(values + first * D, m * D, room);
        for (int64_t h = 0; h < heads; h++) {
            const float *shares = e + h * stride + first;
            float *own = mixed + h * D;
            int64_t at = 0;
            for (; at + 4 * LANES <= D; at += 4 * LANES) mix_some(shares, some + at, m, D, 4, own + at);
            for (; at + LANES <= D; at += LANES) mix_some(shares, some + at, m, D, 1, own + at);
            for (; at < D; at++)
                for (int64_t j = 0; j < m; j++) own[at] += shares[j] * some[j * D + at];
        }
    }
}

/* The query heads of one key head over the seen part of their prompt and response. `e` has room for all scores. */
INLINED void attend_heads(const float *restrict q, int64_t heads, const int64_t D, const number *keys, const number *values,
                          int64_t n_prompt, const number *own_keys, const number *own_values, int64_t n_own, float factor,
                          float *restrict e, float *restrict mixed, number *restrict to) {
    int64_t n = n_prompt + n_own, stride = FULL(n);
    score_keys(q, keys, n_prompt, D, heads, e, stride);
    score_keys(q, own_keys, n_own, D, heads, e + n_prompt, stride);
    for (int64_t h = 0; h < heads; h++) {
        float *own = e + h * stride, peak[LANES], sum[LANES] = {0};
        for (int64_t j = n; j < stride; j++) own[j] = -INFINITY; /* whole vectors: what is left was slower than all before */
        for (int64_t l = 0; l < LANES; l++) peak[l] = -INFINITY;
        for (int64_t j = 0; j < stride; j += LANES)
#pragma omp simd
            for (int64_t l = 0; l < LANES; l++) peak[l] = own[j + l] > peak[l] ? own[j + l] : peak[l];
        float highest = topmost(peak);
        for (int64_t j = 0; j < stride; j += LANES)
#pragma omp simd
            for (int64_t l = 0; l < LANES; l++) {
                own[j + l] = exponential((own[j + l] - highest) * factor);
                sum[l] += own[j + l];
            }
        float share = 1 / total(sum);
        for (int64_t j = 0; j < stride; j += LANES)
#pragma omp simd
            for (int64_t l = 0; l < LANES; l++) own[j + l] *= share;
    }
    memset(mixed, 0, heads * D * sizeof(float));
    mix_values(e, stride, values, n_prompt, D, heads, mixed);
    mix_values(e + n_prompt, stride, own_values, n_own, D, heads, mixed);
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
        float *room = malloc(a->heads * (2 * D + L + T + LANES) * sizeof(float));
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
