/* The generation loop, and the sampling functions that need a scratch. Each step makes one forward
 * call for all running jobs, and then chooses their next tokens. The call feeds chunks of prompts
 * (prefill), and chosen tokens with their drafts (decode). */
#include "draft/draft.h"
#include "model/model.h"
#include "os/os.h"
#include "pass/scratch.h"
#include "pool.h"
#include "sample/sample.h"

#include <stdlib.h>

/* The memory of one call of gpt2c_run. */
typedef struct {
    const gpt2c_model *model;
    gpt2c_scratch *scratch;
    gpt2c_drafter *drafter; /* or NULL */
    gpt2c_feed *feeds;      /* [n_jobs] */
    gpt2c_job **running;    /* [n_jobs]: the running jobs, in the order in which they are fed */
    draft *job_drafts;      /* [n_jobs], of the running jobs */
    size_t *first_row;      /* [n_jobs]: each running job's first row of the logits */
    float *logits;          /* [n_logits_rows, n_vocab], owned by the scratch */
    int32_t n_logits_rows;
    int32_t *choosing; /* [n_jobs]: indices of the running jobs that get a token */
    int32_t n_choosing;
} workspace;

static void workspace_free(workspace *w) {
    free(w->feeds);
    free(w->running);
    free(w->job_drafts);
    free(w->first_row);
    free(w->choosing);
}

/* Allocates the workers' candidates, unless all jobs are greedy. Returns 0 if out of memory. */
static int alloc_candidates(const gpt2c_model *m, gpt2c_scratch *scratch, gpt2c_job *const *jobs,
                            int32_t n_jobs) {
    int all_greedy = 1;
    for (int32_t j = 0; j < n_jobs; j++)
        all_greedy &= is_greedy(jobs[j]);
    for (int w = 0; !all_greedy && w < m->n_threads && w < n_jobs; w++)
        if (!gpt2c_scratch_candidates(scratch, m, w))
            return 0;
    return 1;
}

static gpt2c_status workspace_create(workspace *w, const gpt2c_model *m, gpt2c_scratch *scratch,
                                     gpt2c_drafter *drafter, gpt2c_job *const *jobs,
                                     int32_t n_jobs) {
    int32_t n_rows = n_jobs;
    if (drafter && n_jobs <= MAX_DRAFTING_JOBS)
        n_rows =
            n_jobs * (1 + MAX_DRAFTS) < MAX_DRAFT_ROWS ? n_jobs * (1 + MAX_DRAFTS) : MAX_DRAFT_ROWS;
    size_t n = (size_t)n_jobs;
    *w = (workspace){
        .model = m,
        .scratch = scratch,
        .drafter = drafter,
        .feeds = calloc(n, sizeof(gpt2c_feed)),
        .running = calloc(n, sizeof(gpt2c_job *)),
        .job_drafts = calloc(n, sizeof(draft)),
        .first_row = calloc(n, sizeof(size_t)),
        .choosing = calloc(n, sizeof(int32_t)),
        .logits = gpt2c_scratch_logits(scratch, m, n_rows),
        .n_logits_rows = n_rows,
    };
    if (w->feeds && w->running && w->job_drafts && w->first_row && w->choosing && w->logits &&
        alloc_candidates(m, scratch, jobs, n_jobs))
        return GPT2C_OK;
    workspace_free(w);
    return GPT2C_NO_MEMORY;
}

/* Returns the job's next feed: the next chunk of its prompt, or the token chosen last and its
 * drafts. */
static gpt2c_feed next_feed(const gpt2c_job *job, const draft *drafted, int32_t max_rows) {
    if (job->n_fed == job->n_prompt)
        return (gpt2c_feed){job->sequence, &job->tokens[job->n_tokens - 1], 1 + drafted->n,
                            GPT2C_LOGITS_ALL};
    int32_t rest = job->n_prompt - job->n_fed;
    int32_t n = rest < max_rows ? rest : max_rows;
    return (gpt2c_feed){job->sequence, job->prompt + job->n_fed, n,
                        n == rest ? GPT2C_LOGITS_LAST : GPT2C_LOGITS_NONE};
}

/* Chooses a job's next tokens: one, and another for each accepted draft. Rolls back the positions
 * of rejected drafts. */
static void choose_for_job(const workspace *w, int32_t f, candidates *c) {
    gpt2c_job *job = w->running[f];
    const float *logits = w->logits + w->first_row[f] * (size_t)w->model->config.n_vocab;
    int32_t n = w->job_drafts[f].n, n_accepted = 0;
    for (;; n_accepted++, logits += w->model->config.n_vocab) {
        int32_t drafted = n_accepted < n ? job->tokens[job->n_tokens] : -1;
        advance_job(w->model, c, job, logits, logits);
        if (job->finish != GPT2C_RUNNING || job->tokens[job->n_tokens - 1] != drafted)
            break;
    }
    if (n == 0)
        return;
    gpt2c_sequence_truncate(job->sequence, gpt2c_sequence_length(job->sequence) - n + n_accepted);
    job->n_drafted += n;
    job->n_accepted += n_accepted;
    w->job_drafts[f].n_accepted = n_accepted;
    draft_roll_back(job);
}

/* Each worker chooses the tokens of its share of the jobs. */
static void choose_share(void *context, pool_team *team, int worker, int n_workers) {
    (void)team;
    const workspace *w = context;
    for (int32_t i = worker; i < w->n_choosing; i += n_workers) {
        int32_t f = w->choosing[i];
        candidates *c = is_greedy(w->running[f])
                            ? NULL
                            : gpt2c_scratch_candidates(w->scratch, w->model, worker);
        choose_for_job(w, f, c);
    }
}

/* Greedy argmax is cheaper than waking the workers. */
static void choose_tokens(workspace *w) {
    int32_t n_working = 0;
    for (int32_t i = 0; i < w->n_choosing; i++) {
        const gpt2c_job *job = w->running[w->choosing[i]];
        n_working += !is_greedy(job) || job->scores.scores;
    }
    if (n_working > 1)
        pool_run(choose_share, w, w->model->n_threads);
    else
        choose_share(w, NULL, 0, 1);
}

/* Lists the running jobs: decoding jobs first, then those still in prefill, which share the
 * remaining rows. Returns the number of running jobs; *n_decoding is the number of decoding
 * jobs. */
static int32_t list_jobs(workspace *w, gpt2c_job *const *jobs, int32_t n_jobs,
                         int32_t *n_decoding) {
    int32_t n_running = 0;
    for (int in_prompt = 0; in_prompt <= 1; in_prompt++) {
        for (int32_t j = 0; j < n_jobs; j++)
            if (jobs[j]->finish == GPT2C_RUNNING &&
                (jobs[j]->n_fed < jobs[j]->n_prompt) == in_prompt)
                w->running[n_running++] = jobs[j];
        if (!in_prompt)
            *n_decoding = n_running;
    }
    return n_running;
}

/* Makes drafts if all jobs decode. A prefill already keeps the CPU busy. */
static gpt2c_status make_drafts(workspace *w, int32_t n_decoding, int32_t n_running) {
    for (int32_t f = 0; f < n_running; f++)
        w->job_drafts[f] = (draft){.source = NO_DRAFT};
    int may_draft = w->drafter && n_decoding == n_running && n_running <= MAX_DRAFTING_JOBS;
    for (int32_t f = 0; f < n_decoding; f++)
        may_draft &= w->running[f]->lookup != NULL;
    if (!may_draft)
        return GPT2C_OK;
    return draft_tokens(w->drafter, w->running, n_running, w->n_logits_rows / n_running - 1,
                        w->job_drafts);
}

/* Feeds the running jobs, in order, until no row is left, and lists the jobs that get a token.
 * *n_rows is the number of rows fed. */
static gpt2c_status feed_jobs(workspace *w, int32_t n_running, int32_t *n_rows) {
    int32_t n_feeds = 0;
    *n_rows = 0;
    for (; n_feeds < n_running && *n_rows < GPT2C_MAX_ROWS; n_feeds++) {
        w->feeds[n_feeds] =
            next_feed(w->running[n_feeds], &w->job_drafts[n_feeds], GPT2C_MAX_ROWS - *n_rows);
        *n_rows += w->feeds[n_feeds].n_tokens;
    }
    gpt2c_status status = gpt2c_forward(w->model, w->scratch, w->feeds, n_feeds, w->logits);
    if (status)
        return status;
    size_t row = 0;
    w->n_choosing = 0;
    for (int32_t f = 0; f < n_feeds; f++) {
        gpt2c_job *job = w->running[f];
        if (job->n_fed < job->n_prompt)
            job->n_fed += w->feeds[f].n_tokens;
        if (w->feeds[f].wanted == GPT2C_LOGITS_NONE)
            continue;
        job->n_passes++;
        w->choosing[w->n_choosing++] = f;
        w->first_row[f] = row;
        row += w->feeds[f].wanted == GPT2C_LOGITS_ALL ? (size_t)w->feeds[f].n_tokens : 1;
    }
    return GPT2C_OK;
}

/* Makes one forward call for the running jobs, and chooses their tokens. */
static gpt2c_status step(gpt2c_job *const *jobs, int32_t n_jobs, workspace *w) {
    int32_t n_decoding = 0, n_rows, n_running = list_jobs(w, jobs, n_jobs, &n_decoding);
    gpt2c_status status = make_drafts(w, n_decoding, n_running);
    if (status)
        return status;
    double begin = os_seconds();
    status = feed_jobs(w, n_running, &n_rows);
    if (status)
        return status;
    choose_tokens(w);
    if (w->drafter && n_decoding == n_running && n_running <= MAX_DRAFTING_JOBS) {
        draft_record_pass(w->drafter, n_running, n_rows - n_running, os_seconds() - begin);
        for (int32_t f = 0; f < n_running; f++)
            draft_record_job(w->drafter, &w->job_drafts[f]);
    }
    return GPT2C_OK;
}

static int any_finished(gpt2c_job *const *jobs, int32_t n_jobs) {
    for (int32_t j = 0; j < n_jobs; j++)
        if (jobs[j]->finish != GPT2C_RUNNING)
            return 1;
    return 0;
}

static int32_t tokens_generated(gpt2c_job *const *jobs, int32_t n_jobs) {
    int32_t total = 0;
    for (int32_t j = 0; j < n_jobs; j++)
        total += jobs[j]->n_tokens;
    return total;
}

/* A job must be running, with something to feed and room for a token. */
static int job_is_valid(const gpt2c_job *job) {
    return job->finish == GPT2C_RUNNING && job->n_prompt > 0 && job->n_fed >= 0 &&
           job->n_fed <= job->n_prompt && job->n_tokens >= 0 &&
           job->n_tokens < job->max_new_tokens && (job->n_fed < job->n_prompt || job->n_tokens > 0);
}

gpt2c_status gpt2c_run(const gpt2c_model *model, gpt2c_scratch *scratch, gpt2c_drafter *drafter,
                       gpt2c_job *const *jobs, int32_t n_jobs, int32_t max_steps, double seconds,
                       int32_t *n_steps) {
    *n_steps = 0;
    if (n_jobs < 1 || n_jobs > GPT2C_MAX_ROWS)
        return GPT2C_BAD_ARGUMENT;
    for (int32_t j = 0; j < n_jobs; j++)
        if (!job_is_valid(jobs[j]))
            return GPT2C_BAD_ARGUMENT;
    workspace w;
    gpt2c_status status = workspace_create(&w, model, scratch, drafter, jobs, n_jobs);
    if (status)
        return status;
    double end = os_seconds() + seconds;
    while (*n_steps < max_steps) {
        int32_t before = tokens_generated(jobs, n_jobs);
        status = step(jobs, n_jobs, &w);
        *n_steps += tokens_generated(jobs, n_jobs) > before;
        if (status || any_finished(jobs, n_jobs) || os_seconds() >= end)
            break;
    }
    workspace_free(&w);
    return status;
}

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
