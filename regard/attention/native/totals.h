/* The sums that make a row's logsumexp, gathered tile by tile.

   A sum relative to any of its terms is as exact as one relative to the greatest, as long as nothing overflows: the
   reference is the greatest score of the first tile, and moves only when a weight relative to it would exceed 2^64.
   The greatest score, the entropy and a weighted sum of values come with it. */

#ifndef REGARD_TOTALS_H
#define REGARD_TOTALS_H

#include "pairs.h"

#define LEEWAY 64.0f

struct totals {
    float *greatest;           /* [rows][LANES], scores */
    float *total;              /* [rows][LANES], sums of 2^(score - reference) */
    float *surprise;           /* [rows][LANES], sums of 2^(score - reference) (score - reference) */
    float *reference, *enough; /* [rows], and what a score must exceed to become the next reference */
    float *outputs;            /* [rows][width], sums of 2^(score - reference) value, where there are any */
    int64_t width;
};

static int totals_allocate(struct totals *totals, int64_t rows, int64_t width) {
    totals->greatest = malloc(rows * LANES * sizeof(float));
    totals->total = malloc(rows * LANES * sizeof(float));
    totals->surprise = malloc(rows * LANES * sizeof(float));
    totals->reference = malloc(rows * sizeof(float));
    totals->enough = malloc(rows * sizeof(float));
    totals->outputs = width ? aligned_alloc(64, parts_of(rows * width * (int64_t)sizeof(float), 64) * 64) : NULL;
    totals->width = width;
    return totals->greatest && totals->total && totals->surprise && totals->reference && totals->enough &&
           (totals->outputs || !width);
}

static void totals_free(struct totals *totals) {
    free(totals->greatest);
    free(totals->total);
    free(totals->surprise);
    free(totals->reference);
    free(totals->enough);
    free(totals->outputs);
}

static void totals_begin(struct totals *totals, int rows) {
    for (int row = 0; row < rows; row++) {
        store(totals->greatest + row * LANES, all(-INFINITY));
        store(totals->total + row * LANES, all(0.0f));
        store(totals->surprise + row * LANES, all(0.0f));
        totals->reference[row] = 0.0f;
        totals->enough[row] = -INFINITY;
    }
    if (totals->width) memset(totals->outputs, 0, rows * totals->width * sizeof(float));
}

static __attribute__((noinline)) void move_reference(struct totals *totals, int row, float reference) {
    if (totals->enough[row] != -INFINITY) {
        const float moved = totals->reference[row] - reference, factor = exp2f(moved);
        const floats total = load(totals->total + row * LANES), surprise = load(totals->surprise + row * LANES);
        store(totals->surprise + row * LANES, (surprise + total * moved) * factor);
        store(totals->total + row * LANES, total * factor);
        for (int64_t i = 0; i < totals->width; i++) totals->outputs[row * totals->width + i] *= factor;
    }
    totals->reference[row] = reference;
    totals->enough[row] = reference + LEEWAY;
}

/* Adds a tile; kept: where 2^(score - reference) goes, or NULL. */
INLINE void totals_add(struct totals *totals, int first_row, int rows, const float *scores, float *kept) {
    for (int row = first_row; row < first_row + rows; row++, scores += PANEL) {
        floats score[COLS];
        UNROLLED for (int col = 0; col < COLS; col++) score[col] = load(scores + col * LANES);
        floats here = score[0];
        UNROLLED for (int col = 1; col < COLS; col++) here = greater_of(here, score[col]);
        store(totals->greatest + row * LANES, greater_of(load(totals->greatest + row * LANES), here));
        if (greater_lanes(here, all(totals->enough[row]))) move_reference(totals, row, greatest_lane(here));
        const floats reference = all(totals->reference[row]);
        floats total = load(totals->total + row * LANES), surprise = load(totals->surprise + row * LANES);
        UNROLLED for (int col = 0; col < COLS; col++) {
            const floats power = at_least_least(score[col] - reference), weight = exp2_of(power);
            total += weight;
            surprise += weight * power;
            if (kept) store(kept + (row - first_row) * PANEL + col * LANES, weight);
        }
        store(totals->total + row * LANES, total);
        store(totals->surprise + row * LANES, surprise);
    }
}

struct ended {
    double log_total; /* in units of ln 2, the sink's share among it; minus infinity where nothing is allowed */
    double part;      /* 2^(reference - log_total): what makes weights of what was summed; 0 where nothing is allowed */
    double entropy;   /* in nats */
    float max_logit;  /* natural, as all that leaves */
};

/* sink: its score, or NULL. */
static struct ended totals_end(const struct totals *totals, int row, const float *sink) {
    const double total = sum_of_lanes(load(totals->total + row * LANES)), reference = totals->reference[row];
    const double keys = total == 0.0 ? -INFINITY : reference + log2(total);
    const double other = sink ? *sink * LOG2_OF_E : -INFINITY;
    const double greater = other > keys ? other : keys, less = other > keys ? keys : other;
    const double both = less == -INFINITY ? greater : greater + log2(1.0 + exp2(less - greater));
    struct ended ended = {both, 0.0, 0.0, -INFINITY};
    if (total == 0.0) return ended;
    ended.part = exp2(reference - ended.log_total);
    const double surprise = sum_of_lanes(load(totals->surprise + row * LANES));
    ended.entropy = ((ended.log_total - reference) * total - surprise) * ended.part * LN_OF_2;
    /* Where a score was no number the sum is none, though the greatest of the others may stand here. */
    const float greatest = greatest_lane(load(totals->greatest + row * LANES));
    ended.max_logit = isnan(total) ? NAN : (float)(greatest * LN_OF_2);
    return ended;
}

#endif
