/* Attention over short rows and its gradient: what training on sentences spends its time on.

   A head's keys and values fit into the first cache, so nothing is cut into panels: each head is packed once, a few
   queries at a time get their scores, weights and sums, and the gradient does it again from the logsumexp. Inputs and
   results are read and written where they lie, in float32 or bfloat16; all sums are float32. */

#include "vectors.h"
#include "workers.h"

#include <stdlib.h>

#define TOGETHER 4 /* queries whose scores are taken at once */

/* Strides are in elements: of items, heads and places; the last axis is contiguous. */
struct tensor {
    void *at;
    int64_t item, head, place;
};

struct short_rows {
    int64_t batch, heads, kv_heads, query_len, key_len, head_dim, value_dim, threads;
    struct tensor query, key, value, output;                        /* output: its gradient in the backward pass */
    struct tensor query_gradient, key_gradient, value_gradient;     /* written in the backward pass */
    struct tensor allowed;                                          /* bytes, [items, heads, keys]; NULL for all */
    float *logsumexp;                                               /* [batch, heads, query_len] */
    double scale;
    int32_t is_bfloat16, is_causal, is_backward, unused;
};

/* Of one thread. wide: key_len, dim: head_dim, value_width: value_dim, each rounded up to LANES, the rest zeros. */
struct room {
    int64_t wide, dim, value_width;
    float *keys, *key_columns;     /* [key_len][dim]; [head_dim][wide] */
    float *values, *value_columns; /* [key_len][value_width]; [value_dim][wide] */
    float *queries, *gradients;    /* [TOGETHER][dim], [TOGETHER][value_width] */
    float *weights, *slopes;       /* [TOGETHER][wide] */
    float *of_keys, *of_values;    /* gradients, [key_len][dim], [key_len][value_width] */
    float *closed;                 /* [wide]: 0 where a key is allowed, else minus infinity */
    float *memory;
};

INLINE int64_t rounded(int64_t count) { return (count + LANES - 1) / LANES * LANES; }

static int room_allocate(struct room *room, const struct short_rows *rows) {
    const int64_t keys = rows->key_len, wide = rounded(keys), dim = rounded(rows->head_dim);
    const int64_t value_width = rounded(rows->value_dim);
    const int64_t sizes[] = {keys * dim, rows->head_dim * wide, keys * value_width, rows->value_dim * wide,
                             TOGETHER * dim, TOGETHER * value_width, TOGETHER * wide, TOGETHER * wide,
                             keys * dim, keys * value_width, wide};
    float **const parts[] = {&room->keys, &room->key_columns, &room->values, &room->value_columns,
                             &room->queries, &room->gradients, &room->weights, &room->slopes,
                             &room->of_keys, &room->of_values, &room->closed};
    int64_t total = 0;
    for (int i = 0; i < 11; i++) total += rounded(sizes[i]);
    room->wide = wide, room->dim = dim, room->value_width = value_width;
    room->memory = aligned_alloc(64, (total * sizeof(float) + 63) / 64 * 64);
    if (!room->memory) return 0;
    memset(room->memory, 0, total * sizeof(float));
    float *next = room->memory;
    for (int i = 0; i < 11; i++) *parts[i] = next, next += rounded(sizes[i]);
    return 1;
}

/* -- reading and writing ------------------------------------------------------------------------------------------- */

INLINE void read_row(const struct tensor *from, int64_t at, int64_t count, int is_bfloat16, float *to) {
    if (is_bfloat16) {
        const uint16_t *row = (const uint16_t *)from->at + at;
        for (int64_t i = 0; i < count; i++) {
            const uint32_t bits = (uint32_t)row[i] << 16;
            memcpy(to + i, &bits, sizeof bits);
        }
    } else {
        memcpy(to, (const float *)from->at + at, count * sizeof(float));
    }
}

/* To the nearest bfloat16, ties to even; what is no number stays none. */
INLINE void write_row(const struct tensor *to, int64_t at, int64_t count, int is_bfloat16, const float *from) {
    if (is_bfloat16) {
        uint16_t *row = (uint16_t *)to->at + at;
        for (int64_t i = 0; i < count; i++) {
            uint32_t bits;
            memcpy(&bits, from + i, sizeof bits);
            const uint32_t nearest = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
            row[i] = (uint16_t)(from[i] != from[i] ? 0x7fc0 : nearest);
        }
    } else {
        memcpy((float *)to->at + at, from, count * sizeof(float));
    }
}

static void columns_of(const float *rows, int64_t width, int64_t count, int64_t dim, int64_t wide, float *columns) {
    for (int64_t i = 0; i < dim; i++)
        for (int64_t j = 0; j < count; j++) columns[i * wide + j] = rows[j * width + i];
}

/* -- products ------------------------------------------------------------------------------------------------------ */

/* products[r][j] = sum over i of rows[r][i] columns[i][j], for TOGETHER rows. */
INLINE void times_columns(const float *rows, int64_t width, const float *columns, int64_t dim, int64_t wide,
                          float *products) {
    for (int64_t j = 0; j < wide; j += LANES) {
        floats sums[TOGETHER] = {{0}};
        for (int64_t i = 0; i < dim; i++) {
            const floats column = *(const floats *)(columns + i * wide + j);
            UNROLLED for (int r = 0; r < TOGETHER; r++) sums[r] += rows[r * width + i] * column;
        }
        UNROLLED for (int r = 0; r < TOGETHER; r++) *(floats *)(products + r * wide + j) = sums[r];
    }
}

/* sums[r] = sum over j of weights[r][j] rows[j], for TOGETHER rows; sums may be where nothing else is read from. */
INLINE void weighted_sums(const float *weights, int64_t wide, const float *rows, int64_t count, int64_t width,
                          float *sums) {
    for (int64_t i = 0; i < width; i += LANES) {
        floats sum[TOGETHER] = {{0}};
        for (int64_t j = 0; j < count; j++) {
            const floats row = *(const floats *)(rows + j * width + i);
            UNROLLED for (int r = 0; r < TOGETHER; r++) sum[r] += weights[r * wide + j] * row;
        }
        UNROLLED for (int r = 0; r < TOGETHER; r++) *(floats *)(sums + r * width + i) = sum[r];
    }
}

/* sums[j] += sum over r of weights[r][j] rows[r]. */
INLINE void add_outer(const float *weights, int64_t wide, const float *rows, int64_t count, int64_t width,
                      float *sums) {
    for (int64_t i = 0; i < width; i += LANES) {
        floats row[TOGETHER];
        UNROLLED for (int r = 0; r < TOGETHER; r++) row[r] = *(const floats *)(rows + r * width + i);
        for (int64_t j = 0; j < count; j++) {
            floats sum = *(floats *)(sums + j * width + i);
            UNROLLED for (int r = 0; r < TOGETHER; r++) sum += weights[r * wide + j] * row[r];
            *(floats *)(sums + j * width + i) = sum;
        }
    }
}

/* -- one head ------------------------------------------------------------------------------------------------------ */

/* Scores of a query in units of ln 2, minus infinity where it may not attend. */
INLINE void close(const struct room *room, int64_t query, int is_causal, float factor, float *scores) {
    for (int64_t j = 0; j < room->wide; j += LANES) {
        floats some = *(floats *)(scores + j) * factor + *(const floats *)(room->closed + j);
        if (is_causal) {
            const ints later = lane_numbers() + (int32_t)j > (int32_t)query;
            some = choose(later, all(-INFINITY), some);
        }
        *(floats *)(scores + j) = some;
    }
}

/* Scores become weights; returns the logsumexp in units of ln 2. */
INLINE float normalise(int64_t wide, float *scores) {
    floats greatest = all(-INFINITY), sum = {0};
    for (int64_t j = 0; j < wide; j += LANES) greatest = greater_of(greatest, *(floats *)(scores + j));
    const float most = greatest_lane(greatest);
    if (most == -INFINITY) {
        memset(scores, 0, wide * sizeof(float));
        return -INFINITY;
    }
    for (int64_t j = 0; j < wide; j += LANES) {
        const floats weight = exp2_of(at_least_least(*(floats *)(scores + j) - most));
        *(floats *)(scores + j) = weight;
        sum += weight;
    }
    const float total = (float)sum_of_lanes(sum), part = 1.0f / total;
    for (int64_t j = 0; j < wide; j += LANES) *(floats *)(scores + j) *= part;
    return most + log2f(total);
}

/* Slopes (of the weights) become slopes of the products of queries and keys. */
INLINE void through_softmax(int64_t wide, const float *weights, float factor, float *slopes) {
    floats sum = {0};
    for (int64_t j = 0; j < wide; j += LANES) sum += *(const floats *)(weights + j) * *(floats *)(slopes + j);
    const float mean = (float)sum_of_lanes(sum);
    for (int64_t j = 0; j < wide; j += LANES)
        *(floats *)(slopes + j) = *(const floats *)(weights + j) * (*(floats *)(slopes + j) - mean) * factor;
}

static void do_head(struct room *room, const struct short_rows *rows, int64_t item, int64_t head) {
    const int64_t wide = room->wide, dim = room->dim, value_width = room->value_width;
    const float factor = (float)(rows->scale * LOG2_OF_E);
    const int narrow = rows->is_bfloat16;
    float *logsumexp = rows->logsumexp + (item * rows->heads + head) * rows->query_len;
    for (int64_t j = 0; j < wide; j++) room->closed[j] = j < rows->key_len ? 0.0f : -INFINITY;
    if (rows->allowed.at) {
        const uint8_t *allowed = (const uint8_t *)rows->allowed.at + item * rows->allowed.item + head * rows->allowed.head;
        for (int64_t j = 0; j < rows->key_len; j++)
            if (!allowed[j * rows->allowed.place]) room->closed[j] = -INFINITY;
    }
    for (int64_t first = 0; first < rows->query_len; first += TOGETHER) {
        const int64_t count = rows->query_len - first < TOGETHER ? rows->query_len - first : TOGETHER;
        const int64_t query = item * rows->query.item + head * rows->query.head;
        const int64_t output = item * rows->output.item + head * rows->output.head;
        for (int64_t r = 0; r < count; r++)
            read_row(&rows->query, query + (first + r) * rows->query.place, rows->head_dim, narrow, room->queries + r * dim);
        times_columns(room->queries, dim, room->key_columns, rows->head_dim, wide, room->weights);
        for (int64_t r = 0; r < count; r++) {
            close(room, first + r, rows->is_causal, factor, room->weights + r * wide);
            const float found = normalise(wide, room->weights + r * wide);
            if (!rows->is_backward) logsumexp[first + r] = (float)(found * LN_OF_2);
        }
        if (!rows->is_backward) {
            weighted_sums(room->weights, wide, room->values, rows->key_len, value_width, room->gradients);
            for (int64_t r = 0; r < count; r++)
                write_row(&rows->output, output + (first + r) * rows->output.place, rows->value_dim, narrow,
                          room->gradients + r * value_width);
            continue;
        }
        for (int64_t r = 0; r < count; r++)
            read_row(&rows->output, output + (first + r) * rows->output.place, rows->value_dim, narrow,
                     room->gradients + r * value_width);
        times_columns(room->gradients, value_width, room->value_columns, rows->value_dim, wide, room->slopes);
        for (int64_t r = 0; r < count; r++)
            through_softmax(wide, room->weights + r * wide, (float)rows->scale, room->slopes + r * wide);
        if (count < TOGETHER) { /* what an earlier block left in the other rows adds nothing */
            memset(room->weights + count * wide, 0, (TOGETHER - count) * wide * sizeof(float));
            memset(room->slopes + count * wide, 0, (TOGETHER - count) * wide * sizeof(float));
        }
        add_outer(room->weights, wide, room->gradients, rows->key_len, value_width, room->of_values);
        add_outer(room->slopes, wide, room->queries, rows->key_len, dim, room->of_keys);
        weighted_sums(room->slopes, wide, room->keys, rows->key_len, dim, room->queries);
        const int64_t to = item * rows->query_gradient.item + head * rows->query_gradient.head;
        for (int64_t r = 0; r < count; r++)
            write_row(&rows->query_gradient, to + (first + r) * rows->query_gradient.place, rows->head_dim, narrow,
                      room->queries + r * dim);
    }
}

/* A piece is a key head of an item, with all query heads that share it. */
static void do_piece(struct room *room, const struct short_rows *rows, int64_t piece) {
    const int64_t item = piece / rows->kv_heads, kv_head = piece % rows->kv_heads, group = rows->heads / rows->kv_heads;
    const int64_t dim = room->dim, value_width = room->value_width;
    for (int64_t j = 0; j < rows->key_len; j++) {
        const int64_t key = item * rows->key.item + kv_head * rows->key.head + j * rows->key.place;
        const int64_t value = item * rows->value.item + kv_head * rows->value.head + j * rows->value.place;
        read_row(&rows->key, key, rows->head_dim, rows->is_bfloat16, room->keys + j * dim);
        read_row(&rows->value, value, rows->value_dim, rows->is_bfloat16, room->values + j * value_width);
    }
    columns_of(room->keys, dim, rows->key_len, rows->head_dim, room->wide, room->key_columns);
    if (rows->is_backward) {
        columns_of(room->values, value_width, rows->key_len, rows->value_dim, room->wide, room->value_columns);
        memset(room->of_keys, 0, rows->key_len * dim * sizeof(float));
        memset(room->of_values, 0, rows->key_len * value_width * sizeof(float));
    }
    for (int64_t head = kv_head * group; head < (kv_head + 1) * group; head++) do_head(room, rows, item, head);
    for (int64_t j = 0; rows->is_backward && j < rows->key_len; j++) {
        const struct tensor *keys = &rows->key_gradient, *values = &rows->value_gradient;
        write_row(keys, item * keys->item + kv_head * keys->head + j * keys->place, rows->head_dim, rows->is_bfloat16,
                  room->of_keys + j * dim);
        write_row(values, item * values->item + kv_head * values->head + j * values->place, rows->value_dim,
                  rows->is_bfloat16, room->of_values + j * value_width);
    }
}

#define PIECES_AT_ONCE 4

static int do_pieces(struct workers *workers) {
    const struct short_rows *rows = workers->problem;
    const int64_t all = rows->batch * rows->kv_heads;
    struct room room;
    const int made = room_allocate(&room, rows);
    for (int64_t number; made && (number = next_piece(workers)) >= 0;)
        for (int64_t piece = number * PIECES_AT_ONCE; piece < all && piece < (number + 1) * PIECES_AT_ONCE; piece++)
            do_piece(&room, rows, piece);
    free(room.memory);
    return made;
}

/* Returns 0, or 1 where memory was short. A problem of less than about a tenth of a millisecond stays on one thread. */
int regard_short_rows(const struct short_rows *rows) {
    const double products = (double)rows->batch * rows->heads * rows->query_len * rows->key_len * rows->head_dim;
    const int64_t threads = products < 1e6 ? 1 : rows->threads;
    const int64_t pieces = (rows->batch * rows->kv_heads + PIECES_AT_ONCE - 1) / PIECES_AT_ONCE;
    return !work_together(do_pieces, (void *)rows, pieces, threads);
}

int64_t regard_size_of_short_rows(void) { return sizeof(struct short_rows); }
