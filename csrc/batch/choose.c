/* Which of the ready jobs are in the next step. */
#include "batch/batch.h"

/* The max number of jobs that decode in a step that also feeds prompts. */
#define MAX_DECODING_BESIDE_PROMPTS (GPT2C_MAX_ROWS - MAX_PROMPT_ROWS_BESIDE_DECODING)

/* Returns the number of callers that have ready jobs. Sets n_chosen of each to 0. */
static int32_t count_callers(gpt2c_batch *b) {
    int32_t n_callers = 0;
    for (int32_t i = 0; i < b->n_ready; i++)
        b->ready[i]->member.caller->n_chosen = -1; /* not counted yet */
    for (int32_t i = 0; i < b->n_ready; i++) {
        gpt2c_caller *caller = b->ready[i]->member.caller;
        n_callers += caller->n_chosen < 0;
        caller->n_chosen = 0;
    }
    return n_callers;
}

static int32_t count_decoding(const gpt2c_batch *b) {
    int32_t n = 0;
    for (int32_t i = 0; i < b->n_ready; i++)
        n += is_decoding(b->ready[i]);
    return n;
}

/* Puts up to `max` more jobs into the step, and returns their number. They decode if `decoding` is
 * 1, and do not if it is 0. No caller gets more than `quota` jobs of the step. */
static int32_t choose_jobs(gpt2c_batch *b, int decoding, int32_t max, int32_t quota) {
    int32_t n = 0;
    for (int32_t i = 0; i < b->n_ready && n < max; i++) {
        gpt2c_job *job = b->ready[(b->first_to_choose + i) % b->n_ready];
        gpt2c_caller *caller = job->member.caller;
        if (job->member.is_in_step || is_decoding(job) != decoding || caller->n_chosen >= quota)
            continue;
        job->member.is_in_step = 1;
        caller->n_chosen++;
        n++;
    }
    return n;
}

/* With too many jobs for one step, first each caller gets an equal share of the rows for decoding.
 * Rows that some callers do not use then go to other callers' jobs. If no job of the last step had
 * room, the next step begins after these jobs, because others may hold the pages. */
static void choose_some(gpt2c_batch *b, int32_t n_decoding, int32_t n_callers) {
    int32_t max = n_decoding == b->n_ready ? GPT2C_MAX_ROWS : MAX_DECODING_BESIDE_PROMPTS;
    int32_t quota = (max + n_callers - 1) / n_callers;
    int32_t n_chosen = choose_jobs(b, 1, max, quota);
    n_chosen += choose_jobs(b, 1, max - n_chosen, INT32_MAX);
    int32_t n_passed = b->space->n_feeds ? n_chosen : b->space->n_jobs;
    b->first_to_choose = (b->first_to_choose + n_passed) % b->n_ready;
    choose_jobs(b, 0, GPT2C_MAX_ROWS - n_chosen, INT32_MAX);
}

void choose_step(gpt2c_batch *b) {
    step_space *s = b->space;
    int32_t n_decoding = count_decoding(b), n_callers = count_callers(b);
    if (b->n_ready <= GPT2C_MAX_ROWS && n_decoding <= MAX_DECODING_BESIDE_PROMPTS) {
        for (int32_t i = 0; i < b->n_ready; i++)
            b->ready[i]->member.is_in_step = 1;
    } else {
        choose_some(b, n_decoding, n_callers);
    }
    s->n_jobs = 0;
    for (int32_t i = 0; i < b->n_ready; i++)
        if (b->ready[i]->member.is_in_step)
            s->jobs[s->n_jobs++] = b->ready[i];
    s->is_shared = n_callers > 1 || !b->ready[0]->member.caller->rests_together;
}
