/* The final scores of all query-key pairs, a tile at a time: `regard.attention.pair_scores` says what they are.

   A strip is a few hundred query rows, of one head or of several that share a key head, packed block by block so that a
   block's scores against a panel of keys are one product held in registers. Scores are in units of ln 2 throughout, so
   that weights are powers of 2. Tiles that the ranges leave empty are never computed; tiles that they leave whole, and
   that nothing modifies, cost the product alone. */

#ifndef REGARD_PAIRS_H
#define REGARD_PAIRS_H

#include <float.h>
#include <stdlib.h>

#include "vectors.h"

enum { FLOAT32, BFLOAT16, FLOAT16, FLOAT64 }; /* as in `regard.attention.native` */

/* Strides are in elements, one for each of the four axes. */
struct pairs {
    int64_t batch, heads, kv_heads, query_len, key_len, head_dim;
    int64_t query_strides[4], key_strides[4], bias_strides[4], allowed_strides[4];
    int64_t ranges_batch_stride, num_ranges;
    const void *query, *key, *bias; /* bias: NULL for none, as below */
    const float *offset_bias;
    const int32_t *ranges;
    const uint8_t *allowed;
    const float *sink;
    double scale, soft_cap; /* soft_cap: 0 for none */
    int32_t inputs_type, bias_type;
};

struct reach { /* of a block of rows, for one of their ranges: keys outside [first, last) are nobody's, */
    int32_t first, last, all_first, all_last; /* keys within [all_first, all_last) are everybody's */
};

#define BLOCKS_TOGETHER 16 /* blocks whose common reach is asked first */

struct strip {
    const struct pairs *pairs;
    int64_t item, kv_head;
    int rows, blocks, capacity;
    int modified;           /* whether scores are more than scaled products within ranges */
    int32_t *head, *query;  /* of each row */
    float *queries;         /* [rows][head_dim], times scale */
    float *keys;            /* [head_dim][PANEL], of the panel at packed_key */
    int64_t packed_key, ahead; /* ahead: keys before it have been fetched into the cache */
    struct reach *reach;    /* [blocks][num_ranges] */
    struct reach *together; /* [blocks / BLOCKS_TOGETHER, rounded up] */
};

INLINE int64_t least_of(int64_t one, int64_t other) { return one < other ? one : other; }
INLINE int64_t parts_of(int64_t whole, int64_t part) { return (whole + part - 1) / part; }
INLINE int rows_of(const struct strip *strip, int block) {
    return (int)least_of(ROWS, strip->rows - (int64_t)block * ROWS);
}

/* -- reading numbers ----------------------------------------------------------------------------------------------- */

INLINE float of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

INLINE float of_bfloat16(uint16_t bits) { return of_bits((uint32_t)bits << 16); }

INLINE float of_float16(uint16_t bits) {
    const uint32_t sign = (uint32_t)(bits & 0x8000) << 16, magnitude = bits & 0x7fff;
    if (magnitude >= 0x7c00) return of_bits(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
    return of_bits(sign | 0) + (sign ? -1.0f : 1.0f) * of_bits(magnitude << 13) * 0x1p112f;
}

/* One row of a bias, as floats; what its dtype's lowest half disallows is minus infinity. */
static void read_bias(const void *from, int64_t stride, int32_t type, int count, float *row) {
#define READ(number, convert, lowest)                                           \
    {                                                                           \
        const number *values = from;                                            \
        if (stride == 1)                                                        \
            for (int j = 0; j < count; j++) row[j] = (float)convert(values[j]); \
        else                                                                    \
            for (int j = 0; j < count; j++) row[j] = (float)convert(values[j * stride]); \
        for (int j = 0; j < count; j++) row[j] = row[j] <= lowest ? -INFINITY : row[j]; \
    }                                                                           \
    break
    switch (type) {
        case FLOAT32: READ(float, , -FLT_MAX / 2);
        case BFLOAT16: READ(uint16_t, of_bfloat16, -0x1.fep126f);
        case FLOAT16: READ(uint16_t, of_float16, -32752.0f);
        default: READ(double, , -FLT_MAX);
    }
#undef READ
}

/* -- making a strip ------------------------------------------------------------------------------------------------ */

static int strip_allocate(struct strip *strip, const struct pairs *pairs, int capacity) {
    const int64_t blocks = parts_of(capacity, ROWS);
    memset(strip, 0, sizeof *strip);
    strip->pairs = pairs;
    strip->capacity = capacity;
    strip->modified = pairs->soft_cap != 0.0 || pairs->offset_bias || pairs->bias || pairs->allowed;
    strip->head = malloc(capacity * sizeof *strip->head);
    strip->query = malloc(capacity * sizeof *strip->query);
    strip->queries = malloc(capacity * pairs->head_dim * sizeof(float));
    strip->keys = aligned_alloc(64, parts_of(PANEL * pairs->head_dim * (int64_t)sizeof(float), 64) * 64);
    strip->reach = malloc((blocks * pairs->num_ranges + 1) * sizeof *strip->reach);
    strip->together = malloc((blocks / BLOCKS_TOGETHER + 1) * sizeof *strip->together);
    return strip->head && strip->query && strip->queries && strip->keys && strip->reach && strip->together;
}

static void strip_free(struct strip *strip) {
    free(strip->head);
    free(strip->query);
    free(strip->queries);
    free(strip->keys);
    free(strip->reach);
    free(strip->together);
}

static void find_reach(struct strip *strip) {
    const struct pairs *pairs = strip->pairs;
    const int64_t num_ranges = pairs->num_ranges;
    for (int block = 0; block < strip->blocks; block++) {
        struct reach *together = strip->together + block / BLOCKS_TOGETHER;
        if (block % BLOCKS_TOGETHER == 0) *together = (struct reach){INT32_MAX, 0, 0, 0};
        for (int64_t r = 0; r < num_ranges; r++) {
            struct reach reach = {INT32_MAX, 0, 0, INT32_MAX};
            for (int row = block * ROWS; row < block * ROWS + rows_of(strip, block); row++) {
                const int32_t *range = pairs->ranges + strip->item * pairs->ranges_batch_stride +
                                       (strip->query[row] * num_ranges + r) * 2;
                if (range[0] < range[1]) {
                    reach.first = range[0] < reach.first ? range[0] : reach.first;
                    reach.last = range[1] > reach.last ? range[1] : reach.last;
                }
                reach.all_first = range[0] > reach.all_first ? range[0] : reach.all_first;
                reach.all_last = range[1] < reach.all_last ? range[1] : reach.all_last;
            }
            strip->reach[block * num_ranges + r] = reach;
            together->first = reach.first < together->first ? reach.first : together->first;
            together->last = reach.last > together->last ? reach.last : together->last;
        }
    }
}

/* Lays query rows [first, last) of query heads [first_head, last_head) into the strip; all share one key head. */
static void strip_fill(struct strip *strip, int64_t item, int64_t first_head, int64_t last_head, int64_t first,
                       int64_t last) {
    const struct pairs *pairs = strip->pairs;
    const int64_t head_dim = pairs->head_dim;
    strip->item = item;
    strip->kv_head = first_head / (pairs->heads / pairs->kv_heads);
    strip->packed_key = -1;
    strip->rows = 0;
    for (int64_t head = first_head; head < last_head; head++)
        for (int64_t query = first; query < last; query++) {
            strip->head[strip->rows] = (int32_t)head;
            strip->query[strip->rows++] = (int32_t)query;
        }
    strip->blocks = (int)parts_of(strip->rows, ROWS);
    const float factor = (float)(pairs->soft_cap != 0.0 ? pairs->scale / pairs->soft_cap : pairs->scale * LOG2_OF_E);
    const int64_t stride = pairs->query_strides[3];
    for (int row = 0; row < strip->rows; row++) {
        float *to = strip->queries + row * head_dim;
        const int64_t at = item * pairs->query_strides[0] + strip->head[row] * pairs->query_strides[1] +
                           strip->query[row] * pairs->query_strides[2];
        if (pairs->inputs_type == FLOAT32) {
            const float *from = (const float *)pairs->query + at;
            for (int64_t i = 0; i < head_dim; i++) to[i] = from[i * stride] * factor;
        } else {
            const uint16_t *from = (const uint16_t *)pairs->query + at;
            for (int64_t i = 0; i < head_dim; i++) to[i] = of_bfloat16(from[i * stride]) * factor;
        }
    }
    if (pairs->ranges) find_reach(strip);
}

/* LANES neighbouring numbers of a tensor as floats. */
INLINE floats load_inputs(const void *from, int64_t at, int32_t type) {
    if (type == FLOAT32) return load((const float *)from + at);
    floats_bits wide;
    for (int lane = 0; lane < LANES; lane++) wide[lane] = ((const uint16_t *)from)[at + lane];
    return (floats)(wide << 16);
}

INLINE float load_input(const void *from, int64_t at, int32_t type) {
    return type == FLOAT32 ? ((const float *)from)[at] : of_bfloat16(((const uint16_t *)from)[at]);
}

/* Lays a panel of keys out so that a vector holds one component of neighbouring keys; keys past the last are 0. */
INLINE void pack_panel(struct strip *strip, int64_t first_key, int count, const int32_t type) {
    const struct pairs *pairs = strip->pairs;
    const int64_t head_dim = pairs->head_dim, along = pairs->key_strides[2], stride = pairs->key_strides[3];
    const int64_t at = strip->item * pairs->key_strides[0] + strip->kv_head * pairs->key_strides[1] + first_key * along;
    const int64_t squares = count == PANEL && stride == 1 ? head_dim / LANES : 0;
    float *to = strip->keys;
    if (count < PANEL) memset(to, 0, PANEL * head_dim * sizeof(float));
    for (int64_t square = 0; square < squares; square++)
        for (int col = 0; col < COLS; col++) {
            floats values[LANES];
            UNROLLED for (int row = 0; row < LANES; row++)
                values[row] = load_inputs(pairs->key, at + (col * LANES + row) * along + square * LANES, type);
            transpose(values);
            UNROLLED for (int row = 0; row < LANES; row++)
                store(to + (square * LANES + row) * PANEL + col * LANES, values[row]);
        }
    for (int64_t i = squares * LANES; i < head_dim; i++)
        for (int j = 0; j < count; j++) to[i * PANEL + j] = load_input(pairs->key, at + j * along + i * stride, type);
}

/* Has the cache fetch some keys of the next panel, a few with each tile: packing them waits for memory otherwise. */
INLINE void fetch_ahead(struct strip *strip) {
    const struct pairs *pairs = strip->pairs;
    const int64_t bytes = pairs->inputs_type == FLOAT32 ? 4 : 2;
    const int64_t at = strip->item * pairs->key_strides[0] + strip->kv_head * pairs->key_strides[1];
    const int64_t end = least_of(least_of(strip->packed_key + 2 * PANEL, pairs->key_len),
                                 strip->ahead + parts_of(PANEL, strip->blocks));
    for (; strip->ahead < end; strip->ahead++) {
        const char *from = (const char *)pairs->key + (at + strip->ahead * pairs->key_strides[2]) * bytes;
        for (int64_t byte = 0; byte < pairs->head_dim * bytes; byte += 64) __builtin_prefetch(from + byte, 0, 2);
    }
}

static void pack_keys(struct strip *strip, int64_t first_key, int count) {
    if (strip->pairs->inputs_type == FLOAT32)
        pack_panel(strip, first_key, count, FLOAT32);
    else
        pack_panel(strip, first_key, count, BFLOAT16);
    strip->packed_key = first_key;
    strip->ahead = first_key + PANEL;
}

/* -- how a problem is cut into pieces ------------------------------------------------------------------------------ */

/* A piece is an item of the batch, a head and a stretch of its queries, or all queries of several heads of a group
   where queries are few. It goes through its queries a strip at a time. All of it depends on the shape alone. */
struct cut {
    int64_t stretches, stretch; /* their number and their number of queries, the last one's less */
    int64_t heads, head_parts;  /* heads of one piece at most, and how many such parts a group makes */
    int64_t strip, pieces;      /* rows of a strip at most; pieces in all */
};

#define STRIP_FLOATS 32768 /* of packed queries: half of a small second cache */
#define LEAST_STRETCH 512
#define MOST_STRETCHES 16
#define MOST_PIECES 256 /* beyond which stretches are not made shorter */

static struct cut cut_of(const struct pairs *pairs) {
    struct cut cut = {0};
    const int64_t group = pairs->heads / pairs->kv_heads, all_heads = pairs->batch * pairs->heads;
    cut.stretches = least_of(parts_of(pairs->query_len, LEAST_STRETCH), MOST_STRETCHES);
    cut.stretches = least_of(cut.stretches, parts_of(MOST_PIECES, all_heads));
    cut.stretch = parts_of(parts_of(pairs->query_len, cut.stretches), ROWS) * ROWS;
    cut.stretches = parts_of(pairs->query_len, cut.stretch);
    int64_t most_rows = STRIP_FLOATS / pairs->head_dim;
    most_rows = most_rows < 4 * ROWS ? 4 * ROWS : most_rows;
    cut.heads = cut.stretches > 1 ? 1 : least_of(group, most_rows / pairs->query_len);
    cut.heads = cut.heads < 1 ? 1 : cut.heads;
    cut.head_parts = parts_of(group, cut.heads);
    if (cut.heads > 1)
        cut.strip = cut.heads * pairs->query_len;
    else /* of even length, so that none is short: each packs all keys anew */
        cut.strip = parts_of(parts_of(cut.stretch, parts_of(cut.stretch, most_rows)), ROWS) * ROWS;
    cut.pieces = cut.stretches * pairs->batch * pairs->kv_heads * cut.head_parts;
    return cut;
}

struct piece {
    int64_t stretch, item, first_head, last_head, first, last; /* of heads and of queries */
    int64_t step;                                              /* queries of one strip */
};

/* Last queries first: under a causal mask they take longest, and a long piece at the end leaves threads idle. */
static struct piece piece_of(const struct pairs *pairs, const struct cut *cut, int64_t number) {
    const int64_t parts = pairs->kv_heads * cut->head_parts, group = pairs->heads / pairs->kv_heads;
    const int64_t kv_head = number % parts / cut->head_parts;
    struct piece piece;
    piece.stretch = cut->stretches - 1 - number / (pairs->batch * parts);
    piece.item = number / parts % pairs->batch;
    piece.first_head = kv_head * group + number % cut->head_parts * cut->heads;
    piece.last_head = least_of(piece.first_head + cut->heads, (kv_head + 1) * group);
    piece.first = piece.stretch * cut->stretch;
    piece.last = least_of(piece.first + cut->stretch, pairs->query_len);
    piece.step = cut->heads > 1 ? pairs->query_len : cut->strip;
    return piece;
}

/* Threads worth having: a problem that takes less than about a tenth of a millisecond is done on the caller's. */
static int64_t threads_for(const struct pairs *pairs, int64_t threads) {
    const double products = (double)pairs->batch * pairs->heads * pairs->query_len * pairs->key_len;
    return products * (pairs->head_dim + 16) < 1e7 ? 1 : threads;
}

/* -- which tiles there are ----------------------------------------------------------------------------------------- */

enum { NONE, SOME, EVERY }; /* how many pairs of a tile the ranges allow */

INLINE int allowed_of_tile(const struct strip *strip, int block, int64_t first_key, int count) {
    const int64_t num_ranges = strip->pairs->num_ranges, end = first_key + count;
    if (!strip->pairs->ranges) return EVERY;
    const struct reach *reach = strip->reach + block * num_ranges;
    int found = NONE;
    for (int64_t r = 0; r < num_ranges; r++) {
        if (reach[r].all_first <= first_key && end <= reach[r].all_last) return EVERY;
        if (reach[r].first < end && first_key < reach[r].last) found = SOME;
    }
    return found;
}

/* The first block from `block` on that may reach these keys, or the number of blocks. */
INLINE int next_block(const struct strip *strip, int block, int64_t first_key, int count) {
    if (!strip->pairs->ranges) return block;
    while (block < strip->blocks) {
        if (block % BLOCKS_TOGETHER == 0) {
            const struct reach *together = strip->together + block / BLOCKS_TOGETHER;
            if (together->first >= first_key + count || first_key >= together->last) {
                block += BLOCKS_TOGETHER;
                continue;
            }
        }
        return block;
    }
    return strip->blocks;
}

/* Where a row of the strip stands among [batch, heads, query_len]. */
INLINE int64_t place_of(const struct strip *strip, int row) {
    return (strip->item * strip->pairs->heads + strip->head[row]) * strip->pairs->query_len + strip->query[row];
}

/* -- the scores of one tile ---------------------------------------------------------------------------------------- */

INLINE void product(const int rows, int64_t head_dim, const float *queries, const float *keys, float *scores) {
    floats sum[ROWS][COLS];
    UNROLLED for (int row = 0; row < rows; row++)
        UNROLLED for (int col = 0; col < COLS; col++) sum[row][col] = all(0.0f);
    for (int64_t i = 0; i < head_dim; i++) {
        floats key[COLS];
        UNROLLED for (int col = 0; col < COLS; col++) key[col] = *(const floats *)(keys + i * PANEL + col * LANES);
        UNROLLED for (int row = 0; row < rows; row++) {
            const floats query = all(queries[row * head_dim + i]);
            UNROLLED for (int col = 0; col < COLS; col++) sum[row][col] += query * key[col];
        }
    }
    UNROLLED for (int row = 0; row < rows; row++)
        UNROLLED for (int col = 0; col < COLS; col++) store(scores + row * PANEL + col * LANES, sum[row][col]);
}

/* Products of a block of any height; one of each height is compiled, so that a short block costs no more than it is. */
static void products(int rows, int64_t head_dim, const float *queries, const float *keys, float *scores) {
    switch (rows) {
        case 1: product(1, head_dim, queries, keys, scores); break;
        case 2: product(2, head_dim, queries, keys, scores); break;
        case 3: product(3, head_dim, queries, keys, scores); break;
#if ROWS > 4
        case 4: product(4, head_dim, queries, keys, scores); break;
        case 5: product(5, head_dim, queries, keys, scores); break;
#endif
#if ROWS > 6
        case 6: product(6, head_dim, queries, keys, scores); break;
        case 7: product(7, head_dim, queries, keys, scores); break;
#endif
        default: product(ROWS, head_dim, queries, keys, scores);
    }
}

/* Whether a query's ranges, and the end of the keys, allow these keys: -1 or 0 each. */
INLINE ints within_ranges(const struct pairs *pairs, int64_t item, int64_t query, int64_t key, int64_t end) {
    const ints keys = lane_numbers() + (int32_t)key;
    const ints there = keys < (int32_t)end;
    if (!pairs->ranges) return there;
    const int32_t *range = pairs->ranges + item * pairs->ranges_batch_stride + query * pairs->num_ranges * 2;
    ints within = all_ints(0);
    for (int64_t r = 0; r < pairs->num_ranges; r++, range += 2) within |= (keys >= range[0]) & (keys < range[1]);
    return within & there;
}

/* What is added to the (capped) product of each pair of the tile: its biases, or minus infinity where it is disallowed.
   Returns whether any pair is allowed. */
static int additions(const struct strip *strip, int block, int64_t first_key, int count, float *added) {
    const struct pairs *pairs = strip->pairs;
    const floats nothing = all(-INFINITY);
    ints any = all_ints(0);
    for (int row = 0; row < rows_of(strip, block); row++, added += PANEL) {
        const int64_t head = strip->head[block * ROWS + row], query = strip->query[block * ROWS + row];
        float biases[PANEL] = {0}, offsets[PANEL] = {0};
        int32_t allowed[PANEL];
        if (pairs->bias) {
            const int64_t *strides = pairs->bias_strides;
            const int64_t bytes = pairs->bias_type == FLOAT32 ? 4 : pairs->bias_type == FLOAT64 ? 8 : 2;
            const int64_t at =
                strip->item * strides[0] + head * strides[1] + query * strides[2] + first_key * strides[3];
            read_bias((const char *)pairs->bias + at * bytes, strides[3], pairs->bias_type, count, biases);
        }
        if (pairs->offset_bias) {
            const int64_t offset = first_key - query + pairs->query_len - 1;
            const float *from = pairs->offset_bias + head * (pairs->query_len + pairs->key_len - 1) + offset;
            for (int j = 0; j < count; j++) offsets[j] = from[j];
        }
        if (pairs->allowed) {
            const int64_t *strides = pairs->allowed_strides;
            const uint8_t *from = pairs->allowed + strip->item * strides[0] + head * strides[1] + query * strides[2] +
                                  first_key * strides[3];
            if (strides[3] == 1)
                for (int j = 0; j < count; j++) allowed[j] = -(from[j] != 0);
            else
                for (int j = 0; j < count; j++) allowed[j] = -(from[j * strides[3]] != 0);
            for (int j = count; j < PANEL; j++) allowed[j] = 0;
        }
        UNROLLED for (int col = 0; col < COLS; col++) {
            ints inside = within_ranges(pairs, strip->item, query, first_key + col * LANES, first_key + count);
            if (pairs->allowed) inside &= (ints)load((const float *)allowed + col * LANES);
            const floats sum = (load(biases + col * LANES) + load(offsets + col * LANES)) * (float)LOG2_OF_E;
            const floats kept = choose(inside, sum, nothing);
            any |= kept != nothing;
            store(added + col * LANES, kept);
        }
    }
    return any_lane(any);
}

/* Puts what was added to a tile's products into them. */
static void modify(const struct pairs *pairs, int rows, const float *added, float *scores) {
    const float cap = (float)(pairs->soft_cap * LOG2_OF_E);
    for (int at = 0; at < rows * PANEL; at += LANES) {
        const floats more = load(added + at);
        floats score = load(scores + at);
        if (pairs->soft_cap != 0.0) score = cap * tanh_of(score);
        /* A disallowed pair is minus infinity whatever its product is: memory that nobody may read may hold NaN. */
        store(scores + at, choose(more == all(-INFINITY), more, score + more));
    }
}

static void keep_allowed(const struct strip *strip, int block, int64_t first_key, int count, float *scores) {
    for (int row = block * ROWS; row < block * ROWS + rows_of(strip, block); row++)
        UNROLLED for (int col = 0; col < COLS; col++, scores += LANES) {
            const ints inside = within_ranges(strip->pairs, strip->item, strip->query[row], first_key + col * LANES,
                                              first_key + count);
            store(scores, choose(inside, load(scores), all(-INFINITY)));
        }
}

/* The final scores of a block against the panel of keys at first_key, [rows][PANEL], minus infinity where disallowed.
   Returns 0, and leaves the scores as they were, where the tile allows nothing. */
INLINE int tile_of_scores(struct strip *strip, int block, int64_t first_key, int count, float *scores) {
    const struct pairs *pairs = strip->pairs;
    const int reached = allowed_of_tile(strip, block, first_key, count), rows = rows_of(strip, block);
    if (reached == NONE) return 0;
    float added[ROWS * PANEL];
    if (strip->modified && !additions(strip, block, first_key, count, added)) return 0;
    if (strip->packed_key != first_key) pack_keys(strip, first_key, count);
    fetch_ahead(strip);
    const float *queries = strip->queries + (int64_t)block * ROWS * pairs->head_dim;
    if (rows == ROWS)
        product(ROWS, pairs->head_dim, queries, strip->keys, scores);
    else
        products(rows, pairs->head_dim, queries, strip->keys, scores);
    if (strip->modified)
        modify(pairs, rows, added, scores);
    else if (reached == SOME || count < PANEL)
        keep_allowed(strip, block, first_key, count, scores);
    return 1;
}

#endif
