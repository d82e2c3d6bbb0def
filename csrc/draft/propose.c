/* Makes drafts: copies the tokens that followed an earlier occurrence of the last tokens, or runs
 * the draft model. */
#include "draft/drafter.h"

#include "model/model.h"
#include "os/os.h"
#include "pass/scratch.h"
#include "sample/sample.h"

/* The copy may reach the end of the sequence; it then copies its own drafts, so a repetition
 * continues. */
void copy_continuation(gpt2c_job *job, const draft *drafted) {
    for (int32_t i = 0; i < drafted->n; i++)
        job->tokens[job->n_tokens + i] = lookup_token(job, drafted->match.continuation + i);
}

/* The sequence on which the draft model continues a job. A separate draft model has a sequence of
 * its own; a 4-bit copy reads and overwrites the job's keys and values. */
static gpt2c_sequence *draft_sequence_of(const gpt2c_job *job) {
    return job->draft_sequence ? job->draft_sequence : job->sequence;
}

/* Feeds the draft sequence of a job the tokens that it lacks, except the last one, which draft_step
 * feeds. */
static gpt2c_status catch_up(gpt2c_drafter *d, const gpt2c_job *job) {
    if (!job->draft_sequence)
        return GPT2C_OK;
    int32_t end = job->n_prompt + job->n_tokens - 1;
    int32_t at = gpt2c_sequence_length(job->draft_sequence);
    while (at < end) {
        int in_prompt = at < job->n_prompt;
        int32_t stop = in_prompt && job->n_prompt < end ? job->n_prompt : end;
        int32_t n = min_int32(stop - at, GPT2C_MAX_ROWS);
        const int32_t *tokens = in_prompt ? job->prompt + at : job->tokens + (at - job->n_prompt);
        gpt2c_feed feed = {job->draft_sequence, tokens, n, GPT2C_LOGITS_NONE};
        gpt2c_status status = gpt2c_forward(d->model, d->scratch, &feed, 1, NULL);
        if (status)
            return status;
        at += n;
    }
    return GPT2C_OK;
}

/* Records the margin of draft i, and ends drafting if another draft is not worth its time. */
static void record_margin(const gpt2c_drafter *d, draft *drafted, int32_t i, float margin) {
    int range = margin_range(margin);
    drafted->margin_ranges[i] = (uint8_t)range;
    drafted->p_all_accepted *= acceptance_rate(&d->by_margin[range]);
    if (drafted->p_all_accepted * acceptance_rate(&d->by_model) < drafted->min_probability)
        drafted->n = i + 1;
}

/* Makes draft i of each job that still drafts. Sets *n_fed to the number of these jobs. */
static gpt2c_status draft_step(gpt2c_drafter *d, gpt2c_job *const *jobs, int32_t n_jobs,
                               draft *job_drafts, int32_t i, int32_t *n_fed) {
    int32_t fed[MAX_DRAFTING_JOBS];
    *n_fed = 0;
    for (int32_t j = 0; j < n_jobs; j++)
        if (job_drafts[j].source == DRAFT_BY_MODEL && i < job_drafts[j].n) {
            const int32_t *token = &jobs[j]->tokens[jobs[j]->n_tokens - 1 + i];
            d->feeds[*n_fed] =
                (gpt2c_feed){draft_sequence_of(jobs[j]), token, 1, GPT2C_LOGITS_LAST};
            fed[(*n_fed)++] = j;
        }
    float *logits = gpt2c_scratch_logits(d->scratch, d->model, n_jobs);
    candidates *c = gpt2c_scratch_candidates(d->scratch, d->model, 0);
    if (!logits || !c)
        return GPT2C_NO_MEMORY;
    c->wants_margin = 1;
    if (*n_fed == 0)
        return GPT2C_OK;
    gpt2c_status status = gpt2c_forward(d->model, d->scratch, d->feeds, *n_fed, logits);
    for (int32_t f = 0; !status && f < *n_fed; f++) {
        gpt2c_job *shadow = &d->shadow_jobs[fed[f]];
        const float *row = logits + (size_t)f * (size_t)d->model->config.n_vocab;
        int32_t before = shadow->n_tokens;
        advance_job(d->model, c, shadow, row, row);
        record_margin(d, &job_drafts[fed[f]], i, c->margin);
        /* A stop id or a NaN ends drafting and is not a draft. */
        if (shadow->finish != GPT2C_RUNNING)
            job_drafts[fed[f]].n = i + shadow->n_tokens - before;
    }
    return status;
}

gpt2c_status draft_by_model(gpt2c_drafter *d, gpt2c_job *const *jobs, int32_t n_jobs,
                            int32_t n_decoding, draft *job_drafts) {
    int32_t length[MAX_DRAFTING_JOBS], n_fed = 0;
    gpt2c_status status = GPT2C_OK;
    for (int32_t j = 0; !status && j < n_jobs; j++)
        if (job_drafts[j].source == DRAFT_BY_MODEL) {
            d->shadow_jobs[j] = *jobs[j];
            d->shadow_jobs[j].scores.scores = NULL;
            status = catch_up(d, jobs[j]);
        }
    for (int32_t j = 0; j < n_jobs; j++)
        length[j] = gpt2c_sequence_length(draft_sequence_of(jobs[j]));
    pass_costs *costs = &d->costs[n_decoding];
    for (int32_t i = 0; !status && i < MAX_DRAFTS; i++) {
        double begin = os_seconds();
        status = draft_step(d, jobs, n_jobs, job_drafts, i, &n_fed);
        if (n_fed == 0)
            break;
        if (n_fed == n_jobs)
            costs->step = cost_smoothed(costs->step, (os_seconds() - begin) * n_decoding / n_jobs);
    }
    /* Verification overwrites the keys and values that a 4-bit copy wrote. */
    for (int32_t j = 0; j < n_jobs; j++)
        if (job_drafts[j].source == DRAFT_BY_MODEL && (status || !jobs[j]->draft_sequence))
            gpt2c_sequence_truncate(draft_sequence_of(jobs[j]), length[j]);
    return status;
}

void draft_roll_back(const gpt2c_job *job) {
    int32_t valid_length = job->n_prompt + job->n_tokens - 1;
    if (job->draft_sequence && gpt2c_sequence_length(job->draft_sequence) > valid_length)
        gpt2c_sequence_truncate(job->draft_sequence, valid_length);
}
