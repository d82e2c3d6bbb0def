/* Speculative decoding (Leviathan et al. 2023) that never changes the output.
 *
 * A pass reads all weights once, whether it computes one row or several. So k draft tokens are fed
 * after a job's last token, and one pass computes the logits of all 1 + k rows. The job then
 * chooses its tokens row by row, as it does without drafts. A draft is accepted if it equals the
 * token that the job chose. The first draft that differs is rejected with all drafts after it, and
 * their positions are removed from the KV cache (batch/step.c). Logits have the same bits in every
 * batch, and a draw depends only on the logits, the seed and the position. So the output is that of
 * plain decoding, bit for bit, whatever the drafts are.
 *
 * There are two sources of drafts. Prompt lookup copies the tokens that followed an earlier
 * occurrence of the last tokens (lookup.c), which takes almost no time. A draft model chooses
 * tokens with the job's own sampling and noise (propose.c); it is a separate model, or a copy of
 * the job's model with its matrices in 4 bits (a 4-bit copy).
 *
 * How many drafts are worthwhile (decide.c): if each draft is accepted at the rate p, k drafts give
 * 1 + p + .. + p^k tokens. They take the time of a plain pass and, for each draft, the time of one
 * more row and of making the draft. decide.c chooses the k with the most tokens per second, and 0
 * if the gain is below 2 %. A draft model that is unsure of a draft stops earlier: see
 * decide_by_model. Rates and times are measured during generation; times are kept separately for
 * each number of jobs (estimates.c). A source that is not worthwhile is tried again after a
 * wait. */
#include "draft/drafter.h"

#include <stdlib.h>

gpt2c_status gpt2c_drafter_create(gpt2c_drafter **drafter) {
    gpt2c_drafter *d = calloc(1, sizeof *d);
    if (!d)
        return GPT2C_NO_MEMORY;
    estimates_reset(d);
    *drafter = d;
    return GPT2C_OK;
}

void gpt2c_drafter_free(gpt2c_drafter *drafter) {
    if (!drafter)
        return;
    gpt2c_scratch_free(drafter->scratch);
    free(drafter);
}

gpt2c_status gpt2c_drafter_set(gpt2c_drafter *d, const gpt2c_model *model, int32_t sources,
                               int32_t n_fixed) {
    d->n_fixed = min_int32(n_fixed, MAX_DRAFTS);
    d->sources = sources;
    if (d->model == model)
        return GPT2C_OK;
    gpt2c_scratch_free(d->scratch);
    d->scratch = NULL;
    d->model = NULL;
    if (model) {
        gpt2c_status status = gpt2c_scratch_create(model, GPT2C_MAX_ROWS, &d->scratch);
        if (status)
            return status;
        d->model = model;
    }
    estimates_reset_model(d);
    return GPT2C_OK;
}

gpt2c_status draft_tokens(gpt2c_drafter *d, gpt2c_job *const *jobs, int32_t n_jobs,
                          int32_t n_decoding, int32_t max, draft *job_drafts) {
    int by_model = 0;
    for (int32_t j = 0; j < n_jobs; j++) {
        int32_t room = max_drafts_for(d, jobs[j]);
        job_drafts[j] = draft_decide(d, jobs[j], n_decoding, min_int32(room, max));
        if (job_drafts[j].source == DRAFT_BY_LOOKUP)
            copy_continuation(jobs[j], &job_drafts[j]);
        by_model |= job_drafts[j].source == DRAFT_BY_MODEL;
    }
    return by_model ? draft_by_model(d, jobs, n_jobs, n_decoding, job_drafts) : GPT2C_OK;
}
