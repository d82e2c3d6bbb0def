/* Turns: passes outside the running batch, which alternate with its steps. */
#include "batch/batch.h"

static void push_turn(gpt2c_batch *b, gpt2c_turn *turn) {
    turn->next = NULL;
    turn->is_queued = 1;
    if (b->last_turn)
        b->last_turn->next = turn;
    else
        b->first_turn = turn;
    b->last_turn = turn;
}

static void remove_turn(gpt2c_batch *b, gpt2c_turn *turn) {
    gpt2c_turn *before = NULL;
    for (gpt2c_turn *t = b->first_turn; t != turn; t = t->next)
        before = t;
    if (before)
        before->next = turn->next;
    else
        b->first_turn = turn->next;
    if (b->last_turn == turn)
        b->last_turn = before;
    turn->is_queued = 0;
}

void grant_turn(gpt2c_batch *b, gpt2c_turn *turn) {
    remove_turn(b, turn);
    turn->is_granted = 1;
    wake(&turn->n_wakes);
}

gpt2c_turn *next_turn(const gpt2c_batch *b) {
    gpt2c_turn *turn = b->first_turn;
    while (turn && !turn->is_waiting)
        turn = turn->next;
    return turn;
}

int gpt2c_turn_wait(gpt2c_batch *b, gpt2c_turn *turn, double seconds) {
    double end = os_seconds() + seconds;
    os_lock_take(&b->lock);
    if (!turn->is_granted && !turn->is_queued && !turn->is_joined && !turn->is_scored)
        push_turn(b, turn);
    turn->is_waiting = 1;
    if (!b->is_led)
        hand_over(b);
    while (!turn->is_granted && !turn->is_scored && os_seconds() < end)
        sleep_unlocked(b, &turn->n_wakes, end);
    turn->is_waiting = 0;
    int is_over = turn->is_granted || turn->is_scored;
    os_lock_release(&b->lock);
    return is_over;
}

/* Needs the lock. */
static void end_granted_turn(gpt2c_batch *b, gpt2c_turn *turn) {
    turn->is_granted = 0;
    hand_over(b);
}

void gpt2c_turn_end(gpt2c_batch *b, gpt2c_turn *turn) {
    os_lock_take(&b->lock);
    while (turn->is_joined)
        sleep_unlocked(b, &turn->n_wakes, os_seconds() + 1);
    turn->is_scored = 0;
    if (turn->is_queued)
        remove_turn(b, turn);
    if (turn->is_granted)
        end_granted_turn(b, turn);
    os_lock_release(&b->lock);
}

/* ---- scores that share a pass ---- */

static int32_t max_rows(const gpt2c_batch *b) {
    return b->n_ready ? MAX_PROMPT_ROWS_BESIDE_DECODING : GPT2C_MAX_ROWS;
}

static int32_t count_rows(const gpt2c_scored_feeds *scored) {
    int32_t n_rows = 0;
    for (int32_t f = 0; f < scored->n_feeds; f++)
        n_rows += scored->feeds[f].n_tokens;
    return n_rows;
}

/* Sets `turns` to the turns that share a pass: `turn`, and then waiting turns whose feeds fit into
 * the rest of its rows. Removes the latter from the queue. Returns the number of turns. Needs the
 * lock. */
static int32_t join_turns(gpt2c_batch *b, gpt2c_turn *turn, gpt2c_turn **turns) {
    int32_t n = 0, room = max_rows(b) - count_rows(turn->scored);
    turns[n++] = turn;
    for (gpt2c_turn *next, *t = b->first_turn; t; t = next) {
        next = t->next;
        if (!t->is_waiting || !t->scored || count_rows(t->scored) > room)
            continue;
        room -= count_rows(t->scored);
        remove_turn(b, t);
        t->is_joined = 1;
        turns[n++] = t;
    }
    return n;
}

/* Sets the status of each turn. If the pass fails, each turn gets a pass of its own, so that no
 * call fails because of another call's feeds. */
static void score_turns(gpt2c_batch *b, gpt2c_turn **turns, int32_t n) {
    const gpt2c_scored_feeds *sets[GPT2C_MAX_ROWS];
    for (int32_t i = 0; i < n; i++)
        sets[i] = turns[i]->scored;
    gpt2c_status status = gpt2c_score(b->model, b->space->scratch, sets, n);
    for (int32_t i = 0; i < n; i++)
        turns[i]->status =
            status && n > 1 ? gpt2c_score(b->model, b->space->scratch, &sets[i], 1) : status;
}

gpt2c_status gpt2c_turn_score(gpt2c_batch *b, gpt2c_turn *turn) {
    gpt2c_turn *turns[GPT2C_MAX_ROWS]; /* enough: each turn has at least one row */
    os_lock_take(&b->lock);
    if (turn->is_granted) {
        int32_t n = join_turns(b, turn, turns);
        os_lock_release(&b->lock);
        score_turns(b, turns, n);
        os_lock_take(&b->lock);
        for (int32_t i = 1; i < n; i++) {
            turns[i]->is_joined = 0;
            turns[i]->is_scored = 1;
            wake(&turns[i]->n_wakes);
        }
        end_granted_turn(b, turn);
    }
    turn->is_scored = 0;
    os_lock_release(&b->lock);
    return turn->status;
}

int32_t gpt2c_turn_rows(gpt2c_batch *b) {
    os_lock_take(&b->lock);
    int32_t n_rows = max_rows(b);
    os_lock_release(&b->lock);
    return n_rows;
}

gpt2c_scratch *gpt2c_turn_scratch(gpt2c_batch *b) { return b->space->scratch; }
