/* A model of csrc/pool.c for the model checker Spin: events, barriers, calls, and forks.
 *
 * Callers make calls on teams of pool workers, as pool_run does. The function of a call passes two
 * barriers per step, as a probed forward call does (csrc/pass/probe.c). Worker 0 may stop the call or
 * fork in a callback. A caller may also fork between its calls, while the other caller is at any point
 * of a call of its own.
 *
 * Checked in every interleaving:
 *   - every caller finishes its calls (WATCHER): no wake-up is lost and no barrier waits forever;
 *   - after a barrier, all members have done the step before it;
 *   - all members agree on whether the call was stopped;
 *   - no member touches a team whose call has ended, because the team is on the caller's stack;
 *   - no worker is in two teams.
 *
 * A step of a process makes one access to memory that others use at the same time, under sequential
 * consistency: pool.c uses it where one thread writes a count and then reads another's. Taking the lock
 * is one step, and everything that it protects is the next. A spinning thread is modelled as one that may
 * fall asleep whenever it looks. After a fork, the model follows only the child; the parent is covered by
 * the path without the fork.
 *
 * A barrier is a tree, as in pool.c: the last member of a group of GROUP_MEMBERS goes on to the barrier of
 * all groups, and releases its group when it has passed that one.
 *
 * Sizes: N_CALLERS, N_WORKERS, N_CALLS, N_STEPS, N_FORKS, GROUP_MEMBERS. Each FAULT_... injects a fault that Spin must
 * find; models.sh runs them all. */

#ifndef N_CALLERS
#define N_CALLERS 2
#endif
#ifndef N_WORKERS
#define N_WORKERS 2
#endif
#ifndef N_CALLS
#define N_CALLS 1
#endif
#ifndef N_STEPS
#define N_STEPS 1
#endif
#ifndef N_FORKS
#define N_FORKS 1
#endif
#ifndef GROUP_MEMBERS
#define GROUP_MEMBERS (N_WORKERS + 1)
#endif
#define MAX_GROUPS ((N_WORKERS + GROUP_MEMBERS) / GROUP_MEMBERS)

/* ---- events: a count that only increases, and threads that sleep until it does ---- */

#define ORDERS(w) (w)
#define DONE(w) (N_WORKERS + (w))
/* Barriers of a caller's team: first that of all groups, then one for each group. */
#define N_BARRIERS (MAX_GROUPS + 1)
#define ALL(c) ((c) * N_BARRIERS)
#define GROUP(c, member) ((c) * N_BARRIERS + 1 + (member) / GROUP_MEMBERS)
#define PASSED(b) (2 * N_WORKERS + (b))
#define N_EVENTS (2 * N_WORKERS + N_CALLERS * N_BARRIERS)
/* Thread numbers: first the callers, then the workers. */
#define WORKER_THREAD(w) (N_CALLERS + (w))
#define N_THREADS (N_CALLERS + N_WORKERS)

byte count[N_EVENTS], n_sleepers[N_EVENTS];
byte asleep_on[N_THREADS]; /* an event + 1, or 0 */

inline wake_all(e) {
    i = 0;
    do
    :: i < N_THREADS ->
        if
        :: asleep_on[i] == e + 1 -> asleep_on[i] = 0
        :: else
        fi;
        i++
    :: else -> break
    od;
    i = 0
}

/* The second half of announce, after the count was increased. */
inline wake_sleepers(e) {
    atomic {
        if
        :: n_sleepers[e] > 0 -> wake_all(e)
        :: else
        fi
    }
}

inline wait_while(thread, e, old) {
    if
    :: count[e] != old
    :: n_sleepers[e]++;
        do
        :: count[e] != old -> break
#ifdef FAULT_SLEEP_WITHOUT_A_LOOK
        :: asleep_on[thread] = e + 1; asleep_on[thread] == 0
#else
        /* The kernel compares the count and puts the thread to sleep in one step. */
        :: atomic { count[e] == old -> asleep_on[thread] = e + 1 }; asleep_on[thread] == 0
#endif
        od;
        n_sleepers[e]--
    fi
}

/* ---- processes ---- */

byte process = 0; /* the number of forks so far */
byte survivor;    /* the caller that forked */
pid survivor_pid, first_new_pid; /* of the child's own workers */
/* A thread runs in this process if it made the fork, or was started after it. */
#define IS_HERE (process == 0 || _pid == survivor_pid || _pid >= first_new_pid)
bool handler_is_set = 1;

/* ---- teams: one per caller, on its stack ---- */

bool is_alive[N_CALLERS], is_stopped[N_CALLERS];
byte n_members[N_CALLERS], team_process[N_CALLERS], arrived[N_CALLERS * N_BARRIERS];
#define N_GROUPS(c) ((n_members[c] + GROUP_MEMBERS - 1) / GROUP_MEMBERS)
byte slots[N_CALLERS * (N_WORKERS + 1)]; /* the last step that each member has done */
#define SLOT(c, member) slots[(c) * (N_WORKERS + 1) + (member)]

#ifdef FAULT_BARRIER_WAITS_IN_CHILD
#define TEAM_WAS_LOST(c) false
#else
#define TEAM_WAS_LOST(c) (n_members[c] > 1 && team_process[c] != process)
#endif

/* Arrives at barrier `at`, of n_expected threads. `passed` has been read. */
inline arrive(thread, tm) {
    atomic { assert(is_alive[tm]); arrived[at]++; is_last = (arrived[at] == n_expected) };
    if
    :: is_last
    :: else -> wait_while(thread, PASSED(at), passed)
    fi
}

/* Opens barrier `at`. */
inline open_barrier() {
#ifdef FAULT_RESET_AFTER_COUNT
    count[PASSED(at)]++;
    arrived[at] = 0;
#else
    arrived[at] = 0;
    count[PASSED(at)]++;
#endif
    wake_sleepers(PASSED(at))
}

inline team_barrier(thread, tm, who) {
    if
    :: atomic { n_members[tm] == 1 || TEAM_WAS_LOST(tm) -> assert(is_alive[tm]) }
    :: atomic {
            n_members[tm] > 1 && !TEAM_WAS_LOST(tm);
            assert(is_alive[tm]);
            at = GROUP(tm, who);
            n_expected = n_members[tm] - who / GROUP_MEMBERS * GROUP_MEMBERS;
            n_expected = (n_expected < GROUP_MEMBERS -> n_expected : GROUP_MEMBERS);
            passed = count[PASSED(at)]
        };
        arrive(thread, tm);
        if
        :: is_last && N_GROUPS(tm) == 1 -> open_barrier()
        :: is_last && N_GROUPS(tm) > 1 ->
#ifdef FAULT_GROUP_DOES_NOT_WAIT
            open_barrier();
#endif
            atomic { at = ALL(tm); n_expected = N_GROUPS(tm); passed = count[PASSED(at)] };
            arrive(thread, tm);
            if
            :: is_last -> open_barrier()
            :: else
            fi;
            at = GROUP(tm, who);
#ifndef FAULT_GROUP_DOES_NOT_WAIT
            open_barrier()
#endif
        :: else
        fi
    fi
}

/* ---- the pool ---- */

bool lock_is_taken;
byte n_started;
bool is_taken[N_WORKERS];
byte team_of[N_WORKERS], index_of[N_WORKERS];

inline take_lock() {
    atomic { !lock_is_taken -> lock_is_taken = 1 }
}

/* In the child, only the thread that forked exists. */
inline fork_as(who) {
    d_step {
        process++;
        survivor = who;
        survivor_pid = _pid;
        first_new_pid = _nr_pr;
        if
        :: handler_is_set ->
            lock_is_taken = 0;
            n_started = 0
        :: else
        fi
    }
}

/* The function of a call, on each member's thread. */
inline run_function(thread, tm, who) {
    do
    :: atomic {
            step < N_STEPS ->
            step++;
            assert(is_alive[tm]);
            SLOT(tm, who) = step;
            /* The callback continues, stops the call, or forks. */
            if
            :: true
            :: who == 0 -> is_stopped[tm] = 1
            :: who == 0 && process < N_FORKS -> fork_as(tm); is_stopped[tm] = TEAM_WAS_LOST(tm)
            fi
        };
        team_barrier(thread, tm, who);
        atomic {
            do
            :: i < n_members[tm] && team_process[tm] == process ->
                assert(SLOT(tm, i) == step);
                i++
            :: else -> break
            od;
            i = 0;
            stops = is_stopped[tm]
        };
#ifndef FAULT_ONE_BARRIER
        team_barrier(thread, tm, who);
#endif
        if
        :: atomic { stops -> step = N_STEPS }
        :: else
        fi
    :: atomic { step == N_STEPS -> assert(is_alive[tm]); passed = 0; at = 0; n_expected = 0; step = 0; is_last = 0;
        stops = 0 };
        break
    od
}

proctype worker(byte w) provided (IS_HERE) {
    byte seen = 0, passed = 0, step = 0, i = 0, team = 0, member = 0, at = 0, n_expected = 0;
    bool is_last = 0, stops = 0;
    do
    :: wait_while(WORKER_THREAD(w), ORDERS(w), seen);
        atomic { seen++; team = team_of[w]; member = index_of[w] };
        run_function(WORKER_THREAD(w), team, member);
        atomic { team = 0; member = 0; count[DONE(w)]++ };
        wake_sleepers(DONE(w))
    od
}

inline start_workers() {
    do
    :: n_started < N_WORKERS ->
#ifdef FAULT_LATE_HANDLER
        handler_is_set = 1;
#endif
        count[ORDERS(n_started)] = 0;
        count[DONE(n_started)] = 0;
        n_sleepers[ORDERS(n_started)] = 0;
        n_sleepers[DONE(n_started)] = 0;
        asleep_on[WORKER_THREAD(n_started)] = 0;
        is_taken[n_started] = 0;
        run worker(n_started);
        n_started++
    :: else -> break
    od
}

/* Takes any number of the free workers: a call takes fewer while the machine is crowded. */
inline take_workers() {
    take_lock();
    atomic {
        start_workers();
        do
        :: w < N_WORKERS && !is_taken[w] ->
            if
            :: is_taken[w] = 1; mine[w] = 1; n_taken++
            :: true
            fi;
            w++
        :: w < N_WORKERS && is_taken[w] -> w++
        :: w == N_WORKERS -> break
        od;
        w = 0;
        n_members[id] = n_taken + 1;
        lock_is_taken = 0
    }
}

inline give_back() {
    take_lock();
    atomic {
        do
        :: w < N_WORKERS ->
            if
            :: mine[w] -> assert(is_taken[w]); is_taken[w] = 0; mine[w] = 0
            :: else
            fi;
            w++
        :: else -> break
        od;
        w = 0;
        lock_is_taken = 0
    }
}

inline call_workers() {
    do
    :: atomic {
            w < N_WORKERS && mine[w] ->
            n_called++;
            team_of[w] = id;
            index_of[w] = n_called;
            done_before[w] = count[DONE(w)];
            count[ORDERS(w)]++
        };
        wake_sleepers(ORDERS(w));
        w++
    :: atomic { w < N_WORKERS && !mine[w] -> w++ }
    :: atomic { w == N_WORKERS -> w = 0; n_called = 0 }; break
    od
}

inline wait_for_workers() {
    do
    :: atomic { w < N_WORKERS && mine[w] }; wait_while(id, DONE(w), done_before[w]); w++
    :: atomic { w < N_WORKERS && !mine[w] -> w++ }
    :: atomic { w == N_WORKERS -> w = 0 }; break
    od
}

inline pool_run() {
    atomic {
        is_alive[id] = 1;
        is_stopped[id] = 0;
        team_process[id] = process;
        do
        :: i < N_BARRIERS ->
            arrived[ALL(id) + i] = 0;
            count[PASSED(ALL(id) + i)] = 0;
            n_sleepers[PASSED(ALL(id) + i)] = 0;
            i++
        :: else -> break
        od;
        i = 0
    };
    take_workers();
    call_workers();
    run_function(id, id, 0);
    if
    :: TEAM_WAS_LOST(id)
    :: else ->
        wait_for_workers();
        if
        :: n_taken > 0 -> give_back()
        :: else
        fi
    fi;
    atomic {
        is_alive[id] = 0;
        n_taken = 0;
        do
        :: w < N_WORKERS -> mine[w] = 0; done_before[w] = 0; w++
        :: else -> break
        od;
        w = 0
    }
}

/* ---- callers, and the check that they finish ---- */

bool has_ended[N_CALLERS];

proctype caller(byte id) provided (IS_HERE) {
    byte passed = 0, step = 0, i = 0, w = 0, n_taken = 0, n_called = 0, n_calls = 0;
    byte done_before[N_WORKERS], at = 0, n_expected = 0;
    bool mine[N_WORKERS], is_last = 0, stops = 0;
    do
    :: n_calls < N_CALLS ->
        if
        :: true
        :: process < N_FORKS -> fork_as(id)
        fi;
        pool_run();
        n_calls++
    :: else -> break
    od;
    has_ended[id] = 1
}

/* WATCHER: runs when no other process can. */
proctype watcher() {
    byte i = 0;
    timeout;
    do
    :: i < N_CALLERS ->
        assert(has_ended[i] || (process > 0 && survivor != i));
        i++
    :: else -> break
    od
}

init {
    byte i = 0;
    atomic {
#ifdef FAULT_LATE_HANDLER
        handler_is_set = 0;
#endif
        run watcher();
        do
        :: i < N_CALLERS -> run caller(i); i++
        :: else -> break
        od
    }
}
