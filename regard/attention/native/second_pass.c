/* The second pass: statistics of a softmax over all query-key pairs, from their scores and each query's logsumexp.

   Each strip of queries goes through the keys a panel at a time, so that the panel stays in the first cache and the
   strip in the second. How a problem is cut depends on its shape alone, and what several stretches of queries add to is
   kept apart and summed in a fixed order: the result is the same to the bit whatever the number of threads. Memory
   beside the results: the strips, and one sum per key and stretch. */

#include "totals.h"
#include "workers.h"

/* Results are contiguous, and all but logsumexp and max_logit are zero when handed in; NULL where not wanted. */
struct second_pass {
    struct pairs pairs;
    const float *given; /* logsumexp: [batch, heads, query_len], or NULL: it is found first */
    const float *weights;
    int64_t weights_batch_stride;
    const int64_t *columns, *places; /* ascending keys, and where each stands among those asked for */
    int64_t num_columns, sink_mass, top_k, grid_rows, grid_columns, threads;
    float *logsumexp, *max_logit, *entropy, *received, *sink_masses, *top_weights, *column_weights, *pooled;
    int64_t *top_index;
};

struct job {
    const struct second_pass *pass;
    struct cut cut;
    float *received; /* [stretches][batch][heads][key_len], where there is more than one stretch */
    float *edges;    /* [stretches][batch][heads][2][grid_columns]: first and last row of the grid */
};

/* -- one strip ----------------------------------------------------------------------------------------------------- */

struct sweep {
    const struct job *job;
    struct strip strip;
    int64_t stretch;      /* which one */
    int weighs;           /* whether anything but logsumexp, greatest scores and their places is wanted */
    float *log_total;     /* [rows], in units of ln 2; 0 where nothing is allowed */
    float *count;         /* [rows], weights of `received` */
    struct totals totals; /* of which the second sweep uses the greatest scores and the surprise */
    int64_t kept;         /* top_k rounded up to whole vectors */
    float *top_scores;    /* [rows][kept], descending */
    int32_t *top_keys;    /* the same, -1 for none */
    float *threshold;     /* [rows], the top_k-th */
    int32_t *segment;     /* [rows], of consecutive rows of one head and grid row: the first of them */
};

static int sweep_allocate(struct sweep *sweep, const struct job *job) {
    const struct second_pass *pass = job->pass;
    const int64_t rows = job->cut.strip;
    memset(sweep, 0, sizeof *sweep);
    sweep->job = job;
    const int made = strip_allocate(&sweep->strip, &pass->pairs, (int)rows) & totals_allocate(&sweep->totals, rows, 0);
    sweep->log_total = malloc(rows * sizeof(float));
    sweep->count = malloc(rows * sizeof(float));
    sweep->threshold = malloc(rows * sizeof(float));
    sweep->segment = malloc(rows * sizeof(int32_t));
    sweep->kept = parts_of(pass->top_k, LANES) * LANES;
    sweep->top_scores = malloc((rows * sweep->kept + 1) * sizeof(float));
    sweep->top_keys = malloc((rows * sweep->kept + 1) * sizeof(int32_t));
    return made && sweep->log_total && sweep->count && sweep->threshold && sweep->segment && sweep->top_scores &&
           sweep->top_keys;
}

static void sweep_free(struct sweep *sweep) {
    strip_free(&sweep->strip);
    totals_free(&sweep->totals);
    free(sweep->log_total);
    free(sweep->count);
    free(sweep->threshold);
    free(sweep->segment);
    free(sweep->top_scores);
    free(sweep->top_keys);
}

/* Finds each row's logsumexp, and what its scores alone tell: its greatest score and its entropy. */
static void find_logsumexp(struct sweep *sweep) {
    const struct second_pass *pass = sweep->job->pass;
    struct strip *strip = &sweep->strip;
    const int64_t key_len = strip->pairs->key_len;
    float scores[ROWS * PANEL] __attribute__((aligned(64)));
    totals_begin(&sweep->totals, strip->rows);
    for (int64_t key = 0; key < key_len; key += PANEL) {
        const int count = (int)least_of(PANEL, key_len - key);
        for (int block = next_block(strip, 0, key, count); block < strip->blocks;
             block = next_block(strip, block + 1, key, count))
            if (tile_of_scores(strip, block, key, count, scores))
                totals_add(&sweep->totals, block * ROWS, rows_of(strip, block), scores, NULL);
    }
    for (int row = 0; row < strip->rows; row++) {
        const float *sink = strip->pairs->sink;
        const struct ended ended = totals_end(&sweep->totals, row, sink ? sink + strip->head[row] : NULL);
        const int64_t place = place_of(strip, row);
        sweep->log_total[row] = ended.log_total == -INFINITY ? 0.0f : (float)ended.log_total;
        pass->logsumexp[place] = (float)(ended.log_total * LN_OF_2);
        pass->max_logit[place] = ended.max_logit;
        if (pass->entropy) pass->entropy[place] = (float)ended.entropy;
    }
}

/* -- the statistics ------------------------------------------------------------------------------------------------ */

/* Puts a score and its key into their place in a descending row, without a branch on where that is. */
INLINE void insert(float *scores, int32_t *keys, int64_t kept, float score, int32_t key) {
    floats before = all(INFINITY);
    ints key_before = all_ints(0), stood_before = all_ints(-1);
    for (int64_t at = 0; at < kept; at += LANES) {
        const floats here = load(scores + at), key_here = load((const float *)keys + at);
        const ints stands = here >= all(score);
        const ints next = TAKE(stood_before, stands, ONE_FURTHER);
        const floats moved = TAKE(before, here, ONE_FURTHER);
        const ints key_moved = TAKE(key_before, (ints)key_here, ONE_FURTHER);
        store(scores + at, choose(stands, here, choose(next, all(score), moved)));
        store((float *)keys + at, choose(stands, key_here, choose(next, (floats)all_ints(key), (floats)key_moved)));
        before = here;
        key_before = (ints)key_here;
        stood_before = stands;
    }
}

/* Lets the scores of a row above its threshold in among its greatest. */
static __attribute__((noinline)) void keep_top(struct sweep *sweep, int row, int64_t first_key, const float *scores) {
    float *top_scores = sweep->top_scores + row * sweep->kept;
    int32_t *top_keys = sweep->top_keys + row * sweep->kept;
    for (int col = 0; col < COLS; col++) {
        const float threshold = top_scores[sweep->job->pass->top_k - 1];
        uint32_t lanes = greater_lanes(load(scores + col * LANES), all(threshold));
        for (; lanes; lanes &= lanes - 1) {
            const int at = col * LANES + __builtin_ctz(lanes);
            insert(top_scores, top_keys, sweep->kept, scores[at], (int32_t)(first_key + at));
        }
    }
    sweep->threshold[row] = top_scores[sweep->job->pass->top_k - 1];
}

/* Turns the scores of a block into weights and adds up what is summed over keys; sums: what is summed over queries, of
   rows that all count into one segment, or NULL. kept: the weights, or NULL. */
INLINE void weigh(struct sweep *sweep, int block, int rows, int64_t first_key, const float *scores, floats *sums,
                  float *kept) {
    const int64_t top_k = sweep->job->pass->top_k;
    floats sum[COLS];
    UNROLLED for (int col = 0; col < COLS; col++) sum[col] = all(0.0f);
    for (int row = block * ROWS; row < block * ROWS + rows; row++, scores += PANEL) {
        floats score[COLS], greatest = load(sweep->totals.greatest + row * LANES);
        UNROLLED for (int col = 0; col < COLS; col++) score[col] = load(scores + col * LANES);
        floats here = score[0];
        UNROLLED for (int col = 1; col < COLS; col++) here = greater_of(here, score[col]);
        store(sweep->totals.greatest + row * LANES, greater_of(greatest, here));
        if (top_k && greater_lanes(here, all(sweep->threshold[row]))) keep_top(sweep, row, first_key, scores);
        if (!sweep->weighs) continue;
        const floats log_total = all(sweep->log_total[row]), count = all(sweep->count[row]);
        floats surprise = load(sweep->totals.surprise + row * LANES);
        UNROLLED for (int col = 0; col < COLS; col++) {
            const floats log_weight = at_least_least(score[col] - log_total);
            const floats weight = exp2_of(log_weight);
            surprise += weight * log_weight;
            if (sums) sum[col] += weight * count;
            if (kept) store(kept + (row - block * ROWS) * PANEL + col * LANES, weight);
        }
        store(sweep->totals.surprise + row * LANES, surprise);
    }
    if (sums) UNROLLED for (int col = 0; col < COLS; col++) sums[col] += sum[col];
}

/* What is added up over the queries of one segment, against one panel. */
struct column_sums {
    floats counted[COLS], plain[COLS]; /* with the weights of `received`; without, where these differ */
};

/* The row of a result's grid that a query row counts into, given where pieces share none. */
static float *grid_row_of(const struct sweep *sweep, int row) {
    const struct second_pass *pass = sweep->job->pass;
    const struct pairs *pairs = &pass->pairs;
    const struct cut *cut = &sweep->job->cut;
    const struct strip *strip = &sweep->strip;
    const int64_t of_head = strip->item * pairs->heads + strip->head[row];
    const int64_t grid_row = strip->query[row] * pass->grid_rows / pairs->query_len;
    if (cut->stretches > 1) {
        const int64_t first = sweep->stretch * cut->stretch;
        const int64_t last = least_of(first + cut->stretch, pairs->query_len) - 1;
        const int64_t edge = grid_row == first * pass->grid_rows / pairs->query_len  ? 0
                             : grid_row == last * pass->grid_rows / pairs->query_len ? 1
                                                                                      : 2;
        if (edge < 2)
            return sweep->job->edges +
                   ((sweep->stretch * pairs->batch * pairs->heads + of_head) * 2 + edge) * pass->grid_columns;
    }
    return pass->pooled + (of_head * pass->grid_rows + grid_row) * pass->grid_columns;
}

static void flush(const struct sweep *sweep, int row, int64_t first_key, int count, const int32_t *cells,
                  struct column_sums *sums) {
    const struct second_pass *pass = sweep->job->pass;
    const struct pairs *pairs = &pass->pairs;
    float of_keys[PANEL];
    if (pass->received) {
        const int64_t of_head = sweep->strip.item * pairs->heads + sweep->strip.head[row];
        float *received = sweep->job->cut.stretches > 1
                              ? sweep->job->received + sweep->stretch * pairs->batch * pairs->heads * pairs->key_len
                              : pass->received;
        received += of_head * pairs->key_len + first_key;
        UNROLLED for (int col = 0; col < COLS; col++) store(of_keys + col * LANES, sums->counted[col]);
        for (int j = 0; j < count; j++) received[j] += of_keys[j];
    }
    if (pass->pooled) {
        float *pooled = grid_row_of(sweep, row);
        UNROLLED for (int col = 0; col < COLS; col++)
            store(of_keys + col * LANES, pass->weights ? sums->plain[col] : sums->counted[col]);
        for (int j = 0; j < count;) {
            const int32_t cell = cells[j];
            float sum = 0.0f;
            for (; j < count && cells[j] == cell; j++) sum += of_keys[j];
            pooled[cell] += sum;
        }
    }
    memset(sums, 0, sizeof *sums);
}

/* What single weights are wanted for: chosen columns, and the mass on the first keys. */
static void read_weights(const struct sweep *sweep, int block, int rows, int64_t first_key, int count,
                         const float *kept, int64_t first_column, int64_t last_column) {
    const struct second_pass *pass = sweep->job->pass;
    const int64_t sinks = least_of(pass->sink_mass - first_key, count);
    for (int row = 0; row < rows; row++, kept += PANEL) {
        const int64_t place = place_of(&sweep->strip, block * ROWS + row);
        for (int64_t c = first_column; c < last_column; c++)
            pass->column_weights[place * pass->num_columns + pass->places[c]] = kept[pass->columns[c] - first_key];
        if (sinks > 0) {
            float sum = 0.0f;
            for (int64_t j = 0; j < sinks; j++) sum += kept[j];
            pass->sink_masses[place] += sum;
        }
    }
}

static void sweep_panel(struct sweep *sweep, int64_t first_key, int count, int64_t first_column, int64_t last_column) {
    const struct second_pass *pass = sweep->job->pass;
    struct strip *strip = &sweep->strip;
    float scores[ROWS * PANEL] __attribute__((aligned(64))), kept[ROWS * PANEL] __attribute__((aligned(64)));
    int32_t cells[PANEL];
    struct column_sums sums = {0};
    const int summed = pass->received || pass->pooled, both = pass->weights && pass->pooled;
    const int single = first_column < last_column || first_key < pass->sink_mass;
    int segment = -1;
    if (pass->pooled)
        for (int j = 0; j < count; j++)
            cells[j] = (int32_t)((first_key + j) * pass->grid_columns / strip->pairs->key_len);
    for (int block = next_block(strip, 0, first_key, count); block < strip->blocks;
         block = next_block(strip, block + 1, first_key, count)) {
        if (!tile_of_scores(strip, block, first_key, count, scores)) continue;
        const int rows = rows_of(strip, block), first = block * ROWS;
        const int *segments = sweep->segment + first;
        const int even = segments[0] == segments[rows - 1] && !both;
        if (even && !single) {
            if (summed && segments[0] != segment) {
                if (segment >= 0) flush(sweep, segment, first_key, count, cells, &sums);
                segment = segments[0];
            }
            weigh(sweep, block, rows, first_key, scores, sums.counted, NULL);
            continue;
        }
        weigh(sweep, block, rows, first_key, scores, NULL, kept);
        if (single) read_weights(sweep, block, rows, first_key, count, kept, first_column, last_column);
        if (!summed) continue;
        for (int row = 0; row < rows; row++) {
            if (segments[row] != segment) {
                if (segment >= 0) flush(sweep, segment, first_key, count, cells, &sums);
                segment = segments[row];
            }
            for (int col = 0; col < COLS; col++) {
                const floats weight = load(kept + row * PANEL + col * LANES);
                sums.counted[col] += weight * sweep->count[first + row];
                sums.plain[col] += weight;
            }
        }
    }
    if (segment >= 0) flush(sweep, segment, first_key, count, cells, &sums);
}

static void write_top(const struct sweep *sweep, int row) {
    const struct second_pass *pass = sweep->job->pass;
    const int64_t place = place_of(&sweep->strip, row) * pass->top_k, at = row * sweep->kept;
    for (int64_t i = 0; i < pass->top_k; i++) {
        const int32_t key = sweep->top_keys[at + i];
        const float weight = key < 0 ? 0.0f : exp2f(sweep->top_scores[at + i] - sweep->log_total[row]);
        pass->top_weights[place + i] = weight;
        pass->top_index[place + i] = weight == 0.0f ? -1 : key;
    }
}

static void begin_rows(struct sweep *sweep) {
    const struct second_pass *pass = sweep->job->pass;
    const struct strip *strip = &sweep->strip;
    const int64_t query_len = strip->pairs->query_len;
    for (int row = 0; row < strip->rows; row++) {
        const int64_t query = strip->query[row];
        sweep->count[row] = pass->weights ? pass->weights[strip->item * pass->weights_batch_stride + query] : 1.0f;
        sweep->threshold[row] = -INFINITY;
        store(sweep->totals.greatest + row * LANES, all(-INFINITY));
        store(sweep->totals.surprise + row * LANES, all(0.0f));
        const int same = row > 0 && strip->head[row] == strip->head[row - 1] &&
                         (!pass->pooled || query * pass->grid_rows / query_len ==
                                               strip->query[row - 1] * pass->grid_rows / query_len);
        sweep->segment[row] = same ? sweep->segment[row - 1] : row;
    }
    for (int64_t i = 0; i < strip->rows * sweep->kept; i++) {
        sweep->top_scores[i] = -INFINITY;
        sweep->top_keys[i] = -1;
    }
}

/* Takes the logsumexp of the kernel that ran. Some kernels give NaN where nothing is allowed: there, ours is found. */
static void take_given(struct sweep *sweep) {
    const struct second_pass *pass = sweep->job->pass;
    const struct strip *strip = &sweep->strip;
    int lost = 0;
    for (int row = 0; row < strip->rows; row++) lost |= isnan(pass->given[place_of(strip, row)]);
    if (lost) find_logsumexp(sweep);
    for (int row = 0; row < strip->rows; row++) {
        const float given = pass->given[place_of(strip, row)];
        if (!isnan(given)) sweep->log_total[row] = given == -INFINITY ? 0.0f : (float)(given * LOG2_OF_E);
        store(sweep->totals.surprise + row * LANES, all(0.0f));
    }
}

static void end_rows(struct sweep *sweep) {
    const struct second_pass *pass = sweep->job->pass;
    const struct strip *strip = &sweep->strip;
    for (int row = 0; row < strip->rows; row++) {
        const int64_t place = place_of(strip, row);
        if (pass->top_k) write_top(sweep, row);
        if (!pass->given || isnan(pass->given[place])) continue; /* found and written */
        const float greatest = greatest_lane(load(sweep->totals.greatest + row * LANES));
        const float nothing = strip->pairs->sink ? strip->pairs->sink[strip->head[row]] : -INFINITY;
        pass->logsumexp[place] = greatest == -INFINITY ? nothing : pass->given[place];
        pass->max_logit[place] = (float)(greatest * LN_OF_2);
        if (pass->entropy)
            pass->entropy[place] = (float)(0.0 - sum_of_lanes(load(sweep->totals.surprise + row * LANES)) * LN_OF_2);
    }
}

static void sweep_strip(struct sweep *sweep) {
    const struct second_pass *pass = sweep->job->pass;
    const int64_t key_len = pass->pairs.key_len;
    const int of_weights = pass->received || pass->pooled || pass->sink_masses || pass->column_weights;
    int64_t first = 0, last = 0; /* columns of the panel */
    begin_rows(sweep);
    if (pass->given)
        take_given(sweep);
    else
        find_logsumexp(sweep);
    sweep->weighs = of_weights || (pass->given && pass->entropy);
    if (pass->given || of_weights || pass->top_k)
        for (int64_t key = 0; key < key_len; key += PANEL) {
            const int count = (int)least_of(PANEL, key_len - key);
            while (last < pass->num_columns && pass->columns[last] < key + count) last++;
            sweep_panel(sweep, key, count, first, last);
            first = last;
        }
    end_rows(sweep);
}

/* -- the pieces ---------------------------------------------------------------------------------------------------- */

static int do_pieces(struct workers *workers) {
    const struct job *job = workers->problem;
    struct sweep sweep;
    const int made = sweep_allocate(&sweep, job);
    for (int64_t number; made && (number = next_piece(workers)) >= 0;) {
        const struct piece piece = piece_of(&job->pass->pairs, &job->cut, number);
        sweep.stretch = piece.stretch;
        for (int64_t first = piece.first; first < piece.last; first += piece.step) {
            const int64_t last = least_of(first + piece.step, piece.last);
            strip_fill(&sweep.strip, piece.item, piece.first_head, piece.last_head, first, last);
            sweep_strip(&sweep);
        }
    }
    sweep_free(&sweep);
    return made;
}

/* What the stretches received apart, together; likewise the rows of the grid that they share. */
static void join_stretches(const struct job *job) {
    const struct second_pass *pass = job->pass;
    const struct pairs *pairs = &pass->pairs;
    const struct cut *cut = &job->cut;
    const int64_t all_heads = pairs->batch * pairs->heads, keys = all_heads * pairs->key_len;
    if (pass->received)
        for (int64_t at = 0; at < keys; at++) {
            double sum = 0.0;
            for (int64_t stretch = 0; stretch < cut->stretches; stretch++) sum += job->received[stretch * keys + at];
            pass->received[at] = (float)sum;
        }
    if (!pass->pooled) return;
    for (int64_t stretch = 0; stretch < cut->stretches; stretch++) {
        const int64_t first = stretch * cut->stretch, last = least_of(first + cut->stretch, pairs->query_len) - 1;
        const int64_t rows[2] = {first * pass->grid_rows / pairs->query_len, last * pass->grid_rows / pairs->query_len};
        for (int64_t head = 0; head < all_heads; head++)
            for (int edge = 0; edge < 2; edge++) {
                const float *from = job->edges + ((stretch * all_heads + head) * 2 + edge) * pass->grid_columns;
                float *to = pass->pooled + (head * pass->grid_rows + rows[edge]) * pass->grid_columns;
                for (int64_t c = 0; c < pass->grid_columns; c++) to[c] += from[c];
            }
    }
}

/* Returns 0, or 1 where memory was short. */
int regard_second_pass(const struct second_pass *pass) {
    const struct pairs *pairs = &pass->pairs;
    struct job job = {pass, cut_of(pairs), NULL, NULL};
    const int64_t all_heads = pairs->batch * pairs->heads;
    if (job.cut.stretches > 1) {
        if (pass->received) job.received = calloc(job.cut.stretches * all_heads * pairs->key_len + 1, sizeof(float));
        if (pass->pooled) job.edges = calloc(job.cut.stretches * all_heads * 2 * pass->grid_columns, sizeof(float));
        if ((pass->received && !job.received) || (pass->pooled && !job.edges)) {
            free(job.received);
            free(job.edges);
            return 1;
        }
    }
    const int done = work_together(do_pieces, &job, job.cut.pieces, threads_for(pairs, pass->threads));
    if (done && job.cut.stretches > 1) join_stretches(&job);
    free(job.received);
    free(job.edges);
    return !done;
}

/* How the object was compiled: what `regard.attention.native` shows and checks. */
int64_t regard_size_of_second_pass(void) { return sizeof(struct second_pass); }
int regard_lanes(void) { return LANES; }
