/* A step makes one forward call for its jobs, and then chooses their next tokens. The call feeds
 * tokens that were chosen last, with their drafts (decode), and chunks of prompts (prefill). */
#include "batch/step.h"

#include "min.h"
#include "model/model.h"
#include "os/os.h"
#include "pass/pass.h"
#include "pool.h"
#include "sample/sample.h"

#include <string.h>

static int32_t count_logits(const step_space *s) {
    int32_t n = 0;
    for (int32_t f = 0; f < s->n_feeds; f++)
        n += rows_wanted(&s->feeds[f]);
    return n;
}

/* ---- drafts ---- */

/* Whether drafts can be made for a job: they follow its last new token, so it must have one. */
static int can_draft(const gpt2c_job *job) { return job->drafter && job->n_tokens > 0; }

/* Makes up to `max` drafts for each decoding job that has the drafter of job `first`. */
static void draft_with_drafter_of(step_space *s, int32_t first, int32_t max) {
    gpt2c_job *jobs[MAX_DRAFTING_JOBS];
    draft made[MAX_DRAFTING_JOBS];
    int32_t index[MAX_DRAFTING_JOBS], n = 0;
    for (int32_t j = first; j < s->n_decoding; j++)
        if (s->jobs[j]->drafter == s->jobs[first]->drafter && can_draft(s->jobs[j])) {
            index[n] = j;
            jobs[n++] = s->jobs[j];
        }
    memset(made, 0, sizeof made);
    if (n == 0 || draft_tokens(jobs[0]->drafter, jobs, n, s->n_decoding, max, made))
        return; /* if memory runs out, the jobs go on without drafts */
    for (int32_t i = 0; i < n; i++)
        s->job_drafts[index[i]] = made[i];
}

/* Whether job j has a drafter that no job before it has. */
static int is_first_with_drafter(const step_space *s, int32_t j) {
    for (int32_t i = 0; i < j; i++)
        if (s->jobs[i]->drafter == s->jobs[j]->drafter)
            return 0;
    return s->jobs[j]->drafter != NULL;
}

/* Makes drafts for the decoding jobs, unless too many jobs decode. */
static void make_drafts(step_space *s) {
    int32_t n_drafting = 0;
    memset(s->job_drafts, 0, (size_t)s->n_decoding * sizeof *s->job_drafts);
    if (s->n_decoding > MAX_DRAFTING_JOBS)
        return;
    for (int32_t j = 0; j < s->n_decoding; j++)
        n_drafting += can_draft(s->jobs[j]);
    if (!n_drafting)
        return;
    int32_t max = (MAX_DRAFT_ROWS - s->n_decoding) / n_drafting;
    for (int32_t j = 0; j < s->n_decoding; j++)
        if (is_first_with_drafter(s, j))
            draft_with_drafter_of(s, j, max);
}

/* Records how many drafts were accepted and, if the pass fed no prompts, how long it took. */
static void record_drafts(const step_space *s, double seconds) {
    int is_decode_only = s->n_feeds == s->n_decoding && s->n_decoding <= MAX_DRAFTING_JOBS;
    int32_t n_drafts = 0;
    for (int32_t j = 0; j < s->n_decoding; j++)
        n_drafts += s->job_drafts[j].n;
    for (int32_t j = 0; j < s->n_decoding; j++) {
        gpt2c_drafter *drafter = s->jobs[j]->drafter;
        if (!drafter)
            continue;
        draft_record_job(drafter, &s->job_drafts[j]);
        if (is_decode_only && is_first_with_drafter(s, j))
            draft_record_pass(drafter, s->n_decoding, n_drafts, seconds);
    }
}

/* ---- the choice of tokens ---- */

/* Chooses the next tokens of the job of feed f: one, and another for each accepted draft. Rolls back
 * the positions of rejected drafts. */
static void choose_for_job(step_space *s, int32_t f, candidates *c) {
    gpt2c_job *job = s->jobs[f];
    const float *logits = s->logits + s->first_row[f] * (size_t)s->model->config.n_vocab;
    int32_t n = f < s->n_decoding ? s->job_drafts[f].n : 0, n_accepted = 0;
    for (;; n_accepted++, logits += s->model->config.n_vocab) {
        int32_t drafted = n_accepted < n ? job->tokens[job->n_tokens] : -1;
        advance_job(s->model, c, job, logits, logits);
        if (job->finish != GPT2C_RUNNING || job->tokens[job->n_tokens - 1] != drafted)
            break;
    }
    if (n == 0)
        return;
    gpt2c_sequence_truncate(job->sequence, gpt2c_sequence_length(job->sequence) - n + n_accepted);
    job->n_drafted += n;
    job->n_accepted += n_accepted;
    s->job_drafts[f].n_accepted = n_accepted;
    draft_roll_back(job);
}

/* Chooses the tokens of a worker's share of the jobs. */
static void choose_share(void *context, pool_team *team, int worker, int n_workers) {
    (void)team;
    step_space *s = context;
    for (int32_t i = worker; i < s->n_choosing; i += n_workers) {
        int32_t f = s->choosing[i];
        candidates *c =
            is_greedy(s->jobs[f]) ? NULL : gpt2c_scratch_candidates(s->scratch, s->model, worker);
        choose_for_job(s, f, c);
    }
}

/* This many argmaxes take longer than starting the workers, which still spin after the pass. (An
 * argmax over GPT-2's vocabulary reads 200 KB.) */
#define MIN_SHARED_CHOICES 8

/* Wakes the workers only if several jobs sample or have scores, or if many jobs choose: a few
 * argmaxes take less time than waking them. */
static void choose_tokens(step_space *s) {
    int32_t n_costly = 0;
    for (int32_t i = 0; i < s->n_choosing; i++) {
        const gpt2c_job *job = s->jobs[s->choosing[i]];
        n_costly += !is_greedy(job) || job->scores.scores;
    }
    if (n_costly > 1 || s->n_choosing >= MIN_SHARED_CHOICES)
        pool_run(choose_share, s, s->model->n_threads);
    else
        choose_share(s, NULL, 0, 1);
}

/* Copies the logits of feed f, whose first row is `row`, to a job that only feeds. The feed began at
 * token `begin` of the prompt. */
static void copy_logits(const step_space *s, int32_t f, int32_t begin, size_t row) {
    const gpt2c_job *job = s->jobs[f];
    size_t n_vocab = (size_t)s->model->config.n_vocab, n = (size_t)rows_wanted(&s->feeds[f]);
    size_t at = job->wanted == GPT2C_LOGITS_ALL ? (size_t)begin : 0;
    if (n && s->logits + row * n_vocab != job->logits_out + at * n_vocab)
        memcpy(job->logits_out + at * n_vocab, s->logits + row * n_vocab,
               n * n_vocab * sizeof(float));
}

/* After the pass: notes where each job's logits are, and which jobs get a token. Ends jobs that only
 * feed if they have fed all tokens. */
static void distribute_logits(step_space *s) {
    size_t row = 0;
    s->n_choosing = 0;
    for (int32_t f = 0; f < s->n_feeds; f++) {
        gpt2c_job *job = s->jobs[f];
        int32_t n = rows_wanted(&s->feeds[f]);
        s->first_row[f] = row;
        if (job->is_feed) {
            copy_logits(s, f, n_fed(job) - s->feeds[f].n_tokens, row);
            if (n_unfed(job) == 0)
                job->finish = GPT2C_FINISHED_FED;
        } else if (n) {
            job->n_passes++;
            s->choosing[s->n_choosing++] = f;
        }
        row += (size_t)n;
    }
}

/* ---- the step ---- */

/* Allocates the candidates of each worker if a job samples. Returns 0 if out of memory. */
static int alloc_candidates(const step_space *s) {
    int n_sampling = 0;
    for (int32_t f = 0; f < s->n_feeds; f++)
        n_sampling += !s->jobs[f]->is_feed && !is_greedy(s->jobs[f]);
    int n_workers = n_sampling ? min_int32(s->model->n_threads, s->n_feeds) : 0;
    for (int w = 0; w < n_workers; w++)
        if (!gpt2c_scratch_candidates(s->scratch, s->model, w))
            return 0;
    return 1;
}

static void fail_feeds(step_space *s, gpt2c_status status) {
    while (s->n_feeds)
        drop_feed(s, s->n_feeds - 1, status);
}

/* Runs the pass. If a job that only feeds is alone, the pass writes straight to its logits. */
static gpt2c_status run_forward(step_space *s) {
    gpt2c_job *only = s->n_feeds == 1 && s->jobs[0]->is_feed ? s->jobs[0] : NULL;
    int32_t n_logits = count_logits(s);
    s->logits = NULL;
    if (only && only->wanted == GPT2C_LOGITS_ALL)
        s->logits = only->logits_out + (size_t)n_fed(only) * (size_t)s->model->config.n_vocab;
    else if (only)
        s->logits = only->logits_out;
    else if (n_logits && !(s->logits = gpt2c_scratch_logits(s->scratch, s->model, n_logits)))
        return GPT2C_NO_MEMORY;
    return gpt2c_forward(s->model, s->scratch, s->feeds, s->n_feeds, s->logits);
}

void run_step(step_space *s) {
    decoding_first(s);
    make_drafts(s);
    double begin = os_seconds();
    plan_feeds_with_room(s);
    if (s->n_feeds == 0)
        return;
    gpt2c_status status = alloc_candidates(s) ? run_forward(s) : GPT2C_NO_MEMORY;
    if (status) {
        fail_feeds(s, status);
        return;
    }
    distribute_logits(s);
    choose_tokens(s);
    record_drafts(s, os_seconds() - begin);
}
