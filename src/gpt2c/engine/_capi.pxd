"""C's declarations that Cython uses: gpt2c.h, and internal headers for tests."""

from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t


cdef extern from "gpt2c.h" nogil:
    enum: GPT2C_ARITHMETIC
    enum: GPT2C_MAX_ROWS
    enum: GPT2C_MAX_THREADS

    ctypedef enum gpt2c_status:
        GPT2C_OK
        GPT2C_NO_MEMORY
        GPT2C_BAD_ARGUMENT
        GPT2C_CONTEXT_FULL
        GPT2C_NOT_A_NUMBER
        GPT2C_UNSUPPORTED_CPU
        GPT2C_STOPPED
        GPT2C_CACHE_FULL
        GPT2C_DOES_NOT_FIT

    ctypedef enum gpt2c_dtype:
        GPT2C_FLOAT32
        GPT2C_INT8
        GPT2C_INT4
        GPT2C_FLOAT16
        GPT2C_BFLOAT16

    ctypedef struct gpt2c_config:
        int32_t layer_dtype, embedding_dtype, bfloat16_cache, n_scales
        int32_t n_vocab, n_positions, n_embd, n_layer, n_head, n_inner
        int32_t activation, tied_lm_head, scale_attn, scale_by_inverse_layer
        float layer_norm_epsilon

    enum:
        GPT2C_GELU_TANH
        GPT2C_GELU_ERF
        GPT2C_QUICK_GELU
        GPT2C_RELU
        GPT2C_SILU
        GPT2C_TANH
        GPT2C_IDENTITY

    ctypedef enum gpt2c_tensor:
        GPT2C_N_TENSORS

    const char *gpt2c_tensor_name(gpt2c_tensor)

    ctypedef struct gpt2c_model
    ctypedef struct gpt2c_sequence
    ctypedef struct gpt2c_scratch
    ctypedef struct gpt2c_lookup
    ctypedef struct gpt2c_drafter

    const char *gpt2c_isa_name(int i)
    int gpt2c_isa_supported(const char *name)

    gpt2c_status gpt2c_model_create(
        const gpt2c_config *, const char *, int32_t, gpt2c_model **
    )
    gpt2c_status gpt2c_model_set_dtypes(gpt2c_model *, const uint8_t *)
    gpt2c_status gpt2c_model_change_dtype(gpt2c_model *, gpt2c_tensor, int32_t, gpt2c_dtype)
    gpt2c_dtype gpt2c_model_dtype(const gpt2c_model *, gpt2c_tensor, int32_t)
    gpt2c_status gpt2c_model_write(
        gpt2c_model *, gpt2c_tensor, int32_t, const float *, size_t, size_t, size_t
    )
    gpt2c_status gpt2c_model_read(
        const gpt2c_model *, gpt2c_tensor, int32_t, float *, size_t, size_t, size_t
    )
    unsigned char *gpt2c_model_packed(
        const gpt2c_model *, gpt2c_tensor, int32_t, size_t *
    )
    size_t gpt2c_model_packed_bytes(const gpt2c_model *)
    gpt2c_status gpt2c_model_move(gpt2c_model *, void *)
    gpt2c_status gpt2c_model_attach(gpt2c_model *, const uint8_t *, const void *, size_t)
    void gpt2c_model_free(gpt2c_model *)
    size_t gpt2c_model_bytes(const gpt2c_model *)

    size_t gpt2c_model_page_bytes(const gpt2c_model *)
    size_t gpt2c_model_cache_bytes(const gpt2c_model *)
    size_t gpt2c_model_cache_limit(const gpt2c_model *)
    void gpt2c_model_set_cache_limit(gpt2c_model *, size_t)
    void gpt2c_model_forget_pages(gpt2c_model *)

    gpt2c_status gpt2c_sequence_create(const gpt2c_model *, gpt2c_sequence **)
    gpt2c_status gpt2c_sequence_copy(const gpt2c_sequence *, gpt2c_sequence **)
    void gpt2c_sequence_free(gpt2c_sequence *)
    int32_t gpt2c_sequence_length(const gpt2c_sequence *)
    gpt2c_status gpt2c_sequence_truncate(gpt2c_sequence *, int32_t)
    void gpt2c_sequence_forget_call(gpt2c_sequence *)

    gpt2c_status gpt2c_scratch_create(const gpt2c_model *, int32_t, gpt2c_scratch **)
    void gpt2c_scratch_free(gpt2c_scratch *)

    ctypedef enum gpt2c_wanted:
        GPT2C_LOGITS_NONE
        GPT2C_LOGITS_LAST
        GPT2C_LOGITS_ALL

    ctypedef struct gpt2c_feed:
        gpt2c_sequence *sequence
        const int32_t *tokens
        int32_t n_tokens
        gpt2c_wanted wanted

    gpt2c_status gpt2c_forward(
        const gpt2c_model *, gpt2c_scratch *, const gpt2c_feed *, int32_t, float *
    )
    gpt2c_status gpt2c_hidden_states(
        const gpt2c_model *, gpt2c_scratch *, const gpt2c_feed *, int32_t, int32_t, float *
    )

    ctypedef enum gpt2c_point:
        GPT2C_POINT_EMBED
        GPT2C_N_POINTS

    ctypedef int (*gpt2c_on_point)(
        void *, gpt2c_point, int32_t, float *, size_t, int32_t, int32_t
    ) noexcept with gil

    ctypedef struct gpt2c_hooks:
        const uint8_t *points
        const uint8_t *wants_logits
        gpt2c_on_point on_point
        int (*poll)(void *) noexcept with gil
        void *context

    gpt2c_status gpt2c_forward_probed(
        const gpt2c_model *, gpt2c_scratch *, gpt2c_sequence *, const int32_t *, int32_t,
        const gpt2c_hooks *, float *,
    )

    enum: GPT2C_MAX_TOP

    ctypedef struct gpt2c_token_score:
        float log_prob, entropy
        int32_t rank

    ctypedef struct gpt2c_alternative:
        float log_prob
        int32_t id

    ctypedef struct gpt2c_measures:
        int32_t has_second_moment
        int32_t n_orders
        int32_t n_sets
        const float *orders
        const float *sets
        const float *other_logits
        int32_t n_values
        float *values

    ctypedef struct gpt2c_scores:
        gpt2c_token_score *scores
        int32_t n_top
        gpt2c_alternative *top
        const gpt2c_measures *measures

    ctypedef struct gpt2c_scored_feeds:
        const gpt2c_feed *feeds
        int32_t n_feeds
        const int32_t *targets
        gpt2c_scores scores

    void gpt2c_log_probs(const gpt2c_model *, float *, int32_t)

    ctypedef enum gpt2c_stage_kind:
        GPT2C_ALLOWED_IDS
        GPT2C_LOGIT_BIAS
        GPT2C_DRY
        GPT2C_NO_REPEAT_NGRAM
        GPT2C_BAD_WORDS
        GPT2C_TOP_K
        GPT2C_MIROSTAT
        GPT2C_N_STAGES

    const char *gpt2c_stage_name(gpt2c_stage_kind)

    ctypedef struct gpt2c_stage:
        gpt2c_stage_kind kind
        float value, other
        int32_t count, span
        const int32_t *ids
        const float *values
        int32_t n_ids

    ctypedef struct gpt2c_sampling:
        const gpt2c_stage *stages
        int32_t n_stages, do_sample
        uint64_t seed
        uint32_t sample

    ctypedef enum gpt2c_finish:
        GPT2C_RUNNING
        GPT2C_FINISHED_LENGTH
        GPT2C_FINISHED_STOP
        GPT2C_FINISHED_CONTEXT
        GPT2C_FINISHED_NOT_A_NUMBER
        GPT2C_FINISHED_NOTHING_LEFT
        GPT2C_FINISHED_FED

    ctypedef struct gpt2c_caller:
        int rests_together

    ctypedef struct gpt2c_membership:
        int is_ready, is_in_step, has_given_up

    ctypedef struct gpt2c_job:
        gpt2c_sequence *sequence
        const int32_t *prompt
        int32_t n_prompt, n_before
        gpt2c_sampling sampling
        float mirostat_mu
        const int32_t *stop_ids
        int32_t n_stop_ids
        int32_t max_new_tokens
        int32_t *tokens
        int32_t n_tokens
        gpt2c_scores scores
        gpt2c_finish finish
        int32_t end_id
        float *logits_out
        gpt2c_wanted wanted
        int is_feed
        int32_t rest_at
        gpt2c_status status
        gpt2c_membership member
        gpt2c_drafter *drafter
        gpt2c_lookup *lookup
        gpt2c_sequence *draft_sequence
        int32_t n_passes, n_drafted, n_accepted

    gpt2c_status gpt2c_apply_stages(
        const gpt2c_model *, gpt2c_scratch *, const gpt2c_job *, float *
    )
    gpt2c_status gpt2c_advance(
        const gpt2c_model *, gpt2c_scratch *, gpt2c_job *, const float *, const float *
    )

    ctypedef struct gpt2c_batch
    gpt2c_status gpt2c_batch_create(const gpt2c_model *, gpt2c_batch **)
    void gpt2c_batch_free(gpt2c_batch *)
    gpt2c_status gpt2c_batch_resume(gpt2c_batch *, gpt2c_caller *, gpt2c_job **, int32_t)
    int gpt2c_batch_wait(gpt2c_batch *, gpt2c_caller *, double)
    void gpt2c_batch_leave(gpt2c_batch *, gpt2c_job **, int32_t)
    int gpt2c_batch_has_rested(gpt2c_batch *, const gpt2c_job *)
    void gpt2c_batch_cancel(gpt2c_batch *, gpt2c_job *)
    void gpt2c_batch_wake(gpt2c_batch *, gpt2c_caller *)
    gpt2c_status gpt2c_batch_forget(gpt2c_batch *)

    ctypedef struct gpt2c_turn:
        const gpt2c_scored_feeds *scored
        int is_joined
    int gpt2c_turn_wait(gpt2c_batch *, gpt2c_turn *, double)
    gpt2c_status gpt2c_turn_score(gpt2c_batch *, gpt2c_turn *)
    void gpt2c_turn_end(gpt2c_batch *, gpt2c_turn *)
    int32_t gpt2c_turn_rows(gpt2c_batch *)
    gpt2c_scratch *gpt2c_turn_scratch(gpt2c_batch *)

    gpt2c_status gpt2c_draft_model_create(const gpt2c_model *, gpt2c_model **)
    gpt2c_status gpt2c_draft_model_attach(
        const gpt2c_model *, const void *, size_t, gpt2c_model **
    )
    gpt2c_status gpt2c_lookup_create(int32_t, gpt2c_lookup **)
    void gpt2c_lookup_free(gpt2c_lookup *)
    gpt2c_status gpt2c_drafter_create(gpt2c_drafter **)
    void gpt2c_drafter_free(gpt2c_drafter *)
    enum: GPT2C_DRAFT_LOOKUP
    gpt2c_status gpt2c_drafter_set(gpt2c_drafter *, const gpt2c_model *, int32_t, int32_t)

    double gpt2c_measure_stream(const gpt2c_model *)
    double gpt2c_measure_multiply_add(const gpt2c_model *)


cdef extern from "kernels/kernels.h" nogil:
    ctypedef struct noise_key:
        uint64_t seed
        uint32_t sample
        uint32_t position

    enum: PANEL
    enum: PAGE_POSITIONS
    enum: ATTENTION_ROWS

    enum: GROUP
    enum: INT8_BLOCK_BYTES
    enum: INT4_BLOCK_BYTES

    ctypedef struct quantized_rows:
        int8_t *values
        float *scales
        int32_t *minus_sums
        size_t stride, values_stride

    ctypedef struct matmul_args:
        const float *x
        size_t x_stride
        quantized_rows quantized
        int n_rows, k
        const void *panels
        int dtype
        float *widened
        const float *bias
        const float *residual
        size_t residual_stride
        float *out
        size_t out_stride
        quantized_rows quantized_out
        int n, activation

    ctypedef struct attention_args:
        const float *q
        size_t q_stride
        int n_rows
        const void *const *pages
        int is_bfloat16
        size_t key_offset, value_offset
        int n_positions, head_dim, n_heads
        void *prefetches
        float scale
        float *scores
        size_t scores_stride
        float *out
        size_t out_stride

    ctypedef struct kernel_table:
        int tile_rows
        void (*matmul)(const matmul_args *, int, int)
        void (*attention)(const attention_args *)
        void (*store)(
            const float *, const float *, size_t, int, int, int, void *, void *
        )
        void (*exp)(float *, int)
        void (*log)(float *, int)
        void (*activate)(float *, int, int)
        void (*layer_norm)(const float *, const float *, const float *, float, int, float *)
        void (*add)(const float *, int, float *)
        int (*narrow)(const float *, size_t, int, int, int, uint16_t *)
        void (*widen)(const void *, size_t, int, float *)
        void (*quantize_rows)(const float *, size_t, int, int, int, const quantized_rows *)
        void (*quantize_int8)(const float *, uint8_t *)
        void (*quantize_int4)(const float *, int, uint8_t *)
        int (*arg_max)(const float *, int)
        void (*log_sum_exp)(const float *, int, float *, float *)
        int (*rank)(const float *, int, int)
        float (*second_moment)(const float *, int, float)
        float (*renyi_entropy)(const float *, int, float, float)
        float (*set_log_prob)(const float *, int, float, const float *)
        float (*cross_entropy)(const float *, int, float, const float *, float)
        int (*draw)(const float *, const int32_t *, int, const noise_key *, float *)
        float (*uniform)(const noise_key *)

    ctypedef struct integer_table:
        void (*matmul_int8)(const matmul_args *, int, int)
        void (*matmul_int4)(const matmul_args *, int, int)


cdef extern from "cpu.h" nogil:
    ctypedef struct instruction_set:
        const kernel_table *kernels
        const integer_table *integer

    const instruction_set *cpu_instruction_set(const char *)

cdef extern from "cache.h" nogil:
    gpt2c_status cache_reserve(gpt2c_sequence *, int32_t)
    size_t cache_bytes_needed(const gpt2c_sequence *, int32_t)

cdef extern from "pass/shares.h" nogil:
    enum: MAX_PRODUCT_RECTANGLES

    ctypedef struct rectangle:
        int begin_row
        int end_row
        int begin
        int end

    ctypedef struct product_shape:
        int n_rows
        int n_panels
        int tile_rows

    int product_share(product_shape, int worker, int n_workers, rectangle *)

    ctypedef struct attention_feed:
        int begin_row
        int first_position

    ctypedef struct attention_rows:
        int n_rows
        int n_feeds
        attention_feed *feeds
        int64_t *work_before

    ctypedef struct attention_place:
        int feed
        int head
        int row

    void attention_add_row(attention_rows *, int position, int begins_feed)
    void attention_share(
        const attention_rows *, int n_head, int worker, int n_workers, attention_place *begin,
        attention_place *end,
    )
    int attention_next(
        const attention_rows *, int n_head, attention_place *, attention_place end, rectangle *
    )

cdef extern from "os/os.h" nogil:
    enum:
        OS_CACHE_LINE
    void *os_file_map(int descriptor, size_t n_bytes, int is_writable)
    void os_file_unmap(void *memory, size_t n_bytes)
    int os_n_cpus()
    int os_physical_cores()
    int os_performance_cores()
    double os_cpu_quota()

cdef extern from "pool.h" nogil:
    void pool_pretend_cpus(int n)

cdef extern from "crowding.h" nogil:
    ctypedef struct call_report:
        int n_threads
        int n_idle
        double begin
        double end
        double cpu_seconds
        double lost_seconds

    int crowding_n_idle(double now, int n_workers)
    void crowding_learn(const call_report *call)
    int crowding_is_recent()
    void crowding_forget()
