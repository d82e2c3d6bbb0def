/* Which of the ready jobs take part in the next step. */
#include "batch/batch.h"

/* The most jobs that decode in a step that also has prompts. */
#define MAX_DECODING (GPT2C_MAX_ROWS - PROMPT_ROWS_BESIDE)

/* Chooses up to `max` ready jobs that decode (or that do not). The callers share the rows:
 * `quota` is the most jobs of one caller. Marks the jobs as in the step. */
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

static int32_t count_callers(gpt2c_batch *b, int32_t *n_decoding) {
    int32_t n_callers = 0;
    *n_decoding = 0;
    for (int32_t i = 0; i < b->n_ready; i++) {
        b->ready[i]->member.caller->n_chosen = -1;
        *n_decoding += is_decoding(b->ready[i]);
    }
    for (int32_t i = 0; i < b->n_ready; i++) {
        gpt2c_caller *caller = b->ready[i]->member.caller;
        n_callers += caller->n_chosen < 0;
        caller->n_chosen = 0;
    }
    return n_callers;
}

void choose_step(gpt2c_batch *b) {
    step_space *s = b->space;
    int32_t n_decoding, n_callers = count_callers(b, &n_decoding), n_chosen = 0;
    if (b->n_ready <= GPT2C_MAX_ROWS && n_decoding <= MAX_DECODING) {
        for (int32_t i = 0; i < b->n_ready; i++)
            b->ready[i]->member.is_in_step = 1;
    } else {
        int32_t max = n_decoding == b->n_ready ? GPT2C_MAX_ROWS : MAX_DECODING;
        int32_t quota = (max + n_callers - 1) / n_callers;
        n_chosen = choose_jobs(b, 1, max, quota);
        n_chosen += choose_jobs(b, 1, max - n_chosen, INT32_MAX);
        b->first_to_choose = (b->first_to_choose + n_chosen) % b->n_ready;
        for (int32_t i = 0; i < b->n_ready; i++)
            b->ready[i]->member.caller->n_chosen = 0;
        choose_jobs(b, 0, GPT2C_MAX_ROWS - n_chosen, INT32_MAX);
    }
    s->n_jobs = 0;
    for (int32_t i = 0; i < b->n_ready; i++)
        if (b->ready[i]->member.is_in_step)
            s->jobs[s->n_jobs++] = b->ready[i];
    s->is_shared = n_callers > 1 || !b->ready[0]->member.caller->rests_together;
}
