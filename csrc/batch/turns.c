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
    if (!turn->is_granted && !turn->is_queued)
        push_turn(b, turn);
    turn->is_waiting = 1;
    if (!b->is_led)
        hand_over(b);
    while (!turn->is_granted && os_seconds() < end)
        sleep_unlocked(b, &turn->n_wakes, end);
    turn->is_waiting = 0;
    int is_granted = turn->is_granted;
    os_lock_release(&b->lock);
    return is_granted;
}

void gpt2c_turn_end(gpt2c_batch *b, gpt2c_turn *turn) {
    os_lock_take(&b->lock);
    if (turn->is_queued)
        remove_turn(b, turn);
    if (turn->is_granted)
        hand_over(b);
    turn->is_granted = 0;
    os_lock_release(&b->lock);
}

int32_t gpt2c_turn_rows(gpt2c_batch *b) {
    os_lock_take(&b->lock);
    int32_t n_rows = b->n_ready ? MAX_PROMPT_ROWS_BESIDE_DECODING : GPT2C_MAX_ROWS;
    os_lock_release(&b->lock);
    return n_rows;
}

gpt2c_scratch *gpt2c_turn_scratch(gpt2c_batch *b) { return b->space->scratch; }
