/* The process's worker threads, shared by all calls.
 *
 * A call takes up to max_workers - 1 free workers from the pool. They and the call's own thread
 * (worker 0) are the call's team: all run one function. Then the workers go back to the pool. If no
 * worker is free, the call uses only its own thread: calls never wait for each other. The number of
 * workers never changes a bit of the result. */
#ifndef GPT2C_POOL_H
#define GPT2C_POOL_H

#include "gpt2c.h"

/* A call's own thread does not belong to the pool. */
#define POOL_MAX_WORKERS (GPT2C_MAX_THREADS - 1)

typedef struct pool_team pool_team;

/* The function that all workers of a team run; worker is from 0 to n_workers - 1. */
typedef void (*team_function)(void *context, pool_team *team, int worker, int n_workers);

/* Runs function on up to max_workers threads, including this one, and returns when all are done. */
void pool_run(team_function function, void *context, int max_workers);

/* Collective: every worker of the team must call it, with its own number. Waits until all have
 * called it. After the barrier, all workers see what any worker wrote before it. */
void team_barrier(pool_team *team, int worker);

/* Whether the team's function has forked, and this process is the child. The other workers are in
 * the parent, so the work cannot be completed, and barriers no longer wait. Only worker 0 can be in
 * this state. */
int team_was_lost(const pool_team *team);

/* For tests with many threads on few CPUs: calls choose their number of threads as if the process
 * could run on n CPUs; n = 0 undoes this. */
void pool_pretend_cpus(int n);

/* A worker's share [*begin, *end) of n items. Shares differ by one item at most. */
static inline void team_share(int n, int worker, int n_workers, int *begin, int *end) {
    *begin = (int)((long long)n * worker / n_workers);
    *end = (int)((long long)n * (worker + 1) / n_workers);
}

#endif
