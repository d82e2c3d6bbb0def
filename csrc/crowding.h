/* How many threads a call takes while other programs keep the CPUs busy.
 *
 * The threads of a pass meet at a barrier some 50 times a token. A thread that loses its CPU to another
 * program in between makes all the others wait, for a scheduler's time slice of some milliseconds. So a
 * call measures the time in which its threads could have run but had no CPU. Where that is much, the
 * machine is crowded, and two things change until it is quiet again. No bit depends on either.
 *
 * Waits spin for a shorter time: the thread that is waited for may need this very CPU.
 *
 * Calls rest workers: after a crowded call the next ones run on fewer threads. The rest doubles with
 * each crowded call and shrinks with each call that was not, so that calls in between find out whether
 * the machine is still crowded. On two CPUs beside one busy process this gives 1.4 times the speed.
 * Beside two, one thread would get less CPU time than both do; then no worker rests. */
#ifndef GPT2C_CROWDING_H
#define GPT2C_CROWDING_H

/* What a call learned about the machine. */
typedef struct {
    int n_threads;       /* it ran on */
    int n_resting;       /* workers it did without, as crowding_n_resting said */
    double begin, end;   /* of os_seconds */
    double cpu_seconds;  /* that its threads had, together */
    double lost_seconds; /* in which its threads could have run but had no CPU, together */
} call_report;

/* How many of n_workers a call that begins now does without. Under the pool's lock. */
int crowding_n_resting(double now, int n_workers);

/* Under the pool's lock. */
void crowding_learn(const call_report *call);

/* Whether the machine was crowded lately. Any thread may ask. */
int crowding_is_felt(void);

/* As if nothing had been learned: in a forked child. */
void crowding_forget(void);

#endif
