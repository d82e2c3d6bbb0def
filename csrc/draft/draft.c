/* Whether guessing pays is a matter of measured times and of how many guesses were right: both are
 * estimated as texts go on. */
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
                               int32_t fixed) {
    d->fixed = min_int32(fixed, MAX_DRAFTS);
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

gpt2c_status draft_tokens(gpt2c_drafter *d, gpt2c_job *const *jobs, int32_t n_jobs, int32_t max,
                          draft *drafts) {
    int by_model = 0;
    for (int32_t j = 0; j < n_jobs; j++) {
        int32_t room = max_drafts_for(d, jobs[j]);
        drafts[j] = draft_decide(d, jobs[j], n_jobs, min_int32(room, max));
        if (drafts[j].source == DRAFT_BY_LOOKUP)
            copy_continuation(jobs[j], &drafts[j]);
        by_model |= drafts[j].source == DRAFT_BY_MODEL;
    }
    return by_model ? draft_by_model(d, jobs, n_jobs, drafts) : GPT2C_OK;
}
