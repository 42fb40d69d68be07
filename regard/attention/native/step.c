/* One token of one text through all layers of a decoder-only Transformer: what a language model that writes does.

   A step reads every weight once and multiplies it with one vector, so its time is that of the memory; what torch adds,
   some microseconds for each of a hundred small operations, is as much again. Here nothing stands between the products.
   Layers are pre-norm; all is float32. A product's rows are shared out, each row's sum made by one thread in one
   order, so that no bit depends on the threads. */

#include "vectors.h"
#include "workers.h"

#include <stdlib.h>

#define ROWS_AT_ONCE 4       /* of a matrix that share the reads of the vector */
#define ROWS_OF_PIECE 48     /* a multiple of the above */
#define SHARED_FROM 32768    /* numbers of a product below which sharing it out costs more than it gains */

/* bias: NULL for none; so is every norm's. */
struct matrix {
    const float *weight, *bias; /* [outputs][inputs] */
    int64_t outputs, inputs;
};

struct norm {
    const float *weight, *bias;
    double eps;
    int64_t centred; /* layer norm takes the mean off, an RMS norm does not */
};

struct layer {
    struct norm before_attention, before_feed_forward;
    struct matrix query_key_value, output, inner, outer;
    float *keys, *values;  /* [kv_heads][room][head_dim] of this layer, strides below */
    int64_t head_stride;   /* of keys and values, in floats */
};

struct step {
    const struct layer *layers;
    int64_t num_layers, dim, heads, kv_heads, head_dim, width, gated, activation, position, threads;
    const float *cosines, *sines; /* [head_dim / 2] of this position; NULL where nothing turns */
    double scale;
    struct norm last;
    float *vector; /* [dim]: the embedded token, and what comes out */
};

enum { RELU, GELU, SILU };

struct room {
    float *normed, *projected, *attended, *hidden, *scores;
    int64_t scores_stride; /* of a head */
};

/* -- products ------------------------------------------------------------------------------------------------------ */

INLINE void dots(const float *rows, int64_t stride, int count, const float *vector, int64_t length, float *sums) {
    floats wide[ROWS_AT_ONCE][2] = {{{0}}};
    int64_t i = 0;
    for (; i + 2 * LANES <= length; i += 2 * LANES) {
        const floats one = load(vector + i), other = load(vector + i + LANES);
        UNROLLED for (int row = 0; row < count; row++) {
            wide[row][0] += load(rows + row * stride + i) * one;
            wide[row][1] += load(rows + row * stride + i + LANES) * other;
        }
    }
    UNROLLED for (int row = 0; row < count; row++) {
        const floats both = wide[row][0] + wide[row][1];
        float sum = 0.0f;
        for (int lane = 0; lane < LANES; lane++) sum += both[lane];
        for (int64_t j = i; j < length; j++) sum += rows[row * stride + j] * vector[j];
        sums[row] = sum;
    }
}

/* outputs[first .. last) of matrix times vector, with the bias. */
static void product(const struct matrix *matrix, const float *vector, int64_t first, int64_t last, float *outputs) {
    const int64_t inputs = matrix->inputs;
    int64_t row = first;
    for (; row + ROWS_AT_ONCE <= last; row += ROWS_AT_ONCE)
        dots(matrix->weight + row * inputs, inputs, ROWS_AT_ONCE, vector, inputs, outputs + row);
    for (; row < last; row++) dots(matrix->weight + row * inputs, inputs, 1, vector, inputs, outputs + row);
    if (matrix->bias)
        for (row = first; row < last; row++) outputs[row] += matrix->bias[row];
}

static void normalise(const struct norm *norm, const float *vector, int64_t dim, float *normed) {
    double mean = 0.0, square = 0.0;
    if (norm->centred) {
        for (int64_t i = 0; i < dim; i++) mean += vector[i];
        mean /= dim;
    }
    for (int64_t i = 0; i < dim; i++) square += (vector[i] - mean) * (vector[i] - mean);
    const float by = (float)(1.0 / sqrt(square / dim + norm->eps));
    for (int64_t i = 0; i < dim; i++) normed[i] = (float)(vector[i] - mean) * by * norm->weight[i];
    if (norm->bias)
        for (int64_t i = 0; i < dim; i++) normed[i] += norm->bias[i];
}

/* values[i] become activation(values[i]), times others[i] where there are some. */
static void activate(int64_t activation, float *values, const float *others, int64_t count) {
    int64_t i = 0;
    if (activation == SILU) {
        for (; i + LANES <= count; i += LANES) {
            const floats value = load(values + i);
            /* e^-value, kept below 2^126, where the quotient is 0 to every digit that counts. */
            const floats power = -greater_of(all(-126.0f), value * (float)LOG2_OF_E);
            store(values + i, value / (1.0f + exp2_of(at_least_least(power))));
        }
        for (; i < count; i++) values[i] = values[i] / (1.0f + expf(-values[i]));
    } else if (activation == GELU) {
        for (; i < count; i++) values[i] = 0.5f * values[i] * (1.0f + erff(values[i] * 0.70710678118654752f));
    } else {
        for (; i < count; i++) values[i] = values[i] < 0.0f ? 0.0f : values[i]; /* keeps what is no number */
    }
    if (others)
        for (i = 0; i < count; i++) values[i] *= others[i];
}

/* -- attention ----------------------------------------------------------------------------------------------------- */

/* Channel i is turned with channel i + half. */
static void turn(const struct step *step, float *head) {
    const int64_t half = step->head_dim / 2;
    if (!step->cosines) return;
    for (int64_t i = 0; i < half; i++) {
        const float first = head[i], second = head[i + half];
        head[i] = first * step->cosines[i] - second * step->sines[i];
        head[i + half] = second * step->cosines[i] + first * step->sines[i];
    }
}

static void attend(const struct step *step, const struct layer *layer, const struct room *room, int64_t head) {
    const int64_t dim = step->head_dim, keys = step->position + 1, of_keys = head / (step->heads / step->kv_heads);
    const float *query = room->projected + head * dim;
    const float *key = layer->keys + of_keys * layer->head_stride, *value = layer->values + of_keys * layer->head_stride;
    float *scores = room->scores + head * room->scores_stride, *output = room->attended + head * dim;
    int64_t j = 0;
    for (; j + ROWS_AT_ONCE <= keys; j += ROWS_AT_ONCE) dots(key + j * dim, dim, ROWS_AT_ONCE, query, dim, scores + j);
    for (; j < keys; j++) dots(key + j * dim, dim, 1, query, dim, scores + j);
    const float by = (float)(step->scale * LOG2_OF_E);
    float greatest = scores[0] * by;
    for (j = 0; j < keys; j++) {
        scores[j] *= by;
        greatest = scores[j] > greatest ? scores[j] : greatest;
    }
    for (j = keys; j % LANES; j++) scores[j] = -INFINITY;
    double sum = 0.0;
    for (j = 0; j < keys; j += LANES) {
        const floats weight = exp2_of(at_least_least(load(scores + j) - greatest));
        store(scores + j, weight);
        sum += sum_of_lanes(weight);
    }
    memset(output, 0, dim * sizeof(float));
    for (j = 0; j < keys; j++) {
        const float weight = scores[j];
        const float *row = value + j * dim;
        for (int64_t i = 0; i < dim; i++) output[i] += weight * row[i];
    }
    const float whole = (float)(1.0 / sum);
    for (int64_t i = 0; i < dim; i++) output[i] *= whole;
}

/* -- a step -------------------------------------------------------------------------------------------------------- */

enum phase { PROJECT, ATTEND, RETURN, WIDEN, NARROW };

struct job {
    const struct step *step;
    const struct layer *layer;
    const struct room *room;
    enum phase phase;
    int64_t rows, rows_of_piece;
};

static void do_rows(const struct job *job, int64_t first, int64_t last) {
    const struct step *step = job->step;
    const struct layer *layer = job->layer;
    const struct room *room = job->room;
    switch (job->phase) {
    case PROJECT:
        product(&layer->query_key_value, room->normed, first, last, room->projected);
        break;
    case ATTEND:
        for (int64_t head = first; head < last; head++) attend(step, layer, room, head);
        break;
    case RETURN:
        product(&layer->output, room->attended, first, last, room->normed);
        for (int64_t i = first; i < last; i++) step->vector[i] += room->normed[i];
        break;
    case WIDEN:
        product(&layer->inner, room->normed, first, last, room->hidden);
        if (step->gated) product(&layer->inner, room->normed, step->width + first, step->width + last, room->hidden);
        activate(step->activation, room->hidden + first, step->gated ? room->hidden + step->width + first : NULL,
                 last - first);
        break;
    case NARROW:
        product(&layer->outer, room->hidden, first, last, room->normed);
        for (int64_t i = first; i < last; i++) step->vector[i] += room->normed[i];
        break;
    }
}

static int do_pieces(struct workers *workers) {
    const struct job *job = workers->problem;
    for (int64_t piece; (piece = next_piece(workers)) >= 0;) {
        const int64_t first = piece * job->rows_of_piece, last = first + job->rows_of_piece;
        do_rows(job, first, last < job->rows ? last : job->rows);
    }
    return 1;
}

static void run(struct job *job, enum phase phase, int64_t rows, int64_t inputs) {
    job->phase = phase, job->rows = rows;
    job->rows_of_piece = phase == ATTEND ? 1 : ROWS_OF_PIECE;
    const int64_t pieces = (rows + job->rows_of_piece - 1) / job->rows_of_piece;
    const int64_t threads = rows * inputs < SHARED_FROM ? 1 : job->step->threads;
    if (threads > 1) work_together(do_pieces, job, pieces, threads);
    else do_rows(job, 0, rows);
}

static void do_layer(const struct step *step, const struct layer *layer, const struct room *room) {
    struct job job = {.step = step, .layer = layer, .room = room};
    const int64_t dim = step->dim, head_dim = step->head_dim, query_width = step->heads * head_dim;
    normalise(&layer->before_attention, step->vector, dim, room->normed);
    run(&job, PROJECT, layer->query_key_value.outputs, dim);
    for (int64_t head = 0; head < step->heads; head++) turn(step, room->projected + head * head_dim);
    for (int64_t head = 0; head < step->kv_heads; head++) {
        float *key = room->projected + query_width + head * head_dim;
        const float *value = key + step->kv_heads * head_dim;
        const int64_t at = head * layer->head_stride + step->position * head_dim;
        turn(step, key);
        memcpy(layer->keys + at, key, head_dim * sizeof(float));
        memcpy(layer->values + at, value, head_dim * sizeof(float));
    }
    run(&job, ATTEND, step->heads, 2 * (step->position + 1) * head_dim);
    run(&job, RETURN, dim, query_width);
    normalise(&layer->before_feed_forward, step->vector, dim, room->normed);
    run(&job, WIDEN, step->width, step->gated ? 2 * dim : dim);
    run(&job, NARROW, dim, step->width);
}

INLINE int64_t rounded(int64_t count) { return (count + LANES - 1) / LANES * LANES; }

/* Returns 0, or 1 where memory was short. */
int regard_step(const struct step *step) {
    const int64_t widest = (step->heads + 2 * step->kv_heads) * step->head_dim;
    const int64_t sizes[] = {rounded(step->dim), rounded(widest), rounded(step->heads * step->head_dim),
                             rounded(step->width * (step->gated ? 2 : 1)), step->heads * rounded(step->position + 1)};
    struct room room = {.scores_stride = rounded(step->position + 1)};
    float **const parts[] = {&room.normed, &room.projected, &room.attended, &room.hidden, &room.scores};
    int64_t total = 0;
    for (int i = 0; i < 5; i++) total += sizes[i];
    float *memory = aligned_alloc(64, (total * sizeof(float) + 63) / 64 * 64), *next = memory;
    if (!memory) return 1;
    for (int i = 0; i < 5; i++) *parts[i] = next, next += sizes[i];
    for (int64_t i = 0; i < step->num_layers; i++) do_layer(step, &step->layers[i], &room);
    normalise(&step->last, step->vector, step->dim, room.normed);
    memcpy(step->vector, room.normed, step->dim * sizeof(float));
    free(memory);
    return 0;
}

int64_t regard_size_of_step(void) { return sizeof(struct step) + sizeof(struct layer); }
