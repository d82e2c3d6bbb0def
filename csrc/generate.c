/* The calls that choose a token, or apply sampling stages, outside the running batch. */
#include "pass/scratch.h"
#include "sample/sample.h"

gpt2c_status gpt2c_advance(const gpt2c_model *model, gpt2c_scratch *scratch, gpt2c_job *job,
                           const float *logits, const float *raw_logits) {
    if (job->finish != GPT2C_RUNNING) /* a finished job may have no room for another token */
        return GPT2C_BAD_ARGUMENT;
    candidates *c = gpt2c_scratch_candidates(scratch, model, 0);
    if (!c)
        return GPT2C_NO_MEMORY;
    advance_job(model, c, job, logits, raw_logits);
    return GPT2C_OK;
}

gpt2c_status gpt2c_apply_stages(const gpt2c_model *model, gpt2c_scratch *scratch,
                                const gpt2c_job *job, float *logits) {
    candidates *c = gpt2c_scratch_candidates(scratch, model, 0);
    if (!c)
        return GPT2C_NO_MEMORY;
    apply_stages(c, job, logits);
    return GPT2C_OK;
}
