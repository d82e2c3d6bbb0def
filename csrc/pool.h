/* The process's worker threads, shared by all calls.
 *
 * A call takes as many idle workers as it may use and are free, runs one function on all of them
 * and on its own thread, worker 0, and gives them back. With none free it runs alone: no call waits
 * for another, and how many workers it gets never shows in a bit. */
#ifndef GPT2C_POOL_H
#define GPT2C_POOL_H

#include "gpt2c.h"

/* A call's own thread is not one of the pool's. */
#define POOL_MAX_WORKERS (GPT2C_MAX_THREADS - 1)

typedef struct pool_team pool_team;

/* What a worker does; worker is from 0 to n_workers - 1. */
typedef void (*team_function)(void *context, pool_team *team, int worker, int n_workers);

/* Runs function on up to max_workers threads, this one among them, and returns when all are done. */
void pool_run(team_function function, void *context, int max_workers);

/* Waits until every worker of the team is here; what each wrote before, all see after. */
void team_barrier(pool_team *team);

/* Whether this process was forked by the team's own function: the other workers are in the parent, so
 * the work cannot be completed here, and barriers no longer wait. Only worker 0 can find that. */
int team_was_lost(const pool_team *team);

/* The part of n items that falls to a worker: [*begin, *end), sizes differing by one at most. */
static inline void team_share(int n, int worker, int n_workers, int *begin, int *end) {
    *begin = (int)((long long)n * worker / n_workers);
    *end = (int)((long long)n * (worker + 1) / n_workers);
}

#endif
