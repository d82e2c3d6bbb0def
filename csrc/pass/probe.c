/* Calls hooks, which read and edit activations, between two steps of a forward call. */
#include "fpenv.h"
#include "pass/pass.h"

#include <stdlib.h>

int is_probed(const worker_view *view, gpt2c_point point, int32_t layer) {
    const gpt2c_hooks *hooks = view->pass->hooks;
    return hooks && hooks->points[layer * GPT2C_N_POINTS + point];
}

/* Must be called after a callback. The call stops if the callback wants that, or if the callback
 * forked and this is the child. */
static void end_callback(const worker_view *view, int wants_stop) {
    view->pass->buffers->is_stopped = wants_stop || team_was_lost(view->team);
    (void)fp_enter(); /* a callback may change the mode, for instance by loading a library */
}

/* Worker 0 polls. The first barrier publishes the result; the second keeps it unchanged until all
 * workers have read it. */
int poll_stop_collective(const worker_view *view) {
    const gpt2c_hooks *hooks = view->pass->hooks;
    if (!hooks)
        return 0;
    if (view->worker == 0 && !view->pass->buffers->is_stopped)
        end_callback(view, hooks->poll(hooks->context));
    team_barrier(view->team, view->worker);
    int is_stopped = view->pass->buffers->is_stopped;
    team_barrier(view->team, view->worker);
    return is_stopped;
}

/* Worker 0, which is the thread that made the call, calls the hook. */
void probe_point(const worker_view *view, gpt2c_point point, int32_t layer, float_rows rows,
                 int n_rows, int32_t width) {
    if (!is_probed(view, point, layer))
        return;
    const gpt2c_hooks *hooks = view->pass->hooks;
    if (view->worker == 0 && !view->pass->buffers->is_stopped)
        end_callback(view, hooks->on_point(hooks->context, point, layer, rows.floats, rows.stride,
                                           n_rows, width));
    team_barrier(view->team, view->worker);
}

static int any_layer_is_probed(const gpt2c_hooks *hooks, const gpt2c_config *c, gpt2c_point point) {
    for (int32_t layer = 0; layer < c->n_layer; layer++)
        if (hooks->points[layer * GPT2C_N_POINTS + point])
            return 1;
    return 0;
}

gpt2c_status probe_buffers_alloc(probe_buffers *buffers, const gpt2c_hooks *hooks,
                                 const gpt2c_config *config, int32_t n_rows) {
    size_t n = (size_t)config->n_head * (size_t)n_rows; /* at most 2^40 */
    int probs = any_layer_is_probed(hooks, config, GPT2C_POINT_PROBS);
    int scores = probs || any_layer_is_probed(hooks, config, GPT2C_POINT_SCORES);
    if (scores) {
        buffers->scores = malloc(n * (size_t)n_rows * sizeof(float));
        buffers->sums = malloc(n * sizeof(float));
    }
    if (probs)
        buffers->probs = malloc(n * (size_t)n_rows * sizeof(float));
    if ((scores && (!buffers->scores || !buffers->sums)) || (probs && !buffers->probs)) {
        probe_buffers_free(buffers);
        return GPT2C_NO_MEMORY;
    }
    return GPT2C_OK;
}

void probe_buffers_free(probe_buffers *buffers) {
    free(buffers->scores);
    free(buffers->sums);
    free(buffers->probs);
    *buffers = (probe_buffers){0};
}
