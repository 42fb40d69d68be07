/* Numbered pieces of work, handed out to threads one at a time.

   Which thread does which piece is a matter of chance, so a piece must write nothing that another reads or writes.
   The threads are those of torch's OpenMP pool, whose address `regard_use_pool` is given: they wait for work spinning,
   and threads beside them would have to share their cores. Without a pool, plain threads are made for each call. */

#ifndef REGARD_WORKERS_H
#define REGARD_WORKERS_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>

struct workers {
    /* Does pieces as `next_piece` yields them; returns 0 where memory was short. */
    int (*work)(struct workers *);
    void *problem;
    int64_t pieces;
    _Atomic int64_t taken;
    _Atomic int failed;
};

/* The number of a piece that nobody else does, or -1 when all are taken. */
static inline int64_t next_piece(struct workers *workers) {
    const int64_t piece = atomic_fetch_add(&workers->taken, 1);
    return piece < workers->pieces ? piece : -1;
}

static void *worker(void *given) {
    struct workers *workers = given;
    if (!workers->work(workers)) atomic_store(&workers->failed, 1);
    return NULL;
}

#define MOST_THREADS 256

/* GOMP_parallel of GNU's runtime, which LLVM's has too: calls the function on so many threads of the caller's pool. */
static void (*pool)(void (*)(void *), void *, unsigned, unsigned);

void regard_use_pool(void *parallel) { memcpy(&pool, &parallel, sizeof pool); }

static void worker_of_pool(void *given) { worker(given); }

/* Returns 0 where memory was short. Where no more threads can be had, those that there are do the work. */
static int work_together(int (*work)(struct workers *), void *problem, int64_t pieces, int64_t threads) {
    struct workers workers = {work, problem, pieces, 0, 0};
    pthread_t others[MOST_THREADS];
    int64_t started = 0;
    threads = threads > MOST_THREADS ? MOST_THREADS : threads;
    threads = threads > pieces ? pieces : threads;
    if (pool && threads > 1) {
        pool(worker_of_pool, &workers, (unsigned)threads, 0);
        return !atomic_load(&workers.failed);
    }
    while (started + 1 < threads) {
        if (pthread_create(&others[started], NULL, worker, &workers)) break;
        started++;
    }
    worker(&workers);
    for (int64_t i = 0; i < started; i++) pthread_join(others[i], NULL);
    return !atomic_load(&workers.failed);
}

#endif
