/* How many threads a call takes while other programs keep the CPUs busy.
 *
 * The threads of a pass meet at a barrier about 50 times per token. A thread that loses its CPU to
 * another program makes all others wait, for a scheduler's time slice of several milliseconds. So a
 * call measures the time in which its threads were runnable but had no CPU. If that is a large
 * share of its time, the call and the machine are crowded. Two things then change until the machine
 * is quiet again; neither changes a result.
 *
 * Waits spin for a shorter time, because the late thread may need the CPU of a thread that waits.
 *
 * Calls back off: for some time after two crowded calls in quick succession, calls leave workers
 * idle. When the time is over, calls use all workers and so find out whether the machine is still
 * crowded. Each such call that is crowded doubles the time; each other call shortens it. On two
 * CPUs, beside one busy process, backing off makes calls 1.4 times as fast. Beside two busy
 * processes one thread would get less CPU time than two, so calls do not back off. */
#ifndef GPT2C_CROWDING_H
#define GPT2C_CROWDING_H

/* What a call learned about the machine. */
typedef struct {
    int n_threads;       /* threads that ran */
    int n_idle;          /* workers left idle: what crowding_n_idle returned */
    double begin, end;   /* by the clock of os_seconds */
    double cpu_seconds;  /* CPU time, summed over the threads */
    double lost_seconds; /* time in which threads were runnable but had no CPU, summed */
} call_report;

/* How many of n_workers a call that begins now leaves idle. The caller holds the pool's lock. */
int crowding_n_idle(double now, int n_workers);

/* Records a call that ended. The caller holds the pool's lock. */
void crowding_learn(const call_report *call);

/* Whether the machine was crowded recently. Any thread may call this. */
int crowding_is_recent(void);

/* Forgets all records, for a forked child. */
void crowding_forget(void);

#endif
