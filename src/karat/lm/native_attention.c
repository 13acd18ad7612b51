/* Attention over the trees of a flat row: each tree and key head by itself, a few queries against the keys that they see.
 *
 * Letters: L flat positions, H query heads, K key heads, G = H/K, D head size, W numbers of a head with filler behind it, T
 * positions of a tree; of a block of queries: R rows, a row for each position and head.
 *
 * A block of queries is one thread's, backward a tree and key head, so that any number of threads gives the same bits. What
 * comes in is widened first; scores, probabilities and sums are float32. Source: Dao et al. 2022, arXiv:2205.14135, the
 * probabilities that are made again from scores and the logarithm of their sum; whole rows of scores instead of a running sum.
 */
#include "native.h"

#if defined(__AVX512F__)
#define LANE 16
#define WIDE 4 /* vectors of a corner's row: ROWS·WIDE sums, WIDE factors and one more must fit into the registers */
#elif defined(__AVX__)
#define LANE 8
#define WIDE 2
#elif defined(__aarch64__)
#define LANE 4
#define WIDE 4
#else
#define LANE 4
#define WIDE 2
#endif
#define ROWS 6
#define MOST_ROWS 30 /* of a block of queries, if a position has no more heads */
#define LEAST_PART 256 /* positions of a tree for which it pays to lay out keys and values once more */

typedef float vector __attribute__((vector_size(LANE * sizeof(float))));
typedef float anywhere __attribute__((vector_size(LANE * sizeof(float)), aligned(sizeof(float)), may_alias));

typedef struct {
    const number *q, *k, *v; /* of position i: q + i·q_stride … */
    int64_t q_stride, k_stride, v_stride, heads, key_heads, size;
    const int32_t *pieces; /* [P, 4]: first position that asks, the one behind the last, first and number of the prompt's keys */
    const int32_t *trees;  /* [trees + 1]: the piece with which each begins */
    int64_t n_trees, window; /* positions that one sees at most */
    const uint8_t *read; /* [L]: at which the output is used; absent = everywhere */
    float scale;
} Asked;

/* What a tree and a key head are worked on in. */
typedef struct {
    int64_t n, width, W;               /* T, T with filler, D with filler */
    float *keys_across, *values_across; /* [W, width] */
    float *keys, *values, *of_keys, *of_values; /* [width, W] */
    float *q, *grad, *found;           /* [R, W] */
    float *scores, *of_scores;         /* [R, two ranges with filler] */
    float *room;
} Desk;

/* A block of queries: neighbouring positions of a piece, and which of the tree's keys they see. */
typedef struct {
    int64_t first, n, rows;           /* first position in the tree, positions, rows */
    int64_t from[2], n_seen[2], at[2]; /* first key of either range, how many, where their scores begin */
    int64_t stride;                   /* of a row of scores */
} Block;

/* c[i, j] (+)= Σ_t a[i, t]·b[t, j] for `rows` rows and `vectors` vectors of columns, all sums in registers */
INLINED void corner(const int rows, const int vectors, const float *a, int64_t a_i, int64_t a_t, const float *b, int64_t b_t,
                    float *c, int64_t c_i, int64_t n_t, int add) {
    vector sum[ROWS][WIDE];
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 8
        for (int j = 0; j < vectors; j++) {
            sum[i][j] = (vector){0};
            if (add) sum[i][j] = *(const anywhere *)(c + i * c_i + j * LANE);
        }
    for (int64_t t = 0; t < n_t; t++) {
        vector factor[WIDE];
#pragma GCC unroll 8
        for (int j = 0; j < vectors; j++) factor[j] = *(const anywhere *)(b + t * b_t + j * LANE);
#pragma GCC unroll 8
        for (int i = 0; i < rows; i++)
#pragma GCC unroll 8
            for (int j = 0; j < vectors; j++) sum[i][j] += a[i * a_i + t * a_t] * factor[j];
    }
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 8
        for (int j = 0; j < vectors; j++) *(anywhere *)(c + i * c_i + j * LANE) = sum[i][j];
}

#define CORNERS(rows)                                                                                                   \
    for (; j + WIDE * LANE <= n_j; j += WIDE * LANE) corner(rows, WIDE, a, a_i, a_t, b + j, b_t, c + j, c_i, n_t, add); \
    for (; j < n_j; j += LANE) corner(rows, 1, a, a_i, a_t, b + j, b_t, c + j, c_i, n_t, add);

/* The same for n_i rows and n_j columns, n_j a multiple of LANE */
static void multiply(const float *a, int64_t a_i, int64_t a_t, const float *b, int64_t b_t, float *c, int64_t c_i, int64_t n_i,
                     int64_t n_t, int64_t n_j, int add) {
    for (; n_i > 0; n_i -= ROWS, a += ROWS * a_i, c += ROWS * c_i) {
        int64_t j = 0;
        switch (n_i) {
        case 1: CORNERS(1) break;
        case 2: CORNERS(2) break;
        case 3: CORNERS(3) break;
        case 4: CORNERS(4) break;
        case 5: CORNERS(5) break;
        default: CORNERS(ROWS)
        }
    }
}

/* [n, D] heads of a tree widened, with filler behind D and n; and the same across */
static void take(const number *from, int64_t stride, const Desk *desk, int64_t D, float *to, float *across) {
    for (int64_t i = 0; i < desk->width; i++) {
        float *y = to + i * desk->W;
        memset(y, 0, desk->W * sizeof(float));
        if (i < desk->n)
            for (int64_t j = 0; j < D; j++) y[j] = wide(from[i * stride + j]);
    }
    if (across)
        for (int64_t i = 0; i < desk->width; i += LANES)
            for (int64_t j = 0; j < desk->W; j++)
                for (int64_t l = 0; l < LANES; l++) across[j * desk->width + i + l] = to[(i + l) * desk->W + j];
}

/* Of the keys that position i (in the tree) of a piece sees, the first of either range. */
static inline void begins(const int32_t *piece, int64_t origin, int64_t window, int64_t i, int64_t from[2]) {
    int64_t own = piece[0] - origin, n_prompt = piece[3], over = n_prompt + i + 1 - own - window;
    over = over > 0 ? over : 0;
    int64_t of_prompt = over < n_prompt ? over : n_prompt;
    from[0] = piece[2] - origin + of_prompt;
    from[1] = own + over - of_prompt;
}

static Block block_of(const Asked *asked, const int32_t *piece, int64_t origin, int64_t first, int64_t n) {
    Block block = {first, n, n * (asked->heads / asked->key_heads), {0}, {0}, {0}, 0};
    begins(piece, origin, asked->window, first, block.from);
    block.n_seen[0] = piece[2] - origin + piece[3] - block.from[0];
    block.n_seen[1] = first + n - block.from[1];
    block.at[1] = FULL(block.n_seen[0]);
    block.stride = block.at[1] + FULL(block.n_seen[1]);
    return block;
}

/* Rows of a position's heads gathered from [L, H·D], widened. */
static void take_rows(const number *from, int64_t stride, const Asked *asked, const Block *block, int64_t W, float *to) {
    int64_t D = asked->size, G = asked->heads / asked->key_heads;
    for (int64_t row = 0; row < block->rows; row++) {
        const number *x = from + (block->first + row / G) * stride + row % G * D;
        float *y = to + row * W;
        for (int64_t j = 0; j < D; j++) y[j] = wide(x[j]);
        for (int64_t j = D; j < W; j++) y[j] = 0;
    }
}

/* rows·(keys or values) of both ranges */
static void across_both(const Block *block, const Desk *desk, const float *rows, const float *across, float *scores) {
    for (int part = 0; part < 2; part++)
        multiply(rows, desk->W, 1, across + block->from[part], desk->width, scores + block->at[part], block->stride, block->rows,
                 desk->W, FULL(block->n_seen[part]), 0);
}

/* Where a row's keys stand among its block's scores: [edge[0], edge[1]) and [edge[2], edge[3]). */
static inline void edges_of(const Asked *asked, const int32_t *piece, int64_t origin, const Block *block, int64_t position,
                            int32_t edge[4]) {
    int64_t from[2];
    begins(piece, origin, asked->window, position, from);
    for (int part = 0; part < 2; part++) edge[2 * part] = block->at[part] + from[part] - block->from[part];
    edge[1] = block->n_seen[0];
    edge[3] = block->at[1] + position + 1 - block->from[1];
}

/* Whether a row sees key j of its block's scores; no branch, so that whole vectors can be asked. */
static inline int is_seen(const int32_t edge[4], int32_t j) {
    return ((j >= edge[0]) & (j < edge[1])) | ((j >= edge[2]) & (j < edge[3]));
}

/* e^(score·scale − shift) where a key is seen, 0 elsewhere; returns the sum. Whole vectors, filler too: numbers one by one
 * behind the last whole vector of a range took longer than all others. */
static inline float raised(float *own, const int32_t edge[4], int32_t k, float scale, float shift) {
    float sum[LANES] = {0};
    for (int32_t i = 0; i < k; i += LANES)
#pragma omp simd
        for (int32_t l = 0; l < LANES; l++) {
            float e = exponential(own[i + l] * scale - shift);
            own[i + l] = is_seen(edge, i + l) ? e : 0;
            sum[l] += own[i + l];
        }
    return total(sum);
}

static inline float highest(const float *own, const int32_t edge[4], int32_t k, float scale) {
    float peak[LANES];
    for (int l = 0; l < LANES; l++) peak[l] = -INFINITY;
    for (int32_t i = 0; i < k; i += LANES)
#pragma omp simd
        for (int32_t l = 0; l < LANES; l++) {
            float score = is_seen(edge, i + l) ? own[i + l] * scale : -INFINITY;
            peak[l] = score > peak[l] ? score : peak[l];
        }
    return topmost(peak);
}

/* Σ over both ranges of factors [R, keys] times keys or values, [R, W] */
static void along_both(const Block *block, const Desk *desk, const float *factors, const float *rows, float *found) {
    for (int part = 0, add = 0; part < 2; part++) {
        if (!block->n_seen[part]) continue;
        multiply(factors + block->at[part], block->stride, 1, rows + block->from[part] * desk->W, desk->W, found, desk->W,
                 block->rows, block->n_seen[part], desk->W, add);
        add = 1;
    }
}

/* total[key] += Σ_row factors[row, key]·rows[row] */
static void onto_both(const Block *block, const Desk *desk, const float *factors, const float *rows, float *total) {
    for (int part = 0; part < 2; part++)
        multiply(factors + block->at[part], 1, block->stride, rows, desk->W, total + block->from[part] * desk->W, desk->W,
                 block->n_seen[part], block->rows, desk->W, 1);
}

static void forward_block(const Asked *asked, const Desk *desk, const Block *block, const int32_t *piece, int64_t origin,
                          int64_t head, number *output, float *sums) {
    int64_t D = asked->size, H = asked->heads, G = H / asked->key_heads;
    int32_t edge[4];
    take_rows(asked->q + origin * asked->q_stride + head * G * D, asked->q_stride, asked, block, desk->W, desk->q);
    across_both(block, desk, desk->q, desk->keys_across, desk->scores);
    for (int64_t row = 0; row < block->rows; row++) {
        int64_t position = block->first + row / G;
        float *own = desk->scores + row * block->stride;
        edges_of(asked, piece, origin, block, position, edge);
        float peak = highest(own, edge, block->stride, asked->scale), sum = raised(own, edge, block->stride, asked->scale, peak);
        sums[(origin + position) * H + head * G + row % G] = peak + logf(sum);
        desk->room[row] = 1 / sum;
    }
    along_both(block, desk, desk->scores, desk->values, desk->found);
    for (int64_t row = 0; row < block->rows; row++) {
        number *y = output + (origin + block->first + row / G) * H * D + (head * G + row % G) * D;
        for (int64_t j = 0; j < D; j++) y[j] = rounded(desk->found[row * desk->W + j] * desk->room[row]);
    }
}

static void backward_block(const Asked *asked, const Desk *desk, const Block *block, const int32_t *piece, int64_t origin,
                           int64_t head, const number *grad, const float *sums, float *of_q) {
    int64_t D = asked->size, H = asked->heads, G = H / asked->key_heads;
    int32_t edge[4];
    take_rows(asked->q + origin * asked->q_stride + head * G * D, asked->q_stride, asked, block, desk->W, desk->q);
    take_rows(grad + origin * H * D + head * G * D, H * D, asked, block, desk->W, desk->grad);
    across_both(block, desk, desk->q, desk->keys_across, desk->scores);
    across_both(block, desk, desk->grad, desk->values_across, desk->of_scores);
    for (int64_t row = 0; row < block->rows; row++) {
        int64_t position = block->first + row / G;
        float *p = desk->scores + row * block->stride, *g = desk->of_scores + row * block->stride, lane[LANES] = {0};
        edges_of(asked, piece, origin, block, position, edge);
        raised(p, edge, block->stride, asked->scale, sums[(origin + position) * H + head * G + row % G]);
        for (int64_t j = 0; j < block->stride; j += LANES)
#pragma omp simd
            for (int64_t l = 0; l < LANES; l++) lane[l] += p[j + l] * g[j + l];
        float mean = total(lane);
#pragma omp simd
        for (int64_t j = 0; j < block->stride; j++) g[j] = asked->scale * p[j] * (g[j] - mean);
    }
    onto_both(block, desk, desk->scores, desk->grad, desk->of_values);
    onto_both(block, desk, desk->of_scores, desk->q, desk->of_keys);
    along_both(block, desk, desk->of_scores, desk->keys, desk->found);
    for (int64_t row = 0; row < block->rows; row++)
        memcpy(of_q + (origin + block->first + row / G) * H * D + (head * G + row % G) * D, desk->found + row * desk->W,
               D * sizeof(float));
}

/* Whether some position of a block is read. */
static inline int is_read(const Asked *asked, int64_t first, int64_t n) {
    if (!asked->read) return 1;
    for (int64_t i = first; i < first + n; i++)
        if (asked->read[i]) return 1;
    return 0;
}

static int64_t tree_stop(const Asked *asked, int64_t tree) { return asked->pieces[4 * (asked->trees[tree + 1] - 1) + 1]; }

static int64_t tree_start(const Asked *asked, int64_t tree) { return asked->pieces[4 * asked->trees[tree]]; }

/* A place to work in for trees of at most `most` positions; 0 where memory is short. */
static float *lay_out(Desk *desk, const Asked *asked, int64_t most) {
    int64_t G = asked->heads / asked->key_heads, rows = G > MOST_ROWS ? G : MOST_ROWS;
    int64_t W = FULL(asked->size), width = FULL(most) + LANES, line = width + 2 * LANES;
    int64_t of_tree = width * W, of_rows = rows * W;
    float *room = malloc((6 * of_tree + 3 * of_rows + 2 * rows * line + rows) * sizeof(float));
    if (!room) return 0;
    desk->W = W;
    desk->keys_across = room;
    desk->values_across = room + of_tree;
    desk->keys = room + 2 * of_tree;
    desk->values = room + 3 * of_tree;
    desk->of_keys = room + 4 * of_tree;
    desk->of_values = room + 5 * of_tree;
    desk->q = room + 6 * of_tree;
    desk->grad = desk->q + of_rows;
    desk->found = desk->grad + of_rows;
    desk->scores = desk->found + of_rows;
    desk->of_scores = desk->scores + rows * line;
    desk->room = desk->of_scores + rows * line;
    return room;
}

/* One tree and key head, of whose blocks of queries every n_parts-th from `part` on; all of them backward, which is done
 * where there is a gradient. */
static void attend_tree(const Asked *asked, Desk *desk, int64_t tree, int64_t head, int64_t part, int64_t n_parts, number *output,
                        const number *grad, float *sums, float *of_q, float *of_k, float *of_v) {
    int64_t D = asked->size, G = asked->heads / asked->key_heads, origin = tree_start(asked, tree);
    int64_t most = G > MOST_ROWS ? 1 : MOST_ROWS / G;
    desk->n = tree_stop(asked, tree) - origin;
    desk->width = FULL(desk->n) + LANES; /* a range that begins anywhere may be read to a full vector */
    take(asked->k + origin * asked->k_stride + head * D, asked->k_stride, desk, D, desk->keys, desk->keys_across);
    take(asked->v + origin * asked->v_stride + head * D, asked->v_stride, desk, D, desk->values, grad ? desk->values_across : 0);
    if (grad) {
        memset(desk->of_keys, 0, desk->width * desk->W * sizeof(float));
        memset(desk->of_values, 0, desk->width * desk->W * sizeof(float));
    }
    for (int64_t p = asked->trees[tree], turn = 0; p < asked->trees[tree + 1]; p++) {
        const int32_t *piece = asked->pieces + 4 * p;
        for (int64_t i = piece[0]; i < piece[1]; i += most, turn++) {
            int64_t n = piece[1] - i < most ? piece[1] - i : most;
            if (turn % n_parts != part || !is_read(asked, i, n)) continue;
            Block block = block_of(asked, piece, origin, i - origin, n);
            if (grad)
                backward_block(asked, desk, &block, piece, origin, head, grad, sums, of_q);
            else
                forward_block(asked, desk, &block, piece, origin, head, output, sums);
        }
    }
    if (!grad) return;
    for (int64_t i = 0; i < desk->n; i++) {
        memcpy(of_k + ((origin + i) * asked->key_heads + head) * D, desk->of_keys + i * desk->W, D * sizeof(float));
        memcpy(of_v + ((origin + i) * asked->key_heads + head) * D, desk->of_values + i * desk->W, D * sizeof(float));
    }
}

static int attend_all(const Asked *asked, number *output, const number *grad, float *sums, float *of_q, float *of_k,
                      float *of_v) {
    int short_of_memory = 0;
    int64_t most = 0, L = tree_stop(asked, asked->n_trees - 1);
    for (int64_t tree = 0; tree < asked->n_trees; tree++) {
        int64_t n = tree_stop(asked, tree) - tree_start(asked, tree);
        most = n > most ? n : most;
    }
    /* of few long trees several threads share one; gradients of keys are sums over all queries, and are not shared out */
    int64_t n_tasks = asked->n_trees * asked->key_heads, n_threads = omp_get_max_threads();
    int64_t n_parts = (2 * n_threads + n_tasks - 1) / n_tasks;
    n_parts = n_parts < most / LEAST_PART ? n_parts : most / LEAST_PART;
    n_parts = grad || n_parts < 1 || n_tasks >= n_threads ? 1 : n_parts;
#pragma omp parallel SHARED(L *asked->heads *asked->size) reduction(| : short_of_memory)
    {
        Desk desk;
        float *room = lay_out(&desk, asked, most);
        short_of_memory |= !room;
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < n_tasks * n_parts; task++)
            if (room)
                attend_tree(asked, &desk, task / n_parts / asked->key_heads, task / n_parts % asked->key_heads, task % n_parts, n_parts,
                            output, grad, sums, of_q, of_k, of_v);
        free(room);
    }
    return !short_of_memory;
}

/* output [L, H·D] = what each position attends to; sums [L, H] = log Σ e^score. Where nothing is read neither is written.
 * Returns 0 where memory is short. */
int attend_trees(const Asked *asked, number *output, float *sums) { return attend_all(asked, output, 0, sums, 0, 0, 0); }

/* Gradients in float32 of turned queries [L, H·D], turned keys and values [L, K·D] from that of the output; of queries that
 * are not read, none is written. */
int attend_trees_back(const Asked *asked, const number *grad, float *sums, float *of_q, float *of_k, float *of_v) {
    return attend_all(asked, 0, grad, sums, of_q, of_k, of_v);
}
