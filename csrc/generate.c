/* The loop that continues texts: feeds prompts in chunks and tokens one by one, all running jobs in
 * one forward call, and chooses each next token. */
#include "model.h"
#include "os.h"
#include "pool.h"
#include "sample.h"

#include <stdlib.h>

/* The memory of one gpt2c_run, taken before its first token. */
typedef struct {
    const gpt2c_model *model;
    gpt2c_scratch *scratch;
    gpt2c_feed *feeds; /* [n_jobs] */
    gpt2c_job **fed;   /* [n_jobs], the jobs that get a token, in the order of the logits */
    float *logits;     /* [n_jobs, n_vocab], the scratch's */
    int32_t n_choosing;
} workspace;

static void workspace_free(workspace *w) {
    free(w->feeds);
    free(w->fed);
}

/* Room for every worker's draws, where anything is drawn. Returns 0 without memory. */
static int take_candidates(const gpt2c_model *m, gpt2c_scratch *scratch, gpt2c_job *const *jobs,
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
                                     gpt2c_job *const *jobs, int32_t n_jobs) {
    *w = (workspace){
        .model = m,
        .scratch = scratch,
        .feeds = calloc((size_t)n_jobs, sizeof(gpt2c_feed)),
        .fed = calloc((size_t)n_jobs, sizeof(gpt2c_job *)),
        .logits = gpt2c_scratch_logits(scratch, m, n_jobs),
    };
    if (w->feeds && w->fed && w->logits && take_candidates(m, scratch, jobs, n_jobs))
        return GPT2C_OK;
    workspace_free(w);
    return GPT2C_NO_MEMORY;
}

/* What the job has to feed next: the rest of its prompt, or the token chosen last. */
static gpt2c_feed next_feed(const gpt2c_job *job, int32_t most_rows) {
    if (job->n_fed == job->n_prompt)
        return (gpt2c_feed){job->sequence, &job->tokens[job->n_tokens - 1], 1, GPT2C_LOGITS_LAST};
    int32_t rest = job->n_prompt - job->n_fed;
    int32_t n = rest < most_rows ? rest : most_rows;
    return (gpt2c_feed){job->sequence, job->prompt + job->n_fed, n,
                        n == rest ? GPT2C_LOGITS_LAST : GPT2C_LOGITS_NONE};
}

/* Each worker chooses the tokens of its share of the jobs. */
static void choose_share(void *context, pool_team *team, int worker, int n_workers) {
    (void)team;
    const workspace *w = context;
    for (int32_t j = worker; j < w->n_choosing; j += n_workers) {
        const float *logits = w->logits + (size_t)j * (size_t)w->model->config.n_vocab;
        gpt2c_job *job = w->fed[j];
        candidates *c =
            is_greedy(job) ? NULL : gpt2c_scratch_candidates(w->scratch, w->model, worker);
        advance_job(w->model, c, job, logits, logits);
    }
}

/* An arg max is done sooner than the other workers are woken. */
static void choose_tokens(workspace *w) {
    int32_t n_working = 0;
    for (int32_t j = 0; j < w->n_choosing; j++)
        n_working += !is_greedy(w->fed[j]) || w->fed[j]->scores.scores;
    if (n_working > 1)
        pool_run(choose_share, w, w->model->n_threads);
    else
        choose_share(w, NULL, 0, 1);
}

/* One forward call for the running jobs. Jobs that decode come first and take a row each; prompts
 * share the rows that are left. */
static gpt2c_status step(gpt2c_job *const *jobs, int32_t n_jobs, workspace *w) {
    int32_t n_feeds = 0, rows_left = GPT2C_MAX_ROWS;
    for (int in_prompt = 0; in_prompt <= 1; in_prompt++)
        for (int32_t j = 0; j < n_jobs && rows_left; j++) {
            gpt2c_job *job = jobs[j];
            if (job->finish != GPT2C_RUNNING || (job->n_fed < job->n_prompt) != in_prompt)
                continue;
            w->feeds[n_feeds] = next_feed(job, rows_left);
            w->fed[n_feeds] = job;
            rows_left -= w->feeds[n_feeds++].n_tokens;
        }
    gpt2c_status status = gpt2c_forward(w->model, w->scratch, w->feeds, n_feeds, w->logits);
    if (status)
        return status;
    w->n_choosing = 0;
    for (int32_t f = 0; f < n_feeds; f++) {
        gpt2c_job *job = w->fed[f];
        if (job->n_fed < job->n_prompt)
            job->n_fed += w->feeds[f].n_tokens;
        if (w->feeds[f].wanted != GPT2C_LOGITS_NONE)
            w->fed[w->n_choosing++] = job;
    }
    choose_tokens(w);
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

/* A job must have something to feed, room for its tokens, and not be finished. */
static int job_is_possible(const gpt2c_job *job) {
    return job->finish == GPT2C_RUNNING && job->n_prompt > 0 && job->n_fed >= 0 &&
           job->n_fed <= job->n_prompt && job->n_tokens >= 0 &&
           job->n_tokens < job->max_new_tokens &&
           (job->n_fed < job->n_prompt || job->n_tokens > 0);
}

gpt2c_status gpt2c_run(const gpt2c_model *model, gpt2c_scratch *scratch, gpt2c_job *const *jobs,
                       int32_t n_jobs, int32_t max_steps, double seconds, int32_t *n_steps) {
    *n_steps = 0;
    if (n_jobs < 1 || n_jobs > GPT2C_MAX_ROWS)
        return GPT2C_BAD_ARGUMENT;
    for (int32_t j = 0; j < n_jobs; j++)
        if (!job_is_possible(jobs[j]))
            return GPT2C_BAD_ARGUMENT;
    workspace w;
    gpt2c_status status = workspace_create(&w, model, scratch, jobs, n_jobs);
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
