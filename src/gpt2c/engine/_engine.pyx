# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, freethreading_compatible=True
"""The compiled engine: Python's interface to the C core. It checks arguments and releases the GIL.

Policy (options, batching, text) is Python's; arithmetic is C's. gpt2c.engine.protocol describes
Model, Sequence and Job, and ``_engine.pyi`` has the types.

Threads share models, sequences and waiters. With the GIL, code that neither calls Python code nor
releases the GIL is atomic. On free-threaded Python it is atomic only in a critical section, which
locks one object, and which costs nothing with the GIL. docs/threads.md lists what each protects.
"""

from libc.limits cimport INT_MAX
from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from gpt2c.engine._capi cimport *

import os
import weakref
from threading import get_ident, main_thread

import numpy as np

from gpt2c.errors import (
    BackendError,
    CacheMemoryError,
    ClosedError,
    ContextError,
    ForkError,
    OptionError,
)
from gpt2c.engine.memory import cache_full
from gpt2c.engine.protocol import BLOCK_POINTS, MODEL_POINTS, NO_IDS, NO_MEASURES, SCORE_TYPE, TOP_TYPE


cdef extern from "Python.h":
    int PyErr_CheckSignals() except -1


cimport cython

include "_traceback.pxi"

cdef dict ACTIVATIONS = {
    "gelu_tanh": GPT2C_GELU_TANH,
    "gelu_erf": GPT2C_GELU_ERF,
    "quick_gelu": GPT2C_QUICK_GELU,
    "relu": GPT2C_RELU,
    "silu": GPT2C_SILU,
    "tanh": GPT2C_TANH,
}

# The numbers of tensors by name; for tensors of a layer, the names have no prefix "h.N.".
cdef dict TENSORS = {
    gpt2c_tensor_name(<gpt2c_tensor>i).decode(): i for i in range(GPT2C_N_TENSORS)
}

cdef dict FINISH_REASONS = {
    <int>GPT2C_RUNNING: None,
    <int>GPT2C_FINISHED_LENGTH: "length",
    <int>GPT2C_FINISHED_STOP: "stop",
    <int>GPT2C_FINISHED_CONTEXT: "context",
    <int>GPT2C_FINISHED_NOT_A_NUMBER: "nan",
    <int>GPT2C_FINISHED_NOTHING_LEFT: "nothing",
}

cdef dict DTYPES = {"float32": GPT2C_FLOAT32, "int8": GPT2C_INT8, "int4": GPT2C_INT4}

# The dtypes in which a float32 model stores matrices.
cdef dict STORED_DTYPES = {
    "float32": GPT2C_FLOAT32, "float16": GPT2C_FLOAT16, "bfloat16": GPT2C_BFLOAT16,
}

# Scales that are tried for each int4 group. More than 16 lower the error by less than a thousandth.
cdef int N_SCALES = 16

# The weights are packed for drafts once a job has this many new tokens. For GPT-2 124M packing
# takes as long as about six tokens.
cdef int PACK_AFTER_TOKENS = 8

# The max number of drafters that a model keeps, one for each kind of drafts; the oldest is dropped.
cdef int MAX_DRAFTERS = 8

cdef int32_t INT32_MAX = 2147483647

# The sampler's stages in C, by the names of their options.
cdef dict STAGES = {
    gpt2c_stage_name(<gpt2c_stage_kind>kind).decode(): kind for kind in range(GPT2C_N_STAGES)
}


def instruction_sets():
    """Return the compiled instruction sets, slowest first: (name, whether this CPU can run it)."""
    sets = []
    cdef int i = 0
    cdef const char *name = gpt2c_isa_name(0)
    while name != NULL:
        sets.append((name.decode(), bool(gpt2c_isa_supported(name))))
        i += 1
        name = gpt2c_isa_name(i)
    return sets


def reported_cpus():
    """Return (CPUs, physical cores, performance cores, quota in CPUs) that this process may use.

    A number is 0 if the system does not say (os.h); that of performance cores also if all cores are
    alike.
    """
    cdef int n = os_n_cpus()
    return 0 if n == INT_MAX else n, os_physical_cores(), os_performance_cores(), os_cpu_quota()


cdef tuple tensor_of(str name):
    """Return a tensor's number in C and its layer, which is 0 for tensors outside the layers."""
    if not name.startswith("h."):
        return TENSORS[name], 0
    _, index, rest = name.split(".", 2)
    return TENSORS[rest], int(index)


cdef class Model


cdef int raise_status(gpt2c_status status, str what, Model model=None) except -1:
    """Raise the exception for a status other than GPT2C_OK. Its message contains `what`.

    If the KV cache is full, the message names the limit of `model`.
    """
    if status == GPT2C_OK:
        return 0
    if status == GPT2C_CACHE_FULL:
        limit = 0 if model is None else model.cache_limit
        raise CacheMemoryError(cache_full(what, limit))
    if status == GPT2C_NO_MEMORY:
        raise CacheMemoryError(f"not enough memory for {what}")
    if status == GPT2C_CONTEXT_FULL:
        raise ContextError(f"{what}: the context has too few positions")
    if status == GPT2C_UNSUPPORTED_CPU:
        raise BackendError(f"{what}: this CPU cannot run the chosen instruction set")
    raise OptionError(f"{what}: the engine rejected the arguments")


cdef object empty(shape, dtype, str what):
    """Return np.empty(shape, dtype). Raise CacheMemoryError, naming `what`, if memory runs out."""
    try:
        return np.empty(shape, dtype=dtype)
    except MemoryError as error:
        raise CacheMemoryError(f"not enough memory for {what} ({error})") from None


include "_holding.pxi"
include "_sharing.pxi"


cdef class Scratch:
    """The buffers of one call outside the running batch. Later calls reuse them."""

    cdef gpt2c_scratch *pointer
    cdef list sequences  # that the call has claimed

    def __dealloc__(self):
        gpt2c_scratch_free(self.pointer)


cdef class Model:
    """See EngineModel."""

    cdef object __weakref__
    cdef gpt2c_model *pointer
    cdef gpt2c_model *draft  # the weights packed in 4 bits for drafts; NULL until drafts need them
    cdef Mapping mapping  # what holds the weights that `attach` attached; or None
    cdef bint has_no_room_for_packing  # packing the weights ran out of memory
    cdef readonly str isa, dtype
    cdef readonly int n_vocab, n_positions, n_embd, n_layer, n_threads
    cdef public object reclaim  # see EngineModel.reclaim
    cdef bint closed
    cdef gpt2c_batch *batch  # the running batch; NULL until a call needs it
    cdef Py_ssize_t n_batch_forks  # len(forking_threads) when the batch was last used
    cdef list drafters  # of Drafter
    cdef Py_ssize_t packing_fork  # len(forking_threads) while a thread packs weights; else -1
    cdef list free_scratches
    cdef dict holders  # thread -> the number of its running calls and `held` blocks
    cdef Py_ssize_t n_forks  # len(forking_threads) when holders was last updated

    def __cinit__(self, config, str isa not None, int32_t n_threads, str dtype not None="float32"):
        cdef gpt2c_config c
        c.layer_dtype = DTYPES[dtype]
        # int4 embeddings alone would cost as much perplexity as int4 matrices in all layers.
        c.embedding_dtype = GPT2C_FLOAT32 if dtype == "float32" else GPT2C_INT8
        c.bfloat16_cache = dtype != "float32"
        c.n_scales = N_SCALES
        c.n_vocab = config.vocab_size
        c.n_positions = config.n_positions
        c.n_embd = config.n_embd
        c.n_layer = config.n_layer
        c.n_head = config.n_head
        c.n_inner = config.inner
        c.activation = ACTIVATIONS[config.activation]
        c.tied_lm_head = config.tie_word_embeddings
        c.scale_attn = config.scale_attn_weights
        c.scale_by_inverse_layer = config.scale_attn_by_inverse_layer_idx
        c.layer_norm_epsilon = config.layer_norm_epsilon
        cdef bytes name = isa.encode()
        raise_status(gpt2c_model_create(&c, name, n_threads, &self.pointer), "the model's weights")
        self.isa, self.dtype = isa, dtype
        self.n_threads = n_threads
        self.n_vocab = c.n_vocab
        self.n_positions = c.n_positions
        self.n_embd = c.n_embd
        self.n_layer = c.n_layer
        self.free_scratches, self.drafters = [], []
        self.packing_fork = -1
        self.holders = {}
        self.n_forks = len(forking_threads)

    def __dealloc__(self):
        gpt2c_batch_free(self.batch)
        gpt2c_model_free(self.draft)
        gpt2c_model_free(self.pointer)

    def store_as(self, dtypes):
        """See EngineModel.store_as."""
        cdef gpt2c_status status
        self.check_open()
        cdef uint8_t[:, ::1] view = self.numbers_of(dtypes)
        with nogil:
            status = gpt2c_model_set_dtypes(self.pointer, &view[0, 0])
        raise_status(status, "the model's weights")

    cdef uint8_t[:, ::1] numbers_of(self, dict dtypes):
        """Return the matrices' dtypes as gpt2c_model_set_dtypes takes them."""
        cdef int32_t layer
        cdef gpt2c_tensor tensor
        chosen = np.zeros((self.n_layer + 1, GPT2C_N_TENSORS), dtype=np.uint8)  # float32
        for name, dtype in dtypes.items():
            tensor, layer = tensor_of(name)
            row = layer if name.startswith("h.") else self.n_layer
            chosen[row, <int>tensor] = STORED_DTYPES[dtype]
        return chosen

    def packed_sizes(self):
        """See SharedEngineModel.packed_sizes."""
        cdef size_t n_bytes, n_draft_bytes = 0
        with self.held():
            if self.dtype != "int4" and self.draft == NULL:
                self.pack_for_drafts(is_needed=True)
            n_bytes = gpt2c_model_packed_bytes(self.pointer)
            if self.draft != NULL:
                n_draft_bytes = gpt2c_model_packed_bytes(self.draft)
        if n_bytes == 0 or (self.draft != NULL and n_draft_bytes == 0):
            raise CacheMemoryError("not enough memory for the model's weights")
        return n_bytes, n_draft_bytes

    def move_to(self, file, size_t n_file_bytes, size_t begin, size_t draft_begin):
        """See SharedEngineModel.move_to."""
        cdef gpt2c_status status = GPT2C_OK
        cdef unsigned char *draft_memory = NULL
        n_bytes, n_draft_bytes = self.packed_sizes()
        cdef Mapping mapping = Mapping(file, n_file_bytes, True)
        cdef unsigned char *memory = mapping.part(begin, n_bytes)
        if n_draft_bytes:
            draft_memory = mapping.part(draft_begin, n_draft_bytes)
        with self.held(), nogil:
            if draft_memory != NULL:
                status = gpt2c_model_move(self.draft, draft_memory)
            if status == GPT2C_OK:
                status = gpt2c_model_move(self.pointer, memory)
        self.close()
        raise_status(status, "the model's weights")

    def attach(self, file, size_t n_file_bytes, dtypes, tuple part, tuple draft_part):
        """See SharedEngineModel.attach."""
        cdef gpt2c_status status
        cdef size_t n_bytes = part[1], n_draft_bytes = draft_part[1]
        cdef uint8_t[:, ::1] view = self.numbers_of(dtypes)
        self.check_open()
        cdef Mapping mapping = Mapping(file, n_file_bytes, False)
        cdef unsigned char *memory = mapping.part(part[0], n_bytes)
        self.mapping = mapping
        status = gpt2c_model_attach(
            self.pointer, &view[0, 0] if self.dtype == "float32" else NULL, memory, n_bytes
        )
        raise_status(status, "the shared weights")
        if n_draft_bytes:
            memory = mapping.part(draft_part[0], n_draft_bytes)
            status = gpt2c_draft_model_attach(self.pointer, memory, n_draft_bytes, &self.draft)
            raise_status(status, "the shared weights packed for drafts")

    def change_stored_dtype(self, str name not None, str dtype not None):
        """See EngineModel.change_stored_dtype."""
        cdef int32_t layer
        cdef gpt2c_tensor tensor
        cdef gpt2c_status status
        cdef gpt2c_dtype number = STORED_DTYPES[dtype]
        tensor, layer = tensor_of(name)
        self.check_open()
        with nogil:
            status = gpt2c_model_change_dtype(self.pointer, tensor, layer, number)
        raise_status(status, name)

    def stored_dtype(self, str name not None):
        """See EngineModel.stored_dtype."""
        cdef int32_t layer
        cdef gpt2c_tensor tensor
        cdef int number
        tensor, layer = tensor_of(name)
        with cython.critical_section(self):
            self.check_open()
            number = gpt2c_model_dtype(self.pointer, tensor, layer)
        return next(name for name, n in {**DTYPES, **STORED_DTYPES}.items() if n == number)

    def load(self, str name not None, const float[:, ::1] rows not None, size_t begin):
        """See EngineModel.load."""
        cdef int32_t layer
        cdef gpt2c_tensor tensor
        cdef gpt2c_status status
        tensor, layer = tensor_of(name)
        self.check_open()
        if rows.shape[0] == 0 or rows.shape[1] == 0:
            raise OptionError(f"{name}: no rows to load")
        with nogil:
            status = gpt2c_model_write(
                self.pointer, tensor, layer, &rows[0, 0], begin, rows.shape[0], rows.shape[1]
            )
        if status == GPT2C_DOES_NOT_FIT:
            return False
        raise_status(status, name)
        return True

    def read(self, str name not None, float[:, ::1] rows not None, size_t begin):
        """See EngineModel.read."""
        cdef int32_t layer
        cdef gpt2c_tensor tensor
        cdef gpt2c_status status
        tensor, layer = tensor_of(name)
        if rows.shape[0] == 0 or rows.shape[1] == 0:
            raise OptionError(f"{name}: no rows to read")
        with self.held(), nogil:
            status = gpt2c_model_read(
                self.pointer, tensor, layer, &rows[0, 0], begin, rows.shape[0], rows.shape[1]
            )
        raise_status(status, name)

    def packed(self, str name not None):
        """See EngineModel.packed."""
        cdef int32_t layer
        cdef gpt2c_tensor tensor
        cdef size_t n_bytes = 0
        tensor, layer = tensor_of(name)
        self.check_open()
        cdef unsigned char *address = gpt2c_model_packed(self.pointer, tensor, layer, &n_bytes)
        if address == NULL:
            raise OptionError(f"{name}: the engine does not pack this tensor")
        panels = np.asarray(<uint8_t[:n_bytes]>address)
        panels.flags.writeable = self.mapping is None
        return panels

    @property
    def n_bytes(self):
        """See EngineModel.n_bytes."""
        with cython.critical_section(self):
            if self.pointer == NULL:
                return 0
            n = gpt2c_model_bytes(self.pointer)
            return n if self.draft == NULL else n + gpt2c_model_bytes(self.draft)

    @property
    def draft_bytes(self):
        """See EngineModel.draft_bytes."""
        with cython.critical_section(self):
            return 0 if self.draft == NULL else gpt2c_model_bytes(self.draft)

    @property
    def page_bytes(self):
        """See EngineModel.page_bytes."""
        with cython.critical_section(self):
            return 0 if self.pointer == NULL else gpt2c_model_page_bytes(self.pointer)

    @property
    def cache_bytes(self):
        """See EngineModel.cache_bytes."""
        with cython.critical_section(self):
            if self.pointer == NULL:
                return 0
            self.current_holders()
            return gpt2c_model_cache_bytes(self.pointer)

    @property
    def cache_limit(self):
        """See EngineModel.cache_limit."""
        with cython.critical_section(self):
            return 0 if self.pointer == NULL else gpt2c_model_cache_limit(self.pointer)

    @cache_limit.setter
    def cache_limit(self, size_t n_bytes):
        with cython.critical_section(self):
            if self.pointer != NULL:
                gpt2c_model_set_cache_limit(self.pointer, n_bytes)

    cdef bint try_to_reclaim(self, gpt2c_status status) except -1:
        """After a call that lacked memory: call `reclaim`. Return whether it freed some."""
        if status != GPT2C_CACHE_FULL and status != GPT2C_NO_MEMORY:
            return False
        return self.reclaim is not None and self.reclaim()

    cdef bint needs_packing(self, drafts) except -1:
        """Whether to call pack_for_drafts. If memory ran out, prompt lookup goes on without it."""
        gave_up = self.has_no_room_for_packing and drafts.lookup
        return self.draft == NULL and drafts.packing and not gave_up

    cdef int pack_for_drafts(self, bint is_needed) except -1:
        """Pack the weights in 4 bits. Must run inside a call, which holds the weights.

        If memory runs out, set has_no_room_for_packing and, if is_needed, raise CacheMemoryError.
        """
        cdef gpt2c_model *draft = NULL
        cdef gpt2c_status status
        with nogil:
            status = gpt2c_draft_model_create(self.pointer, &draft)
        if status != GPT2C_OK:
            self.has_no_room_for_packing = True
            if is_needed:
                raise_status(status, "the weights packed for drafts")
            return 0
        with cython.critical_section(self):
            if self.draft == NULL:
                self.draft = draft
                draft = NULL
        gpt2c_model_free(draft)  # not NULL if another thread has packed the weights meanwhile
        return 0

    cdef bint begin_packing(self) except -1:
        """Return whether this thread may pack the weights: no other thread does."""
        with cython.critical_section(self):
            if self.packing_fork == len(forking_threads):
                return False
            self.packing_fork = len(forking_threads)
            return True

    def stream_rate(self):
        """See EngineModel.stream_rate."""
        cdef double rate
        with self.held(), nogil:
            rate = gpt2c_measure_stream(self.pointer)
        return rate

    def multiply_add_rate(self):
        """See EngineModel.multiply_add_rate."""
        cdef double rate
        with self.held(), nogil:
            rate = gpt2c_measure_multiply_add(self.pointer)
        return rate

    def sequence(self):
        """See EngineModel.sequence."""
        self.check_held_or_open()
        return Sequence(self)

    def job(
        self, ids, max_new_tokens, plan, seed, sample, stop_ids, n_top=None, sequence=None,
        drafts=None,
    ):
        """See EngineModel.job."""
        return Job(self, ids, max_new_tokens, plan, seed, sample, stop_ids, n_top, sequence, drafts)

    def score(
        self, list sequences not None, list ids not None, list targets not None, int n_top,
    ):
        """See EngineModel.score."""
        scores, top, _ = self.measure(sequences, ids, targets, n_top, NO_MEASURES, [])
        return scores, top

    def measure(
        self, list sequences not None, list ids not None, list targets not None, int n_top,
        measures not None, list others not None,
    ):
        """See EngineModel.measure."""
        if not len(sequences) == len(ids) == len(targets) > 0:
            raise OptionError(
                "score takes an array of ids and an array of targets for each sequence, and at "
                f"least one sequence; found {len(ids)} and {len(targets)} arrays, and "
                f"{len(sequences)} sequences"
            )
        return Scoring(self, sequences, ids, targets, n_top, measures, others).run()

    def top_log_probs(self, list sequences not None, list ids not None, int n_top):
        """See EngineModel.top_log_probs."""
        if not len(sequences) == len(ids) > 0:
            raise OptionError(
                "top_log_probs takes an array of ids for each sequence, and at least one sequence; "
                f"found {len(ids)} arrays and {len(sequences)} sequences"
            )
        # The most likely ids do not depend on the target, so the target may be any id. Its
        # log-probability is NaN if any logit is NaN.
        targets = [np.zeros(1, dtype=np.int32)] * len(ids)
        scores, top, _ = Scoring(self, sequences, ids, targets, n_top, NO_MEASURES, []).run()
        top["log_prob"][np.isnan(scores["log_prob"])] = np.nan
        return top

    def log_probs(self, list sequences not None, list ids not None):
        """See EngineModel.log_probs."""
        cdef gpt2c_feed feeds[GPT2C_MAX_ROWS]
        cdef gpt2c_status status = GPT2C_OK
        cdef Sequence sequence
        cdef gpt2c_batch *batch
        cdef Py_ssize_t n = len(sequences), done = 0
        cdef int32_t i, n_rows
        if not n == len(ids) > 0 or not all(map(len, ids)):
            raise OptionError(
                "log_probs takes an array of ids for each sequence, none empty, and at least one "
                f"sequence; found {len(ids)} arrays and {n} sequences"
            )
        rows = empty((n, self.n_vocab), np.float32, f"{n} rows of logits")
        cdef float[:, ::1] view = rows
        # First feed all but the last id of each sequence, without logits.
        longer = [
            (each, part[:len(part) - 1]) for each, part in zip(sequences, ids) if len(part) > 1
        ]
        if longer:
            firsts = [part for _, part in longer]
            first_sequences = [each for each, _ in longer]
            no_targets = [NO_IDS] * len(longer)
            Scoring(self, first_sequences, firsts, no_targets, 0, NO_MEASURES, []).run()
        cdef const int32_t[::1] last = np.array(
            [part[len(part) - 1] for part in ids], dtype=np.int32
        )
        cdef Turn turn = Turn(self)
        cdef Claims claims = Claims(self, sequences)
        try:
            while done < n:
                batch = turn.begin()
                try:
                    n_rows = min(<int32_t>(n - done), gpt2c_turn_rows(batch))
                    for i in range(n_rows):
                        sequence = sequences[done + i]
                        feeds[i] = gpt2c_feed(
                            sequence.pointer, &last[done + i], 1, GPT2C_LOGITS_LAST
                        )
                    with nogil:
                        status = gpt2c_forward(
                            self.pointer, gpt2c_turn_scratch(batch), feeds, n_rows, &view[done, 0]
                        )
                        if status == GPT2C_OK:
                            gpt2c_log_probs(self.pointer, &view[done, 0], n_rows)
                        gpt2c_turn_end(batch, &turn.turn)
                finally:
                    turn.end()
                if self.try_to_reclaim(status):
                    continue
                raise_status(status, "feeding tokens", self)
                done += n_rows
                PyErr_CheckSignals()
        finally:
            claims.end()
        return rows

    def hidden_states(self, list sequences not None, list ids not None, int n_blocks):
        """See EngineModel.hidden_states."""
        return FeedingHidden(self, sequences, ids, n_blocks).run()

    def apply_stages(
        self, plan, logits, const int32_t[::1] ids not None, const int32_t[::1] new_ids not None,
        uint64_t seed=0, uint32_t sample=0,
    ):
        """See EngineModel.apply_stages."""
        cdef gpt2c_job job
        cdef gpt2c_status status
        cdef Stages stages = Stages(plan.stages, self.n_vocab)
        result = np.array(logits, dtype=np.float32)
        if result.shape != (self.n_vocab,):
            raise OptionError(
                f"apply_stages takes {self.n_vocab} logits; found the shape {result.shape}"
            )
        if ids.shape[0] == 0 or ids.shape[0] + new_ids.shape[0] > self.n_positions:
            raise OptionError(
                f"apply_stages takes 1 to {self.n_positions} ids, new ones included; found "
                f"{ids.shape[0]} ids and {new_ids.shape[0]} new ones"
            )
        check_ids(ids, self.n_vocab)
        check_ids(new_ids, self.n_vocab)
        memset(&job, 0, sizeof(job))
        job.prompt, job.n_prompt = &ids[0], <int32_t>ids.shape[0]
        job.n_tokens = <int32_t>new_ids.shape[0]
        if job.n_tokens:
            job.tokens = <int32_t *>&new_ids[0]
        job.sampling.seed, job.sampling.sample = seed, sample
        stages.attach_to(&job)
        cdef float[::1] view = result
        cdef Scratch scratch = self.begin([])
        try:
            with nogil:
                status = gpt2c_apply_stages(self.pointer, scratch.pointer, &job, &view[0])
        finally:
            self.end(scratch)
        raise_status(status, "sampling")
        return result

    def forward(self, const int32_t[::1] ids not None, locations, logit_rows, on_activation):
        """See EngineModel.forward."""
        return Probing(self, ids, locations, logit_rows, on_activation).run()

    def run(self, list jobs not None, int max_steps):
        """See EngineModel.run."""
        if not jobs or None in jobs or len(set(map(id, jobs))) < len(jobs):
            raise OptionError(f"run takes one or more different jobs; found {jobs}")
        Running(self, len(jobs), jobs).run(max_steps)

    cdef gpt2c_batch *own_batch(self) except NULL:
        """Return the running batch; in a forked child, without the parent's jobs."""
        with cython.critical_section(self):
            return self.prepared_batch()

    cdef gpt2c_batch *prepared_batch(self) except NULL:
        """Do what own_batch does. The caller is in a critical section."""
        if self.pointer == NULL:
            raise ClosedError("the model was closed")
        if self.batch == NULL:
            raise_status(gpt2c_batch_create(self.pointer, &self.batch), "the running batch")
            self.n_batch_forks = len(forking_threads)
        if self.n_batch_forks != len(forking_threads):
            raise_status(gpt2c_batch_forget(self.batch), "the running batch")
            self.n_batch_forks = len(forking_threads)
            lost_drafters.extend(self.drafters)
            self.drafters = []
        return self.batch

    cdef bint has_own_batch(self) noexcept:
        """Whether this process has made a running batch. The caller is in a critical section."""
        return self.batch != NULL and self.n_batch_forks == len(forking_threads)

    cdef int wake(self, gpt2c_caller *caller) except -1:
        """Wake a caller of the running batch."""
        with cython.critical_section(self):
            gpt2c_batch_wake(self.prepared_batch(), caller)
        return 0

    cdef int take_out(self, gpt2c_job *job) except -1:
        """Take a resting job out of the running batch, for the last time."""
        with cython.critical_section(self):
            if self.has_own_batch():
                gpt2c_batch_leave(self.batch, &job, 1)  # does not wait, because the job rests
        return 0

    cdef int cancel(self, gpt2c_job *job) except -1:
        """Cancel a job in the running batch."""
        with cython.critical_section(self):
            if self.has_own_batch():
                gpt2c_batch_cancel(self.batch, job)
        return 0

    def shared_waiter(self):
        """See EngineModel.shared_waiter."""
        return SharedWaiter(self)

    cdef int32_t set_drafter(self, Job job, bint may_pack=True) except -1:
        """Set the drafter of a job that rests.

        Return the number of new tokens at which to call this again, to pack the weights for drafts;
        0 if they need not be packed.
        """
        drafts = job.drafts
        cdef int32_t pack_at = 0
        if self.needs_packing(drafts):
            pack_at = job.job.n_tokens + PACK_AFTER_TOKENS
            if not (drafts.n_tokens or job.job.n_tokens >= PACK_AFTER_TOKENS):
                pack_at = PACK_AFTER_TOKENS
            elif may_pack and self.begin_packing():
                try:
                    self.pack_for_drafts(is_needed=not drafts.lookup)
                finally:
                    self.packing_fork = -1
                pack_at = 0
        kind = bool(drafts.lookup), bool(drafts.packing and self.draft != NULL), drafts.n_tokens
        if job.drafter is None or not job.drafter.makes(kind, drafts.model):
            job.drafter = self.drafter_for(kind, drafts.model)
        job.job.drafter = job.drafter.pointer
        return pack_at

    cdef Drafter drafter_for(self, tuple kind, Model draft_model):
        """Return the drafter of a kind. It keeps its measurements from earlier calls."""
        cdef Drafter drafter
        with cython.critical_section(self):
            for drafter in self.drafters:
                if drafter.makes(kind, draft_model):
                    return drafter
            drafter = new_drafter(self, kind, draft_model)
            self.drafters = [*self.drafters[1 - MAX_DRAFTERS:], drafter]
            return drafter

    def held(self):
        """See EngineModel.held."""
        return Held(self)

    cdef dict current_holders(self):
        """Return `holders` without threads that a fork left in the parent process.

        After a fork, the child also stops counting the parent's pages. The caller is in a critical
        section.
        """
        if self.n_forks < len(forking_threads) and self.pointer != NULL:
            gpt2c_model_forget_pages(self.pointer)
        while self.n_forks < len(forking_threads):
            thread = forking_threads[self.n_forks]
            n = self.holders.get(thread)
            self.holders = {} if n is None else {thread: n}
            self.n_forks += 1
        return self.holders

    cdef int hold(self, thread) except -1:
        """Keep the weights in memory until `let_go`. The caller is in a critical section."""
        holders = self.current_holders()
        holders[thread] = holders.get(thread, 0) + 1
        return 0

    cdef int hold_open(self, thread) except -1:
        """Hold the weights for a call. Raises ClosedError if they were freed."""
        with cython.critical_section(self):
            if self.pointer == NULL:
                raise ClosedError("the model was closed")
            return self.hold(thread)

    cdef int let_go(self, thread) except -1:
        """End a hold. Ending the last hold of a closed model frees the weights."""
        with cython.critical_section(self):
            holders = self.current_holders()
            n = holders.get(thread, 0)
            if n > 1:
                holders[thread] = n - 1
            else:
                holders.pop(thread, None)
            return self.free_if_idle()

    cdef int check_held_or_open(self) except -1:
        """Raise ClosedError after `close`, unless this thread holds the weights.

        The caller is in a critical section.
        """
        if get_ident() not in self.current_holders():
            self.check_open()
        return 0

    def check_open(self):
        """See EngineModel.check_open."""
        if self.closed:
            raise ClosedError("the model was closed")

    def close(self):
        """See EngineModel.close."""
        with cython.critical_section(self):
            self.closed = True
            self.free_if_idle()

    cdef Scratch begin(self, list sequences):
        """Begin a call: hold the weights, claim the sequences, return buffers. `end` undoes it."""
        cdef Scratch scratch
        cdef Sequence sequence
        with cython.critical_section(self):
            if self.pointer == NULL:
                raise ClosedError("the model was closed")
            if self.free_scratches:
                scratch = self.free_scratches.pop()
            else:
                scratch = Scratch.__new__(Scratch)
                raise_status(
                    gpt2c_scratch_create(self.pointer, GPT2C_MAX_ROWS, &scratch.pointer),
                    "scratch buffers",
                )
            scratch.sequences = []
            self.hold(get_ident())
        try:
            for sequence in sequences:
                if sequence is None:
                    raise OptionError("the sequence belongs to another model")
                sequence.claim_for(self)
                scratch.sequences.append(sequence)
        except BaseException:
            self.end(scratch)
            raise
        return scratch

    cdef int end(self, Scratch scratch) except -1:
        """End the call that `begin` began."""
        cdef Sequence sequence
        for sequence in scratch.sequences:
            sequence.release()
        scratch.sequences = None
        with cython.critical_section(self):
            if not self.closed:
                self.free_scratches.append(scratch)
        return self.let_go(get_ident())

    cdef int free_if_idle(self) except -1:
        """Free the weights of a closed model that nobody holds. The caller is in a critical section.
        """
        if self.closed and not self.current_holders():
            self.free_scratches, self.drafters = [], []
            gpt2c_batch_free(self.batch)
            gpt2c_model_free(self.draft)
            gpt2c_model_free(self.pointer)
            self.pointer = self.draft = NULL
            self.batch = NULL
            self.mapping = None
        return 0


cdef Model held_draft_model(Model model, thread):
    """Hold the weights of a draft model for a call, and return the model."""
    with cython.critical_section(model):
        model.check_open()
        model.hold(thread)
    return model


cdef int check_ids(const int32_t[::1] ids, int n_vocab) except -1:
    """Raise OptionError unless all ids are in the vocabulary: C uses them as indices unchecked."""
    cdef Py_ssize_t i
    for i in range(ids.shape[0]):
        if not 0 <= ids[i] < n_vocab:
            raise OptionError(f"id {ids[i]} is not in the vocabulary of {n_vocab} tokens")
    return 0


cdef class Sequence:
    """See EngineSequence. The keys and values are in pages of the KV cache."""

    cdef gpt2c_sequence *pointer
    cdef readonly Model model
    cdef object user  # the thread whose call claimed this sequence, or None
    cdef Py_ssize_t n_forks  # len(forking_threads) when it was claimed

    def __cinit__(self, Model model not None, Sequence source=None):
        self.model = model
        with cython.critical_section(model):
            if model.pointer == NULL:
                raise ClosedError("the model was closed")
            if source is None:
                raise_status(gpt2c_sequence_create(model.pointer, &self.pointer), "a sequence")
            else:
                raise_status(gpt2c_sequence_copy(source.pointer, &self.pointer), "a copy")

    def __dealloc__(self):
        gpt2c_sequence_free(self.pointer)

    @property
    def length(self):
        """See EngineSequence.length."""
        return gpt2c_sequence_length(self.pointer)

    cdef int claim(self) except -1:
        """Reserve the sequence for a call of this thread, until `release`."""
        with cython.critical_section(self):
            if self.user is not None:
                if is_of_this_process(self.user, self.n_forks):
                    raise OptionError("this session is in use by another thread; copy() it first")
                gpt2c_sequence_forget_call(self.pointer)
            self.user, self.n_forks = get_ident(), len(forking_threads)
        return 0

    cdef int claim_for(self, Model model) except -1:
        """Claim the sequence, which must be one of `model`."""
        if self.model is not model:
            raise OptionError("the sequence belongs to another model")
        return self.claim()

    cdef int release(self) noexcept:
        with cython.critical_section(self):
            self.user = None
        return 0

    def feed(self, const int32_t[::1] ids not None, int n_logits):
        """See EngineSequence.feed."""
        cdef Py_ssize_t n = ids.shape[0]
        if n == 0 or n_logits not in (0, 1, n):
            raise OptionError(
                "feed takes at least one token, and 0, 1 or all as n_logits; found "
                f"{n} and {n_logits}"
            )
        logits = empty((n_logits, self.model.n_vocab), np.float32, f"{n_logits} rows of logits")
        Feeding(self.model, 1, self, ids, logits).run()
        return logits

    def truncate(self, int length):
        """See EngineSequence.truncate."""
        self.claim()
        try:
            raise_status(
                gpt2c_sequence_truncate(self.pointer, length), f"truncating to {length} tokens"
            )
        finally:
            self.release()

    def copy(self):
        """See EngineSequence.copy."""
        self.claim()
        try:
            return Sequence(self.model, self)
        finally:
            self.release()


include "_constants.pxi"
include "_stages.pxi"
include "_drafter.pxi"
include "_job.pxi"
include "_batch.pxi"
include "_shared_waiter.pxi"
include "_scoring.pxi"
include "_hidden.pxi"
include "_probing.pxi"
include "_kernels.pxi"
