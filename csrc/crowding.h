/* How many threads a call takes while other programs keep the CPUs busy.
 *
 * The threads of a pass meet at a barrier about 50 times per token. A thread that loses its CPU to
 * another program makes all others wait, for a scheduler's time slice of several milliseconds. So a
 * call measures the time in which its threads were runnable but had no CPU. If that is a large
 * share, the machine is crowded, and two things change until it is quiet again. Neither changes any
 * result.
 *
 * Waits spin for a shorter time, because the late thread may need the CPU of a thread that waits.
 *
 * Calls rest workers: after a crowded call the next ones run on fewer threads. Each crowded call
 * doubles the rest period, and each call that is not crowded shortens it. Between rests, calls with
 * all workers find out whether the machine is still crowded. On two CPUs, beside one busy process,
 * resting makes calls 1.4 times as fast. Beside two busy processes one thread would get less CPU
 * time than two, so no worker rests. */
#ifndef GPT2C_CROWDING_H
#define GPT2C_CROWDING_H

/* What a call learned about the machine. */
typedef struct {
    int n_threads;       /* threads that ran */
    int n_resting;       /* workers that rested: what crowding_n_resting returned */
    double begin, end;   /* by the clock of os_seconds */
    double cpu_seconds;  /* CPU time, summed over the threads */
    double lost_seconds; /* time in which threads were runnable but had no CPU, summed */
} call_report;

/* How many of n_workers rest during a call that begins now. Needs the pool's lock. */
int crowding_n_resting(double now, int n_workers);

/* Records a call that ended. Needs the pool's lock. */
void crowding_learn(const call_report *call);

/* Whether the machine was crowded recently. Any thread may call this. */
int crowding_is_recent(void);

/* Resets everything learned, for a forked child. */
void crowding_forget(void);

#endif
