# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False
"""The thin line between Python and the C engine: checks, typed memoryviews, no GIL.

Policy (options, batching, text) is Python's; arithmetic is C's. See ``_engine.pyi`` for types.
"""

from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from gpt2c._capi cimport *

from contextlib import contextmanager

import numpy as np

from gpt2c.errors import (
    BackendError,
    CacheMemoryError,
    ClosedError,
    ContextError,
    OptionError,
)


cdef extern from "Python.h":
    int PyErr_CheckSignals() except -1


ARITHMETIC = GPT2C_ARITHMETIC
MAX_THREADS = GPT2C_MAX_THREADS

# How long the engine runs before it lets Ctrl-C be noticed, in seconds.
cdef double SIGNAL_INTERVAL = 0.02

cdef dict ACTIVATIONS = {
    "gelu_tanh": GPT2C_GELU_TANH,
    "gelu_erf": GPT2C_GELU_ERF,
    "quick_gelu": GPT2C_QUICK_GELU,
    "relu": GPT2C_RELU,
    "silu": GPT2C_SILU,
    "tanh": GPT2C_TANH,
}

cdef dict TENSORS = {
    "wte.weight": GPT2C_WTE,
    "wpe.weight": GPT2C_WPE,
    "ln_f.weight": GPT2C_LN_F_WEIGHT,
    "ln_f.bias": GPT2C_LN_F_BIAS,
    "lm_head.weight": GPT2C_LM_HEAD,
    "ln_1.weight": GPT2C_LN_1_WEIGHT,
    "ln_1.bias": GPT2C_LN_1_BIAS,
    "attn.c_attn.weight": GPT2C_C_ATTN_WEIGHT,
    "attn.c_attn.bias": GPT2C_C_ATTN_BIAS,
    "attn.c_proj.weight": GPT2C_ATTN_C_PROJ_WEIGHT,
    "attn.c_proj.bias": GPT2C_ATTN_C_PROJ_BIAS,
    "ln_2.weight": GPT2C_LN_2_WEIGHT,
    "ln_2.bias": GPT2C_LN_2_BIAS,
    "mlp.c_fc.weight": GPT2C_C_FC_WEIGHT,
    "mlp.c_fc.bias": GPT2C_C_FC_BIAS,
    "mlp.c_proj.weight": GPT2C_MLP_C_PROJ_WEIGHT,
    "mlp.c_proj.bias": GPT2C_MLP_C_PROJ_BIAS,
}

cdef dict FINISH_REASONS = {
    <int>GPT2C_RUNNING: None,
    <int>GPT2C_FINISHED_LENGTH: "length",
    <int>GPT2C_FINISHED_STOP: "stop",
    <int>GPT2C_FINISHED_CONTEXT: "context",
    <int>GPT2C_FINISHED_NOT_A_NUMBER: "nan",
}


def instruction_sets():
    """Names of the compiled instruction sets, slowest first, each with whether it runs here."""
    names = []
    cdef int i = 0
    cdef const char *name = gpt2c_isa_compiled(0)
    while name != NULL:
        names.append((name.decode(), bool(gpt2c_isa_supported(name))))
        i += 1
        name = gpt2c_isa_compiled(i)
    return names


cdef int raise_status(gpt2c_status status, str what) except -1:
    if status == GPT2C_OK:
        return 0
    if status == GPT2C_NO_MEMORY:
        raise CacheMemoryError(f"not enough memory for {what}")
    if status == GPT2C_CONTEXT_FULL:
        raise ContextError(f"{what}: more tokens than the context has positions")
    if status == GPT2C_UNSUPPORTED_CPU:
        raise BackendError(f"{what}: this CPU cannot run the instruction set that was asked for")
    raise OptionError(f"{what}: the engine refused the arguments")


cdef class Scratch:
    """The buffers of one running call."""

    cdef gpt2c_scratch *pointer

    def __dealloc__(self):
        gpt2c_scratch_free(self.pointer)


cdef class Model:
    """A model's packed weights: immutable once loaded, shared by every call."""

    cdef gpt2c_model *pointer
    cdef readonly str isa
    cdef readonly int n_vocab, n_positions, n_threads
    cdef int n_running
    cdef bint closed
    cdef list free_scratches

    def __cinit__(self, config, str isa not None, int32_t n_threads):
        cdef gpt2c_config c
        c.n_vocab = config.vocab_size
        c.n_positions = config.n_positions
        c.n_embd = config.n_embd
        c.n_layer = config.n_layer
        c.n_head = config.n_head
        c.n_inner = config.inner
        c.activation = ACTIVATIONS[config.activation]
        c.tied_head = config.tie_word_embeddings
        c.scale_attn = config.scale_attn_weights
        c.scale_by_inverse_layer = config.scale_attn_by_inverse_layer_idx
        c.layer_norm_epsilon = config.layer_norm_epsilon
        cdef bytes name = isa.encode()
        raise_status(gpt2c_model_create(&c, name, n_threads, &self.pointer), "the model's weights")
        self.isa = isa
        self.n_threads = n_threads
        self.n_vocab = c.n_vocab
        self.n_positions = c.n_positions
        self.free_scratches = []

    def __dealloc__(self):
        gpt2c_model_free(self.pointer)

    def load(self, str name not None, const float[:, ::1] rows not None, size_t begin):
        """Stores rows [begin, begin + len(rows)) of a tensor; a vector is one row."""
        cdef int32_t layer = 0
        if name.startswith("h."):
            _, index, name = name.split(".", 2)
            layer = int(index)
        cdef gpt2c_tensor tensor = TENSORS[name]
        self.check_open()
        cdef gpt2c_status status
        if rows.shape[0] == 0 or rows.shape[1] == 0:
            raise OptionError(f"{name}: no rows to load")
        with nogil:
            status = gpt2c_model_load(
                self.pointer, tensor, layer, &rows[0, 0], begin, rows.shape[0], rows.shape[1]
            )
        raise_status(status, name)

    @property
    def n_bytes(self):
        """Memory of the packed weights."""
        return 0 if self.pointer == NULL else gpt2c_model_bytes(self.pointer)

    def stream_rate(self):
        """Bytes a second at which this model's threads read its weights and only add them."""
        cdef double rate
        with self.held(), nogil:
            rate = gpt2c_measure_stream(self.pointer)
        return rate

    def multiply_add_rate(self):
        """Float operations a second that this model's threads do in registers (an FMA is two)."""
        cdef double rate
        with self.held(), nogil:
            rate = gpt2c_measure_multiply_add(self.pointer)
        return rate

    def sequence(self):
        """An empty sequence."""
        self.check_open()
        return Sequence(self)

    def job(self, ids, max_new_tokens, temperature, top_k, seed, sample, stop_ids, sequence=None):
        """A text to be continued from ids by `run`; sequence, which it takes, has the first."""
        return Job(self, ids, max_new_tokens, temperature, top_k, seed, sample, stop_ids, sequence)

    def run(self, list jobs not None, int max_steps):
        """Advances the jobs until one finishes or max_steps tokens were generated for them."""
        cdef int n_jobs = len(jobs)
        cdef gpt2c_job **pointers = <gpt2c_job **>calloc(n_jobs or 1, sizeof(gpt2c_job *))
        if pointers == NULL:
            raise CacheMemoryError("not enough memory to run the jobs")
        cdef Job job
        cdef Scratch scratch = None
        cdef int32_t n_steps = 0
        cdef gpt2c_status status = GPT2C_OK
        cdef bint running = True
        cdef int n_claimed = 0
        try:
            scratch = self.begin()
            for i in range(n_jobs):
                job = jobs[i]
                if job is None:
                    raise OptionError("run takes jobs; found None")
                job.check_model(self)
                job.sequence.claim()
                n_claimed += 1
                pointers[i] = &job.job
            while running:
                with nogil:
                    status = gpt2c_run(
                        self.pointer, scratch.pointer, pointers, n_jobs, max_steps,
                        SIGNAL_INTERVAL, &n_steps,
                    )
                raise_status(status, "a cache page or the logits")
                max_steps -= n_steps
                running = max_steps > 0
                for i in range(n_jobs):
                    running = running and pointers[i].finish == GPT2C_RUNNING
                PyErr_CheckSignals()
        finally:
            free(pointers)
            for i in range(n_claimed):
                job = jobs[i]
                job.sequence.busy = False
            if scratch is not None:
                self.end(scratch)

    @contextmanager
    def held(self):
        """Keeps the weights until the end of the block, even if the model is closed meanwhile."""
        self.check_open()
        self.n_running += 1
        try:
            yield
        finally:
            self.n_running -= 1
            self.free_if_idle()

    def check_open(self):
        """Raises ClosedError after close."""
        if self.closed:
            raise ClosedError("the model was closed")

    def close(self):
        """Frees the weights once running calls are done."""
        self.closed = True
        self.free_if_idle()

    cdef Scratch begin(self):
        """Registers a running call and gives it buffers."""
        if self.pointer == NULL:
            raise ClosedError("the model was closed")
        cdef Scratch scratch
        if self.free_scratches:
            scratch = self.free_scratches.pop()
        else:
            scratch = Scratch.__new__(Scratch)
            raise_status(gpt2c_scratch_create(self.pointer, &scratch.pointer), "scratch buffers")
        self.n_running += 1
        return scratch

    cdef int end(self, Scratch scratch) except -1:
        self.n_running -= 1
        if not self.closed:
            self.free_scratches.append(scratch)
        self.free_if_idle()
        return 0

    cdef int free_if_idle(self) except -1:
        if self.closed and self.n_running == 0:
            gpt2c_model_free(self.pointer)
            self.pointer = NULL
            self.free_scratches = []
        return 0


cdef class Sequence:
    """Tokens that were fed, as keys and values in pages of the cache."""

    cdef gpt2c_sequence *pointer
    cdef readonly Model model
    cdef bint busy

    def __cinit__(self, Model model not None):
        self.model = model
        if model.pointer == NULL:
            raise ClosedError("the model was closed")
        raise_status(gpt2c_sequence_create(model.pointer, &self.pointer), "a sequence")

    def __dealloc__(self):
        gpt2c_sequence_free(self.pointer)

    @property
    def length(self):
        """How many tokens were fed."""
        return gpt2c_sequence_length(self.pointer)

    cdef int claim(self) except -1:
        if self.busy:
            raise OptionError("this session is in use by another thread; copy() it first")
        self.busy = True
        return 0

    def feed(self, const int32_t[::1] ids not None, int n_logits):
        """Feeds ids; float32 [n_logits, n_vocab] of the last n_logits (0, 1 or all) of them."""
        cdef Py_ssize_t n = ids.shape[0], done = 0, chunk
        if n == 0 or n_logits not in (0, 1, n):
            raise OptionError(f"feed takes at least one token; found {n}")
        try:
            logits = np.empty((n_logits, self.model.n_vocab), dtype=np.float32)
        except MemoryError as error:
            raise CacheMemoryError(f"not enough memory for {n_logits} rows of logits ({error})") from None
        cdef float[:, ::1] view = logits
        cdef gpt2c_feed feed
        cdef gpt2c_status status
        cdef float *out
        feed.sequence = self.pointer
        self.claim()
        cdef int32_t had = gpt2c_sequence_length(self.pointer)
        cdef Scratch scratch = None
        try:
            scratch = self.model.begin()
            while done < n:
                chunk = min(n - done, <Py_ssize_t>GPT2C_MAX_ROWS)
                feed.tokens = &ids[done]
                feed.n_tokens = <int32_t>chunk
                out = NULL
                if n_logits == n:
                    feed.wanted = GPT2C_LOGITS_ALL
                    out = &view[done, 0]
                elif n_logits == 1 and done + chunk == n:
                    feed.wanted = GPT2C_LOGITS_LAST
                    out = &view[0, 0]
                else:
                    feed.wanted = GPT2C_LOGITS_NONE
                with nogil:
                    status = gpt2c_forward(self.model.pointer, scratch.pointer, &feed, 1, out)
                raise_status(status, f"feeding {n} tokens after {had}")
                done += chunk
                PyErr_CheckSignals()
        except BaseException:
            gpt2c_sequence_truncate(self.pointer, had)
            raise
        finally:
            self.busy = False
            if scratch is not None:
                self.model.end(scratch)
        return logits

    def truncate(self, int length):
        """Forgets all but the first length tokens."""
        self.claim()
        try:
            raise_status(
                gpt2c_sequence_truncate(self.pointer, length), f"truncating to {length} tokens"
            )
        finally:
            self.busy = False

    def copy(self):
        """A sequence that shares this one's pages until either writes to them."""
        cdef Sequence other = Sequence(self.model)
        self.claim()
        try:
            gpt2c_sequence_free(other.pointer)
            other.pointer = NULL
            raise_status(gpt2c_sequence_copy(self.pointer, &other.pointer), "a copy")
        finally:
            self.busy = False
        return other


cdef class Job:
    """One text being continued."""

    cdef gpt2c_job job
    cdef readonly Sequence sequence
    cdef const int32_t[::1] prompt
    cdef const int32_t[::1] stop_ids
    cdef int32_t[::1] tokens

    def __cinit__(
        self, Model model not None, const int32_t[::1] ids not None, int32_t max_new_tokens,
        float temperature, int32_t top_k, uint64_t seed, uint32_t sample,
        const int32_t[::1] stop_ids not None, Sequence sequence=None,
    ):
        cdef int32_t room = model.n_positions - <int32_t>ids.shape[0] + 1
        if ids.shape[0] == 0 or room < 1 or max_new_tokens < 1:
            raise OptionError(f"a job needs 1 to {model.n_positions} ids; found {ids.shape[0]}")
        self.sequence = Sequence(model) if sequence is None else sequence
        self.check_model(model)
        if self.sequence.length >= ids.shape[0]:
            raise OptionError(f"a job's sequence has all of its {ids.shape[0]} ids already")
        self.prompt = ids
        self.job.n_fed = <int32_t>self.sequence.length
        self.stop_ids = stop_ids
        # The context ends a job before its tokens outgrow this buffer.
        self.tokens = np.empty(min(max_new_tokens, room), dtype=np.int32)
        self.job.sequence = self.sequence.pointer
        self.job.prompt = &self.prompt[0]
        self.job.n_prompt = <int32_t>ids.shape[0]
        self.job.sampling.temperature = temperature
        self.job.sampling.top_k = top_k
        self.job.sampling.seed = seed
        self.job.sampling.sample = sample
        self.job.n_stop_ids = <int32_t>stop_ids.shape[0]
        if self.job.n_stop_ids:
            self.job.stop_ids = &self.stop_ids[0]
        self.job.max_new_tokens = max_new_tokens
        self.job.tokens = &self.tokens[0]

    cdef int check_model(self, Model model) except -1:
        if self.sequence.model is not model:
            raise OptionError("this job belongs to another model")
        return 0

    def prefill(self, int n):
        """Feeds the prompt's first n ids, less than all, unless that was done."""
        if n > self.job.n_fed:
            if n >= self.job.n_prompt:
                raise OptionError(f"prefill of {n} ids, and the prompt has {self.job.n_prompt}")
            self.sequence.feed(self.prompt[self.job.n_fed:n], 0)
            self.job.n_fed = n

    @property
    def n_tokens(self):
        """How many tokens were generated."""
        return self.job.n_tokens

    @property
    def finish_reason(self):
        """"length", "stop", "context", "nan", or None while it runs."""
        return FINISH_REASONS[<int>self.job.finish]

    def new_ids(self, int begin=0):
        """The tokens generated, from the begin-th on."""
        return [self.tokens[i] for i in range(begin, self.job.n_tokens)]


# ---- kernels, for tests ----


cdef const kernel_table *kernels_of(str isa) except NULL:
    cdef bytes name = isa.encode()
    cdef const kernel_table *kernels = cpu_kernels(name)
    if kernels == NULL:
        raise BackendError(f"instruction set {isa!r} is not compiled in or cannot run here")
    return kernels


def elementwise(str isa not None, str function not None, x):
    """A kernel's exp, log or activation of float32 x (any shape)."""
    cdef const kernel_table *kernels = kernels_of(isa)
    result = np.array(x, dtype=np.float32).ravel()
    cdef float[::1] view = result
    if result.size == 0:
        return result
    if function == "exp":
        kernels.exp(&view[0], <int>view.shape[0])
    elif function == "log":
        kernels.log(&view[0], <int>view.shape[0])
    else:
        kernels.activate(&view[0], <int>view.shape[0], ACTIVATIONS[function])
    return result.reshape(np.shape(x))


def layer_norm(
    str isa not None, const float[::1] x not None, const float[::1] weight not None,
    const float[::1] bias not None, float epsilon,
):
    """A kernel's layer norm of one row."""
    cdef const kernel_table *kernels = kernels_of(isa)
    if not x.shape[0] == weight.shape[0] == bias.shape[0] > 0:
        raise OptionError("layer_norm takes three vectors of one length")
    result = np.empty(x.shape[0], dtype=np.float32)
    cdef float[::1] out = result
    kernels.layer_norm(&x[0], &weight[0], &bias[0], epsilon, <int>x.shape[0], &out[0])
    return result


def matmul(
    str isa not None, const float[:, ::1] x not None, weight, bias, residual, activation,
):
    """activation(x @ weight + bias) + residual by a kernel: [n_rows, k], [k, n], [n], [n_rows, n].

    bias, residual and activation (a name) may be None.
    """
    cdef const kernel_table *kernels = kernels_of(isa)
    cdef int n_rows = <int>x.shape[0], k = <int>x.shape[1], n = weight.shape[1]
    cdef int n_panels = (n + PANEL - 1) // PANEL
    padded = np.zeros((k, n_panels * PANEL), dtype=np.float32)
    padded[:, :n] = weight
    packed = padded.reshape(k, n_panels, PANEL).transpose(1, 0, 2)
    cdef float[:, :, ::1] panels = np.ascontiguousarray(packed)
    padded = np.zeros(n_panels * PANEL, dtype=np.float32)
    padded[:n] = 0 if bias is None else bias
    cdef float[::1] bias_view = padded
    result = np.zeros((n_rows, n), dtype=np.float32)
    if residual is not None:
        result[...] = residual
    cdef float[:, ::1] out = result
    cdef matmul_args args
    args.x, args.x_stride, args.n_rows, args.k = &x[0, 0], k, n_rows, k
    args.panels = &panels[0, 0, 0]
    args.bias = NULL if bias is None else &bias_view[0]
    args.residual = NULL if residual is None else &out[0, 0]
    args.out, args.out_stride, args.residual_stride, args.n = &out[0, 0], n, n, n
    args.activation = GPT2C_IDENTITY if activation is None else ACTIVATIONS[activation]
    kernels.matmul(&args, 0, n_panels)
    return result


def attention(
    str isa not None, const float[:, ::1] q not None, keys, values, float scale,
):
    """A kernel's causal attention of one head: q [n_rows, head_dim] are the last n_rows positions

    of keys and values [n_positions, head_dim], all n_rows in one page of the cache.
    """
    cdef const kernel_table *kernels = kernels_of(isa)
    cdef int n_rows = <int>q.shape[0], head_dim = <int>q.shape[1], n_positions = keys.shape[0]
    cdef int n_pages = (n_positions + PAGE_POSITIONS - 1) // PAGE_POSITIONS, i
    if (n_positions - n_rows) // PAGE_POSITIONS != (n_positions - 1) // PAGE_POSITIONS:
        raise OptionError("attention takes rows of one page")
    # What lies beyond the last position is never read, or a NaN would show.
    padded = np.full((2, n_pages * PAGE_POSITIONS, head_dim), np.nan, dtype=np.float32)
    padded[0, :n_positions], padded[1, :n_positions] = keys, values
    stored = np.empty((n_pages, 2, head_dim * PAGE_POSITIONS), dtype=np.float32)
    for i in range(n_pages):
        page = padded[:, i * PAGE_POSITIONS:(i + 1) * PAGE_POSITIONS]
        stored[i, 0], stored[i, 1] = page[0].T.ravel(), page[1].ravel()
    cdef float[:, :, ::1] pages = stored
    cdef const float *pointers[64]
    if n_pages > 64:
        raise OptionError("attention takes up to 64 pages")
    for i in range(n_pages):
        pointers[i] = &pages[i, 0, 0]
    cdef float[:, ::1] scores = np.empty((ATTENTION_ROWS, n_positions), dtype=np.float32)
    result = np.empty((n_rows, head_dim), dtype=np.float32)
    cdef float[:, ::1] out = result
    cdef attention_args args
    args.q, args.q_stride, args.n_rows = &q[0, 0], head_dim, n_rows
    args.pages, args.keys, args.values = pointers, 0, head_dim * PAGE_POSITIONS
    args.n_positions, args.head_dim, args.scale = n_positions - n_rows + 1, head_dim, scale
    args.scores, args.scores_stride = &scores[0, 0], n_positions
    args.out, args.out_stride = &out[0, 0], head_dim
    kernels.attention(&args)
    return result


def arg_max(str isa not None, const float[::1] logits not None):
    """The lowest id of the greatest logit, or -1 where any is a NaN."""
    cdef const kernel_table *kernels = kernels_of(isa)
    if logits.shape[0] == 0:
        raise OptionError("arg_max takes at least one logit")
    return kernels.arg_max(&logits[0], <int>logits.shape[0])


def embed(str isa not None, const float[::1] row not None, const float[::1] added not None):
    """row + added by a kernel that finds row as a column of a packed matrix."""
    cdef const kernel_table *kernels = kernels_of(isa)
    cdef int k = <int>row.shape[0]
    if not k == added.shape[0] > 0:
        raise OptionError("embed takes two vectors of one length")
    cdef float[:, ::1] packed = np.zeros((k, PANEL), dtype=np.float32)
    result = np.empty(k, dtype=np.float32)
    cdef float[::1] out = result
    cdef int i
    for i in range(k):
        packed[i, PANEL - 1] = row[i]
    kernels.embed(&packed[0, PANEL - 1], &added[0], k, &out[0])
    return result


def perturbed(
    str isa not None, const float[::1] logits not None, float temperature, uint64_t seed,
    uint32_t sample, uint32_t position,
):
    """logit / temperature + Gumbel noise for every id."""
    cdef const kernel_table *kernels = kernels_of(isa)
    cdef noise_key key
    key.seed = seed
    key.sample = sample
    key.position = position
    result = np.empty(logits.shape[0], dtype=np.float32)
    cdef float[::1] out = result
    cdef Py_ssize_t i
    for i in range(logits.shape[0]):
        out[i] = kernels.perturb(logits[i], temperature, <int32_t>i, &key)
    return result
