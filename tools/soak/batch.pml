/* A model of csrc/batch/ for the model checker Spin: who leads, hand-over, gathering, turns, leaving,
 * cancelling, waits whose time runs out, waiting for room in the KV cache, interrupts, and forks.
 *
 * Callers make calls with several jobs that rest together, as BlockingCall does
 * (src/gpt2c/engine/_batch.pxi). A waiter waits for jobs that other threads, its users, add and remove, as
 * SharedWaiter does. Turn takers make passes of their own. Another thread cancels jobs.
 *
 * Checked in every interleaving:
 *   - every thread comes to its end (WATCHER): no lead, turn, wake-up or notification is lost;
 *   - steps and turns never run at the same time;
 *   - a step uses a job only while the job is ready, and its caller touches it only while it is not in a
 *     step: in particular, no step uses a job once `leave` has returned;
 *   - the batch never looks at a caller that is gone, and gives the lead to waiting callers only;
 *   - if the lead becomes free, no turn waits;
 *   - n_expected never falls below 0, and a leader that gathers goes on once all jobs are back;
 *   - unless time runs out, every job gets room in the KV cache, and each page is given back once.
 *
 * Under the lock nothing else runs, so what happens between two sleeps is one step. With N_FORKS, each
 * statement is a step of its own, because a fork may come while another thread holds the lock; only
 * functions that Cython calls with the GIL stay whole, because os.fork needs the GIL. After a fork, the
 * model follows only the child. A sleeper has looked at its word under the lock; "has_changed" tells it
 * that the word was increased since.
 *
 * Time runs out at any moment, but only N_TIMEOUTS times altogether. Afterwards it never does, so that
 * a lost wake-up is a deadlock. The order of the ready jobs is left open: any order may occur.
 *
 * With N_PAGES, the KV cache has so many pages, and N_CACHED of them hold finished texts that only callers
 * free. A job needs a page for its first step and another one after it has rested. Callers and jobs with
 * lower numbers count as older. The leader of csrc/batch/ that finds no room tries again every 2 ms. Here
 * it tries again when something has changed, so that waiting for ever is a deadlock.
 *
 * Sizes: N_CALLERS, N_JOBS (of each caller and of the waiter; at most six together), N_RESTS (of a job
 * before it finishes), N_STEPS (the most that a job needs before it rests), N_WAITERS (0 or 1), N_TURNS,
 * N_TIMEOUTS, N_INTERRUPTS, N_CANCELS, N_FORKS, N_ROWS (the most jobs in a step), N_PAGES (0: no limit;
 * without forks) and N_CACHED. Each FAULT_... injects a fault that Spin must find; models.sh runs them
 * all. */

#ifndef N_CALLERS
#define N_CALLERS 2
#endif
#ifndef N_JOBS
#define N_JOBS 1
#endif
#ifndef N_RESTS
#define N_RESTS 1
#endif
#ifndef N_STEPS
#define N_STEPS 1
#endif
#ifndef N_WAITERS
#define N_WAITERS 0
#endif
#ifndef N_TURNS
#define N_TURNS 1
#endif
#ifndef N_TIMEOUTS
#define N_TIMEOUTS 0
#endif
#ifndef N_INTERRUPTS
#define N_INTERRUPTS 0
#endif
#ifndef N_CANCELS
#define N_CANCELS 0
#endif
#ifndef N_FORKS
#define N_FORKS 0
#endif
#ifndef N_ROWS
#define N_ROWS 100
#endif
#ifndef N_PAGES
#define N_PAGES 0
#endif
#ifndef N_CACHED
#define N_CACHED 0
#endif

/* Numbers of callers: first those of calls, then the waiter's. */
#define N_ALL (N_CALLERS + N_WAITERS)
#define WAITER N_CALLERS
#define N_ALL_JOBS (N_ALL * N_JOBS)
#define OWNER(j) ((j) / N_JOBS)
#define FIRST_JOB(c) ((c) * N_JOBS)
#define END_JOB(c) (((c) + 1) * N_JOBS)
#define N_USERS (N_WAITERS * N_JOBS)
/* Threads: the callers', the turn takers', and the users' of the waiter. */
#define TURN_THREAD(t) (N_ALL + (t))
#define USER_THREAD(u) (N_ALL + N_TURNS + (u))
#define N_THREADS (N_ALL + N_TURNS + N_USERS)
/* Words: each caller's and each turn's n_wakes have the numbers of their threads. */
#define RETURNS N_THREADS
#define STEPS (N_THREADS + 1)

/* ---- the lock, time, words, forks ---- */

byte n_timeouts = N_TIMEOUTS, n_interrupts = N_INTERRUPTS;
bool lock_is_taken;
byte word_of[N_THREADS]; /* the word that the thread looked at last, + 1 */
bool has_changed[N_THREADS], is_asleep[N_THREADS];

#if N_FORKS
byte process = 0; /* the number of forks so far */
byte survivor; /* the thread that forked */
pid survivor_pid;
#define IS_HERE (process == 0 || _pid == survivor_pid)
#define HERE provided (IS_HERE)
#define LOCKED {
#else
#define HERE
#define LOCKED atomic {
#endif

inline take_lock() {
    atomic { !lock_is_taken -> lock_is_taken = 1 }
}

#define RELEASE_LOCK lock_is_taken = 0

inline wake_sleepers(word) {
    d_step {
        k = 0;
        do
        :: k < N_THREADS ->
            if
            :: word_of[k] == word + 1 -> is_asleep[k] = 0
            :: else
            fi;
            k++
        :: else -> break
        od;
        k = 0
    }
}

inline increase(word) {
    d_step {
        k = 0;
        do
        :: k < N_THREADS ->
            if
            :: word_of[k] == word + 1 -> has_changed[k] = 1
            :: else
            fi;
            k++
        :: else -> break
        od;
        k = 0
    }
}

inline wake(word) {
    increase(word);
    wake_sleepers(word)
}

/* Sleeps without the lock. Sets is_late if the time ran out. */
inline sleep_unlocked(thread, word, is_late) {
#ifdef FAULT_LOOK_WITHOUT_THE_LOCK
    RELEASE_LOCK;
    d_step { word_of[thread] = word + 1; has_changed[thread] = 0 };
#else
    d_step { word_of[thread] = word + 1; has_changed[thread] = 0; RELEASE_LOCK };
#endif
    if
    :: has_changed[thread]
    :: atomic { !has_changed[thread] -> is_asleep[thread] = 1 };
        if
        :: !is_asleep[thread]
        :: d_step { n_timeouts > 0 -> n_timeouts--; is_asleep[thread] = 0; is_late = 1 }
        fi
    fi;
    atomic { !lock_is_taken -> lock_is_taken = 1; word_of[thread] = 0; has_changed[thread] = 0 }
}

inline look_at_clock(is_late) {
    if
    :: true
    :: d_step { !is_late && n_timeouts > 0 -> n_timeouts--; is_late = 1 }
    fi
}

/* ---- the batch ---- */

bool is_led, last_was_turn, is_gathering;
byte n_expected, n_leaving;
byte turns[N_TURNS + 1], n_queued; /* the turns that wait, in order */

/* Callers. */
bool is_alive[N_ALL], is_waiting[N_ALL], leads[N_ALL];
bool is_notified[N_ALL];
byte n_ready[N_ALL];
#define RESTS_TOGETHER(c) ((c) < N_CALLERS)

/* Jobs. */
bool is_listed[N_ALL_JOBS], is_ready[N_ALL_JOBS], is_in_step[N_ALL_JOBS], is_cancelled[N_ALL_JOBS];
bool is_leaving[N_ALL_JOBS], is_expected[N_ALL_JOBS], is_lost[N_ALL_JOBS];
bool is_used[N_ALL_JOBS]; /* a pass reads and writes it now */
bool is_run[N_ALL_JOBS]; /* the current call runs it */
bool has_rested[N_ALL_JOBS], is_finished[N_ALL_JOBS];
byte steps_left[N_ALL_JOBS], rests_left[N_ALL_JOBS];
#define NEEDS_CALLER(j) \
    (is_finished[j] || has_rested[j] || is_cancelled[j] || is_leaving[j] || IS_FULL(j))
#define IS_OVER(j) (is_finished[j] || is_cancelled[j])

/* The pages of the KV cache. */
#if N_PAGES
byte n_free = N_PAGES - N_CACHED, n_cached = N_CACHED;
byte n_pages[N_ALL_JOBS];
bool is_full[N_ALL_JOBS]; /* has the status GPT2C_CACHE_FULL */
bool has_asked[N_ALL_JOBS], has_given_up[N_ALL_JOBS];
bool room_has_changed; /* another attempt to find room may have another result */
#define N_NEEDED(j) (1 + (rests_left[j] < N_RESTS))
#define IS_FULL(j) is_full[j]
#define HAS_GIVEN_UP(j) has_given_up[j]
#define NOTE_CHANGE room_has_changed = 1
#define FORGET_CHANGE room_has_changed = 0
#define NOTE_FEED has_fed = 1
#else
#define IS_FULL(j) 0
#define HAS_GIVEN_UP(j) 0
#define NOTE_CHANGE skip
#define FORGET_CHANGE skip
#define NOTE_FEED skip
#endif

bool turn_is_granted[N_TURNS + 1], turn_is_queued[N_TURNS + 1], turn_is_waiting[N_TURNS + 1];
bool turn_is_joined[N_TURNS + 1], turn_is_scored[N_TURNS + 1];
byte n_passes; /* that run now */
bool has_ended[N_THREADS];

#ifdef FAULT_LEAD_FOR_ANYBODY
#define MAY_LEAD(j) (is_listed[j] && !is_notified[OWNER(j)])
#else
#define MAY_LEAD(j) (is_listed[j] && is_waiting[OWNER(j)] && !is_notified[OWNER(j)])
#endif

/* Sets `found` to a caller that waits for a ready job, + 1, or to 0. */
inline next_leader() {
    found = 0;
    if
    :: MAY_LEAD(0) -> found = OWNER(0) + 1
#if N_ALL_JOBS > 1
    :: MAY_LEAD(1) -> found = OWNER(1) + 1
#endif
#if N_ALL_JOBS > 2
    :: MAY_LEAD(2) -> found = OWNER(2) + 1
#endif
#if N_ALL_JOBS > 3
    :: MAY_LEAD(3) -> found = OWNER(3) + 1
#endif
#if N_ALL_JOBS > 4
    :: MAY_LEAD(4) -> found = OWNER(4) + 1
#endif
#if N_ALL_JOBS > 5
    :: MAY_LEAD(5) -> found = OWNER(5) + 1
#endif
    :: else
    fi
}

inline remove_turn(t) {
    d_step {
        k = 0;
        do
        :: turns[k] != t -> k++
        :: else -> break
        od;
        do
        :: k + 1 < n_queued -> turns[k] = turns[k + 1]; k++
        :: else -> break
        od;
        n_queued--;
        turns[n_queued] = 0;
        turn_is_queued[t] = 0;
        k = 0
    }
}

#define TURN_WAITS(t) (turn_is_queued[t] && turn_is_waiting[t])
#if N_TURNS > 1
#define NEXT_TURN (TURN_WAITS(0) || TURN_WAITS(1))
#else
#define NEXT_TURN TURN_WAITS(0)
#endif

/* Sets `x` to the first turn whose thread waits, + 1, or to 0. */
inline next_turn() {
    x = 0;
    d_step {
        k = n_queued;
        do
        :: k > 0 ->
            k--;
            if
            :: turn_is_waiting[turns[k]] -> x = turns[k] + 1
            :: else
            fi
        :: else -> break
        od
    }
}

inline hand_over() {
    next_leader();
    next_turn();
    is_led = 1;
    if
    :: x && (!last_was_turn || !found) ->
        last_was_turn = 1;
        x--;
        remove_turn(x);
        turn_is_granted[x] = 1;
        wake(TURN_THREAD(x));
        x = 0
    :: !(x && (!last_was_turn || !found)) && found ->
        x = 0;
        last_was_turn = 0;
        assert(is_alive[found - 1] && is_waiting[found - 1]);
        leads[found - 1] = 1;
#ifndef FAULT_LEADER_SLEEPS
        wake(found - 1);
#endif
    :: else ->
        is_led = 0;
        assert(x == 0)
    fi;
    found = 0
}

inline notify(c) {
    if
    :: !is_notified[c] && is_waiting[c] -> wake(c)
    :: else
    fi;
    is_notified[c] = 1
}

inline stop_expecting(j) {
    if
    :: is_expected[j] ->
        is_expected[j] = 0;
        assert(n_expected > 0);
        n_expected--;
        if
        :: n_expected == 0 && is_gathering -> wake(RETURNS)
        :: else
        fi
    :: else
    fi
}

inline bring_to_rest(j) {
    assert(is_alive[OWNER(j)] && !is_used[j]);
    is_ready[j] = 0;
    is_listed[j] = 0;
    n_ready[OWNER(j)]--;
    if
    :: !is_finished[j] && !is_cancelled[j] && !is_leaving[j] && !IS_FULL(j) ->
        assert(!is_expected[j]);
        is_expected[j] = 1;
        n_expected++
    :: else
    fi
}

inline rest_jobs() {
    i = 0;
    do
    :: i < N_ALL_JOBS && is_listed[i] && NEEDS_CALLER(i) -> notify(OWNER(i)); bring_to_rest(i); i++
    :: i < N_ALL_JOBS && !(is_listed[i] && NEEDS_CALLER(i)) -> i++
    :: i == N_ALL_JOBS -> break
    od;
    i = 0;
    do
    :: i < N_ALL_JOBS ->
        if
        :: is_listed[i] && RESTS_TOGETHER(OWNER(i)) && is_notified[OWNER(i)] -> bring_to_rest(i)
        :: else
        fi;
        i++
    :: else -> break
    od;
    i = 0
}

/* ---- room in the KV cache ---- */

#if N_PAGES
inline give_pages_back(j) {
    d_step {
        if
        :: n_pages[j] > 0 -> NOTE_CHANGE
        :: else
        fi;
        n_free = n_free + n_pages[j];
        n_pages[j] = 0;
        is_full[j] = 0;
        has_asked[j] = 0;
        assert(n_free + n_cached <= N_PAGES)
    }
}

/* A caller whose job j has rested for want of room frees the page of a finished text. */
inline reclaim(j) {
    if
    :: is_full[j] && n_cached > 0 -> n_cached--; n_free++; NOTE_CHANGE
    :: else
    fi
}

#ifdef FAULT_PREEMPT_RESTING
#define MAY_LOSE_PAGES(j) (n_pages[j] > 0)
#else
#define MAY_LOSE_PAGES(j) (n_pages[j] > 0 && is_used[j])
#endif

/* Sets `y` to the youngest job after job i whose pages it may take, or to i. */
inline find_youngest() {
    y = N_ALL_JOBS - 1;
    do
    :: y > i && !MAY_LOSE_PAGES(y) -> y--
    :: else -> break
    od;
#ifdef FAULT_NO_PREEMPTION
    y = i
#endif
}

/* Reserves the pages of the step's jobs, the oldest job first. A job without room is not in the pass. */
inline reserve_pages() {
    x = 0; /* whether an older job tried */
    do
    :: i < N_ALL_JOBS ->
        k = n_pages[i];
        do
        :: is_used[i] && n_pages[i] < N_NEEDED(i) && n_free > 0 -> n_free--; n_pages[i]++
        :: is_used[i] && n_pages[i] < N_NEEDED(i) && n_free == 0 ->
            find_youngest();
            if
            :: y > i ->
                assert(is_used[y] && is_ready[y]);
                n_free = n_free + n_pages[y];
                n_pages[y] = 0;
                is_used[y] = 0 /* it sits out */
            :: else ->
                n_free = n_free + n_pages[i] - k;
                n_pages[i] = k;
                is_full[i] = !x;
                is_used[i] = 0
            fi
        :: else -> break
        od;
        if
        :: is_used[i] || is_full[i] -> x = 1
        :: else
        fi;
        if
        :: is_used[i] -> has_asked[i] = 0
        :: else
        fi;
        i++
    :: else -> break
    od;
    i = 0;
    k = 0;
    x = 0;
    y = 0
}

/* With the lock, after a step. A job without room asks its caller for pages, gives up, or stays ready. If
 * nothing was fed, the leader, caller c, sleeps until something has changed. It does not sleep if the next
 * step may have others of the `n` ready jobs. */
inline handle_full_cache(c) {
    LOCKED
        do
        :: i < N_ALL_JOBS && is_full[i] && is_listed[i] ->
            if
#ifndef FAULT_NOBODY_ASKS
            :: !has_asked[i] || n_cached > 0 -> has_asked[i] = 1; NOTE_CHANGE
#endif
            :: n_timeouts > 0 -> n_timeouts--; has_given_up[i] = 1; NOTE_CHANGE
            :: has_asked[i] && n_cached == 0 -> is_full[i] = 0
#ifdef FAULT_NOBODY_ASKS
            :: is_full[i] = 0
#endif
            fi;
            i++
        :: i < N_ALL_JOBS && !(is_full[i] && is_listed[i]) -> i++
        :: i == N_ALL_JOBS -> break
        od;
        i = 0
    };
    if
    :: !has_fed ->
#ifndef FAULT_WAIT_WITH_THE_LOCK
        RELEASE_LOCK;
#endif
        if
        :: room_has_changed || is_notified[c] || n_ready[c] == 0 || n > N_ROWS
        :: d_step { n_timeouts > 0 -> n_timeouts-- }
        fi;
#ifndef FAULT_WAIT_WITH_THE_LOCK
        take_lock()
#endif
    :: else
    fi;
    has_fed = 0
}
#endif

/* ---- jobs that become ready ---- */

/* With the lock. Adds job j to the batch; it then needs one to N_STEPS steps. */
inline add_ready(j) {
    assert(!is_ready[j] && !is_finished[j] && !is_used[j]);
    stop_expecting(j);
#if N_PAGES
    is_full[j] = 0;
    NOTE_CHANGE;
#endif
    is_ready[j] = 1;
    is_listed[j] = 1;
    is_in_step[j] = 0;
    is_lost[j] = 0;
    has_rested[j] = 0;
    n_ready[OWNER(j)]++;
    steps_left[j] = 1;
    do
    :: steps_left[j] < N_STEPS -> steps_left[j]++
    :: break
    od
}

inline wake_resumed(c) {
#ifndef FAULT_RESUME_WITHOUT_WAKING
    if
    :: !is_led && is_waiting[c] -> wake(c)
    :: else
    fi
#else
    skip
#endif
}

/* Job j leaves the batch; its caller may touch it afterwards. */
inline leave(thread, j) {
    take_lock();
    LOCKED
        stop_expecting(j);
        if
        :: is_ready[j] && is_lost[j] -> is_ready[j] = 0
        :: else
        fi;
        if
        :: is_ready[j] -> is_leaving[j] = 1; n_leaving++; NOTE_CHANGE
        :: else
        fi
    };
#ifndef FAULT_LEAVE_AT_ONCE
    do
    :: is_leaving[j] && is_ready[j] && is_in_step[j] -> sleep_unlocked(thread, STEPS, is_ignored)
    :: else -> break
    od;
#endif
    LOCKED
        if
        :: is_leaving[j] ->
            n_leaving--;
            is_leaving[j] = 0;
            if
            :: is_ready[j] ->
                n_ready[OWNER(j)]--;
                is_ready[j] = 0;
                is_listed[j] = 0
            :: else
            fi
        :: else
        fi;
        is_ignored = 0;
        RELEASE_LOCK;
        assert(is_lost[j] || !is_used[j])
    }
}

inline gather(thread) {
    if
    :: n_expected > 0 ->
        is_gathering = 1;
        do
        :: n_expected > 0 && !gather_is_late -> sleep_unlocked(thread, RETURNS, gather_is_late)
        :: d_step {
                n_expected > 0 && !gather_is_late && n_timeouts > 0 ->
                n_timeouts--;
                gather_is_late = 1
            }
        :: n_expected == 0 || gather_is_late -> break
        od;
        LOCKED
            is_gathering = 0;
            gather_is_late = 0;
            n_expected = 0;
#ifndef FAULT_LATE_IS_EXPECTED
            d_step {
                do
                :: i < N_ALL_JOBS -> is_expected[i] = 0; i++
                :: else -> break
                od;
                i = 0
            }
#endif
        }
    :: else
    fi
}

/* Sets `n` to the number of ready jobs. */
inline count_ready() {
    d_step {
        n = 0;
        do
        :: i < N_ALL_JOBS -> n = n + is_listed[i]; i++
        :: else -> break
        od;
        i = 0
    }
}

/* Chooses the jobs of the next step: all, or any N_ROWS of the `n` ready ones. */
inline choose_step() {
    x = 0;
    do
    :: i < N_ALL_JOBS && is_listed[i] && x < N_ROWS -> is_in_step[i] = 1; x++; y++; i++
    :: i < N_ALL_JOBS && is_listed[i] && x < N_ROWS && n - y > N_ROWS - x -> y++; i++
    :: i < N_ALL_JOBS && !(is_listed[i] && x < N_ROWS) -> i++
    :: i == N_ALL_JOBS -> break
    od;
    i = 0;
    x = 0;
    y = 0
}

inline begin_pass() {
    n_passes++;
    assert(n_passes == 1)
}

/* The step's jobs, as run_step uses them. */
inline begin_step() {
    d_step {
        begin_pass();
        do
        :: i < N_ALL_JOBS ->
            if
            :: is_listed[i] && is_in_step[i] -> assert(is_ready[i] && !is_used[i]); is_used[i] = 1
            :: else
            fi;
            i++
        :: else -> break
        od;
        i = 0
    }
}

inline end_step() {
    atomic {
#if N_PAGES
        reserve_pages();
#endif
        do
        :: i < N_ALL_JOBS && is_used[i] ->
            is_used[i] = 0;
            NOTE_FEED;
            steps_left[i]--;
            if
            :: steps_left[i] == 0 && rests_left[i] > 0 -> has_rested[i] = 1; rests_left[i]--
            :: steps_left[i] == 0 -> is_finished[i] = 1
            :: steps_left[i] > 0
            fi;
            i++
        :: i < N_ALL_JOBS && !is_used[i] -> i++
        :: i == N_ALL_JOBS -> break
        od;
        i = 0;
        n_passes--
    }
}

inline lead_step(thread) {
    gather(thread);
    LOCKED
        rest_jobs();
        count_ready();
        if
        :: n > 0 -> choose_step(); FORGET_CHANGE; last_was_turn = 0; begin_step(); RELEASE_LOCK
        :: else
        fi
    };
    if
    :: n > 0 ->
        end_step();
        take_lock();
#if N_PAGES
        handle_full_cache(thread);
#endif
        LOCKED
            d_step {
                do
                :: i < N_ALL_JOBS ->
                    if
                    :: is_listed[i] -> is_in_step[i] = 0
                    :: else
                    fi;
                    i++
                :: else -> break
                od;
                i = 0
            };
            rest_jobs();
            increase(STEPS);
            if
            :: n_leaving > 0 -> wake_sleepers(STEPS)
            :: else
            fi
        };
        n = 0
    :: else
    fi
}

inline lead(c) {
    leads[c] = 0;
    do
    :: lead_step(c);
        LOCKED
            look_at_clock(is_late);
            if
            :: !is_notified[c] && n_ready[c] && !NEXT_TURN && !is_late
            :: else -> break
            fi
        }
    od;
    LOCKED
        is_waiting[c] = 0;
        hand_over();
        is_waiting[c] = 1
    }
}

/* Sets `was_notified`. */
inline batch_wait(c) {
    take_lock();
    is_waiting[c] = 1;
    do
    :: !is_notified[c] && leads[c] -> lead(c); if :: is_late -> break :: else fi
    :: !is_notified[c] && !leads[c] && !is_led && n_ready[c] > 0 ->
        is_led = 1;
        lead(c);
        if :: is_late -> break :: else fi
    :: !is_notified[c] && !leads[c] && !(!is_led && n_ready[c] > 0) ->
        sleep_unlocked(c, c, is_late);
        look_at_clock(is_late);
        if :: is_late -> break :: else fi
    :: is_notified[c] -> break
    od;
    LOCKED
        is_waiting[c] = 0;
#ifndef FAULT_LEAD_IS_KEPT
        if
        :: leads[c] -> leads[c] = 0; hand_over()
        :: else
        fi;
#endif
        was_notified = is_notified[c];
        is_notified[c] = 0;
        is_late = 0;
        RELEASE_LOCK
    }
}

/* ---- turns ---- */

inline turn_wait(t) {
    take_lock();
    LOCKED
        if
        :: !turn_is_granted[t] && !turn_is_queued[t] && !turn_is_joined[t] && !turn_is_scored[t] ->
            turns[n_queued] = t;
            n_queued++;
            NOTE_CHANGE;
            turn_is_queued[t] = 1
        :: else
        fi;
        turn_is_waiting[t] = 1;
        if
        :: !is_led -> hand_over()
        :: else
        fi
    };
    do
    :: turn_is_granted[t] || turn_is_scored[t] || is_late -> break
    :: !turn_is_granted[t] && !turn_is_scored[t] && !is_late ->
        sleep_unlocked(TURN_THREAD(t), TURN_THREAD(t), is_late);
        look_at_clock(is_late)
    od;
    LOCKED
        turn_is_waiting[t] = 0;
        is_over = turn_is_granted[t] || turn_is_scored[t];
        is_late = 0;
        RELEASE_LOCK
    }
}

/* The pass of a granted turn. It may score the feeds of another turn that waits. */
inline turn_score(t) {
    take_lock();
    LOCKED
        begin_pass();
        if
#if N_TURNS > 1
        :: TURN_WAITS(1 - t) -> x = 1 - t; remove_turn(x); turn_is_joined[x] = 1; x = 0
#endif
        :: true /* there are no rows left */
        fi;
        RELEASE_LOCK
    };
    n_passes--;
    take_lock();
    LOCKED
#if N_TURNS > 1
        if
        :: turn_is_joined[1 - t] ->
            assert(!has_ended[TURN_THREAD(1 - t)]); /* its feeds are on its stack */
            turn_is_joined[1 - t] = 0;
            turn_is_scored[1 - t] = 1;
            wake(TURN_THREAD(1 - t))
        :: else
        fi;
#endif
        turn_is_granted[t] = 0;
        hand_over();
        RELEASE_LOCK
    }
}

inline turn_end(t) {
    take_lock();
#ifndef FAULT_END_WHILE_JOINED
    do
    :: turn_is_joined[t] -> sleep_unlocked(TURN_THREAD(t), TURN_THREAD(t), is_late)
    :: else -> break
    od;
#endif
    LOCKED
        turn_is_scored[t] = 0;
        if
        :: turn_is_queued[t] -> remove_turn(t)
        :: else
        fi;
        if
        :: turn_is_granted[t] -> turn_is_granted[t] = 0; hand_over()
        :: else
        fi;
        RELEASE_LOCK
    }
}

/* ---- forks ---- */

/* In the child, only the thread that forked exists. It forgets the parent's batch. */
inline fork_here(thread) {
#if N_FORKS
    d_step {
        process++;
        survivor = thread;
        survivor_pid = _pid;
#ifndef FAULT_LOCK_IS_NOT_FORGOTTEN
        lock_is_taken = 0;
#endif
        if
        :: is_led -> n_passes = 0 /* the batch gets new buffers */
        :: else -> assert(n_passes == 0)
        fi;
#ifndef FAULT_LEAD_IS_NOT_FORGOTTEN
        is_led = 0;
#endif
        last_was_turn = 0;
        is_gathering = 0;
        n_expected = 0;
        n_leaving = 0;
        do
        :: n_queued > 0 -> n_queued--; turns[n_queued] = 0
        :: else -> break
        od;
        do
        :: i < N_ALL_JOBS ->
            is_expected[i] = 0;
            is_listed[i] = 0;
            is_leaving[i] = 0;
#ifndef FAULT_LEAVE_WAITS_IN_CHILD
            is_lost[i] = is_ready[i];
#endif
            i++
        :: else -> break
        od;
        i = 0
    }
#endif
}

/* ---- calls ---- */

inline forget_caller(c) {
    d_step { is_waiting[c] = 0; leads[c] = 0; is_notified[c] = 0; n_ready[c] = 0 }
}

/* With the GIL: resumes the jobs of a call. */
inline resume_jobs(c) {
    atomic {
        !lock_is_taken;
        assert(!is_alive[c] || (!leads[c] && !is_waiting[c]));
        forget_caller(c);
        is_alive[c] = 1;
        j = FIRST_JOB(c);
        do
        :: j < END_JOB(c) ->
            if
            :: is_run[j] -> add_ready(j)
            :: else
            fi;
            j++
        :: else -> break
        od;
        wake_resumed(c);
        j = 0
    }
}

inline leave_jobs(c) {
    j = FIRST_JOB(c);
    do
    :: j < END_JOB(c) -> leave(c, j); j++
    :: else -> break
    od;
    j = 0
}

/* In a forked child, between two waits of a call. */
inline go_on_in_child(c) {
    fork_here(c);
    forget_caller(c);
    is_stopped = 0;
    was_notified = 0;
    j = FIRST_JOB(c);
    do
    :: j < END_JOB(c) && is_ready[j] && is_in_step[j] -> is_stopped = 1; break /* ForkError */
    :: j < END_JOB(c) && !(is_ready[j] && is_in_step[j]) ->
        is_ready[j] = 0;
        if
        :: is_run[j] && is_finished[j] -> was_notified = 1 /* in the parent, in a step of another caller */
        :: else
        fi;
        j++
    :: j == END_JOB(c) -> break
    od;
    j = 0;
    if
    :: !is_stopped && !was_notified -> resume_jobs(c)
    :: else
    fi
}

inline begin_jobs(c) {
    d_step {
        j = FIRST_JOB(c);
        do
        :: j < END_JOB(c) -> rests_left[j] = N_RESTS; j++
        :: else -> break
        od;
        j = 0
    }
}

/* Chooses the jobs of the next call, and sets `n` to their number. */
inline find_unfinished(c) {
    d_step {
        n = 0;
        j = FIRST_JOB(c);
        do
        :: j < END_JOB(c) -> is_run[j] = !IS_OVER(j); n = n + is_run[j]; j++
        :: else -> break
        od;
        j = 0
    }
}

/* A call has returned: its memory is gone, and its jobs are the caller's. */
inline end_call(c) {
    d_step {
        j = FIRST_JOB(c);
        do
        :: j < END_JOB(c) ->
            assert(!is_ready[j] && (is_lost[j] || !is_used[j]));
#if N_PAGES
            reclaim(j);
            if
            :: has_given_up[j] -> is_stopped = 1 /* CacheMemoryError */
            :: else
            fi;
            if
            :: IS_OVER(j) -> give_pages_back(j)
            :: else
            fi;
#endif
            j++
        :: else -> break
        od;
        j = 0;
        assert(!leads[c] && !is_waiting[c] && n_ready[c] == 0);
        is_alive[c] = 0
    }
}

/* The jobs are deallocated. */
inline drop_jobs(c) {
    leave_jobs(c);
#if N_PAGES
    atomic {
        j = FIRST_JOB(c);
        do
        :: j < END_JOB(c) -> give_pages_back(j); j++
        :: else -> break
        od;
        j = 0
    }
#endif
}

proctype caller(byte c) HERE {
    byte i = 0, j = 0, k = 0, n = 0, x = 0, y = 0, found = 0;
    bool has_fed = 0; /* whether the step fed a job */
    bool was_notified = 0, is_late = 0, gather_is_late = 0, is_ignored = 0, is_stopped = 0;
    begin_jobs(c);
    do
    :: atomic {
            find_unfinished(c);
            if
            :: n > 0 && !is_stopped -> n = 0
            :: else -> n = 0; break
            fi
        };
        resume_jobs(c);
        do
        :: !was_notified && !is_stopped ->
            batch_wait(c);
            if
            :: true
            :: atomic { n_interrupts > 0 -> n_interrupts--; is_stopped = 1 }
#if N_FORKS
            :: atomic { process < N_FORKS && !was_notified -> go_on_in_child(c) }
#endif
            fi
        :: else -> break
        od;
        if
        :: is_stopped -> leave_jobs(c)
        :: else
        fi;
        was_notified = 0;
        end_call(c)
    od;
    drop_jobs(c);
    has_ended[c] = 1
}

/* ---- a waiter and its user ---- */

#if N_WAITERS
bool is_added[N_ALL_JOBS], is_closing;

proctype waiter() HERE {
    byte i = 0, j = 0, k = 0, n = 0, x = 0, y = 0, found = 0;
    bool was_notified = 0, is_late = 0, gather_is_late = 0;
    bool has_fed = 0;
    do
    :: !is_closing ->
        batch_wait(WAITER);
        was_notified = 0;
        atomic {
            j = FIRST_JOB(WAITER);
            do
            :: j < END_JOB(WAITER) ->
                if
                :: is_added[j] && !is_ready[j] -> assert(!is_used[j]); is_added[j] = 0
                :: else
                fi;
                j++
            :: else -> break
            od;
            j = 0
        }
    :: is_closing -> break
    od;
    has_ended[WAITER] = 1
}

byte n_users = N_USERS;

/* A user adds a job until it is over, or removes it. The last one wakes the waiter. */
proctype user(byte u) HERE {
    byte k = 0, j = FIRST_JOB(WAITER) + u;
    bool is_ignored = 0;
    rests_left[j] = N_RESTS;
    do
    :: atomic {
            !lock_is_taken && !is_added[j] && !IS_OVER(j) && !HAS_GIVEN_UP(j) ->
            is_added[j] = 1;
#if N_PAGES
            reclaim(j);
#endif
            add_ready(j);
            wake_resumed(WAITER)
        }
    :: atomic { !is_added[j] && (IS_OVER(j) || HAS_GIVEN_UP(j)) -> break }
    :: atomic { n_interrupts > 0 -> n_interrupts--; break }
    od;
    leave(USER_THREAD(u), j);
#if N_PAGES
    give_pages_back(j);
#endif
    is_added[j] = 0;
    atomic {
        n_users--;
        if
        :: n_users == 0 -> is_closing = 1
        :: else
        fi
    };
    if
    :: is_closing ->
        atomic {
            !lock_is_taken;
            notify(WAITER)
        }
    :: else
    fi;
    has_ended[USER_THREAD(u)] = 1
}
#endif

/* ---- turn takers, cancels, and the check that all end ---- */

#if N_TURNS
proctype turn_taker(byte t) HERE {
    byte k = 0, x = 0, found = 0;
    byte i = 0;
    bool is_late = 0, is_over = 0, is_stopped = 0;
    do
    :: !is_over && !is_stopped ->
        turn_wait(t);
        if
        :: true
        :: atomic { !is_over && n_interrupts > 0 -> n_interrupts--; is_stopped = 1 }
#if N_FORKS
        :: atomic {
                !is_over && process < N_FORKS ->
                fork_here(TURN_THREAD(t));
                is_stopped = turn_is_joined[t]; /* ForkError */
                turn_is_joined[t] = 0;
                turn_is_scored[t] = 0;
                turn_is_queued[t] = 0;
                turn_is_granted[t] = 0;
                turn_is_waiting[t] = 0
            }
#endif
        fi
    :: else -> break
    od;
    if
    :: is_over && turn_is_granted[t] -> turn_score(t)
    :: else
    fi;
    turn_end(t);
    has_ended[TURN_THREAD(t)] = 1
}
#endif

#if N_CANCELS
proctype canceller() HERE {
    byte n = 0, j = 0, k = 0;
    do
    :: atomic {
            n < N_CANCELS && !lock_is_taken ->
            select(j : 0 .. N_ALL_JOBS - 1);
            is_cancelled[j] = 1;
            NOTE_CHANGE;
            if
            :: !is_ready[j] -> stop_expecting(j)
            :: else
            fi;
            j = 0;
            n++
        }
    :: break
    od
}
#endif

/* WATCHER: runs when no other process can. */
proctype watcher() {
    byte i = 0;
    timeout;
#if N_FORKS
    if
    :: process > 0 -> assert(has_ended[survivor])
    :: else
    fi;
    process == 0;
#endif
    do
    :: i < N_THREADS -> assert(has_ended[i]); i++
    :: else -> break
    od
#if N_PAGES
    ;
    assert(n_free + n_cached == N_PAGES)
#endif
}

init {
    byte i = 0;
    atomic {
        run watcher();
        do
        :: i < N_CALLERS -> run caller(i); i++
        :: else -> break
        od;
#if N_WAITERS
        i = 0;
        do
        :: i < N_USERS -> run user(i); i++
        :: else -> break
        od;
        is_alive[WAITER] = 1;
        run waiter();
#endif
#if N_TURNS
        i = 0;
        do
        :: i < N_TURNS -> run turn_taker(i); i++
        :: else -> break
        od;
#endif
#if N_CANCELS
        run canceller()
#endif
    }
}
