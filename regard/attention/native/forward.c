/* Attention itself in one pass over the keys: softmax of the scores, times the values.

   Each strip of queries goes through the keys a panel at a time. A tile's scores become weights relative to a reference
   that hardly ever moves (`totals.h`), so that sums of values need no correcting, and logsumexp, greatest score and
   entropy are there at the end. The panel's keys and values lie in the first cache, the strip and its sums in the
   second. */

#include "totals.h"
#include "workers.h"

/* logsumexp, max_logit, entropy: [batch, heads, query_len], contiguous. */
struct forward {
    struct pairs pairs;
    const void *value;
    int64_t value_strides[4], value_dim, output_strides[3], threads; /* output: the last axis contiguous */
    float *output, *logsumexp, *max_logit, *entropy;
};

#define PAIR (2 * LANES) /* components of values that are summed at once */

struct job {
    const struct forward *forward;
    struct cut cut;
};

struct pass {
    const struct forward *forward;
    struct strip strip;
    struct totals totals;
    float *values; /* [PANEL][width], of the panel at packed_value; width: value_dim rounded up to PAIR */
    int64_t packed_value, width;
};

static int pass_allocate(struct pass *pass, const struct job *job) {
    const struct forward *forward = job->forward;
    memset(pass, 0, sizeof *pass);
    pass->forward = forward;
    pass->width = parts_of(forward->value_dim, PAIR) * PAIR;
    pass->values = aligned_alloc(64, parts_of(PANEL * pass->width * (int64_t)sizeof(float), 64) * 64);
    const int made = strip_allocate(&pass->strip, &forward->pairs, (int)job->cut.strip);
    return totals_allocate(&pass->totals, job->cut.strip, pass->width) && made && pass->values;
}

static void pass_free(struct pass *pass) {
    strip_free(&pass->strip);
    totals_free(&pass->totals);
    free(pass->values);
}

static void pack_values(struct pass *pass, int64_t first_key, int count) {
    const struct forward *forward = pass->forward;
    const int64_t *strides = forward->value_strides, width = pass->width;
    const int32_t type = forward->pairs.inputs_type;
    const int64_t at = pass->strip.item * strides[0] + pass->strip.kv_head * strides[1] + first_key * strides[2];
    const int64_t vectors = strides[3] == 1 ? forward->value_dim / LANES : 0;
    for (int j = 0; j < count; j++) {
        const int64_t from = at + j * strides[2];
        float *to = pass->values + j * width;
        for (int64_t v = 0; v < vectors; v++)
            store(to + v * LANES, load_inputs(forward->value, from + v * LANES, type));
        for (int64_t i = vectors * LANES; i < width; i++)
            to[i] = i < forward->value_dim ? load_input(forward->value, from + i * strides[3], type) : 0.0f;
    }
    pass->packed_value = first_key;
}

/* Adds the values of keys [first, last) of a panel, times their weights, to a block's sums. */
INLINE void add_pair(const int rows, int64_t width, int first, int last, const float *weights, const float *values,
                     float *outputs) {
    floats sum[ROWS][2];
    UNROLLED for (int row = 0; row < rows; row++) {
        sum[row][0] = *(const floats *)(outputs + row * width);
        sum[row][1] = *(const floats *)(outputs + row * width + LANES);
    }
    for (int key = first; key < last; key++) {
        const floats one = *(const floats *)(values + key * width);
        const floats other = *(const floats *)(values + key * width + LANES);
        UNROLLED for (int row = 0; row < rows; row++) {
            const floats weight = all(weights[row * PANEL + key]);
            sum[row][0] += weight * one;
            sum[row][1] += weight * other;
        }
    }
    UNROLLED for (int row = 0; row < rows; row++) {
        *(floats *)(outputs + row * width) = sum[row][0];
        *(floats *)(outputs + row * width + LANES) = sum[row][1];
    }
}

static void add_values(int rows, int64_t width, int first, int last, const float *weights, const float *values,
                       float *outputs) {
    for (int64_t i = 0; i < width; i += PAIR)
        if (rows == ROWS)
            add_pair(ROWS, width, first, last, weights, values + i, outputs + i);
        else
            for (int row = 0; row < rows; row++)
                add_pair(1, width, first, last, weights + row * PANEL, values + i, outputs + row * width + i);
}

/* The keys of a panel that some row of the block may attend to: values beyond them are not read, be they NaN. */
static void hull_of(const struct strip *strip, int block, int64_t first_key, int count, int *first, int *last) {
    *first = 0;
    *last = count;
    if (!strip->pairs->ranges) return;
    int64_t least = INT32_MAX, greatest = 0;
    for (int64_t r = 0; r < strip->pairs->num_ranges; r++) {
        const struct reach *reach = strip->reach + block * strip->pairs->num_ranges + r;
        least = reach->first < least ? reach->first : least;
        greatest = reach->last > greatest ? reach->last : greatest;
    }
    if (least > first_key) *first = (int)(least - first_key);
    if (greatest < first_key + count) *last = (int)(greatest - first_key);
}

static void do_strip(struct pass *pass) {
    const struct forward *forward = pass->forward;
    struct strip *strip = &pass->strip;
    const int64_t key_len = strip->pairs->key_len, width = pass->width;
    float scores[ROWS * PANEL] __attribute__((aligned(64))), weights[ROWS * PANEL] __attribute__((aligned(64)));
    pass->packed_value = -1;
    totals_begin(&pass->totals, strip->rows);
    for (int64_t key = 0; key < key_len; key += PANEL) {
        const int count = (int)least_of(PANEL, key_len - key);
        for (int block = next_block(strip, 0, key, count); block < strip->blocks;
             block = next_block(strip, block + 1, key, count)) {
            if (!tile_of_scores(strip, block, key, count, scores)) continue;
            if (pass->packed_value != key) pack_values(pass, key, count);
            const int rows = rows_of(strip, block);
            int first, last;
            hull_of(strip, block, key, count, &first, &last);
            totals_add(&pass->totals, block * ROWS, rows, scores, weights);
            add_values(rows, width, first, last, weights, pass->values, pass->totals.outputs + block * ROWS * width);
        }
    }
    for (int row = 0; row < strip->rows; row++) {
        const float *sink = strip->pairs->sink, *sums = pass->totals.outputs + row * width;
        const struct ended ended = totals_end(&pass->totals, row, sink ? sink + strip->head[row] : NULL);
        const int64_t place = place_of(strip, row);
        forward->logsumexp[place] = (float)(ended.log_total * LN_OF_2);
        forward->max_logit[place] = ended.max_logit;
        forward->entropy[place] = (float)ended.entropy;
        float *output = forward->output + strip->item * forward->output_strides[0] +
                        strip->head[row] * forward->output_strides[1] + strip->query[row] * forward->output_strides[2];
        /* `part` may be beyond floats where the reference lay far below: such a row's sums are as small. */
        for (int64_t i = 0; i < forward->value_dim; i++) output[i] = (float)(sums[i] * ended.part);
    }
}

static int do_pieces(struct workers *workers) {
    const struct job *job = workers->problem;
    struct pass pass;
    const int made = pass_allocate(&pass, job);
    for (int64_t number; made && (number = next_piece(workers)) >= 0;) {
        const struct piece piece = piece_of(&job->forward->pairs, &job->cut, number);
        for (int64_t first = piece.first; first < piece.last; first += piece.step) {
            const int64_t last = least_of(first + piece.step, piece.last);
            strip_fill(&pass.strip, piece.item, piece.first_head, piece.last_head, first, last);
            do_strip(&pass);
        }
    }
    pass_free(&pass);
    return made;
}

/* Returns 0, or 1 where memory was short. */
int regard_forward(const struct forward *forward) {
    struct job job = {forward, cut_of(&forward->pairs)};
    return !work_together(do_pieces, &job, job.cut.pieces, threads_for(&forward->pairs, forward->threads));
}

int64_t regard_size_of_forward(void) { return sizeof(struct forward); }
