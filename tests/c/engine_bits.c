/* Prints digests of what an instruction set computes: the results of each elementwise kernel on
 * many floats, and the logits and sampled ids of small models. It is built without Python so that
 * it can run in an emulator; test_neon.py and test_windows.py compare the digests of two machines.
 *
 *     engine_bits INSTRUCTION_SET N_THREADS
 *     engine_bits INSTRUCTION_SET N_THREADS MODEL_FILE LOGITS_FILE
 *                                             writes the logits of the model and token ids in a file
 *     engine_bits                             prints the instruction sets that this CPU can run */
#include "cpu.h"
#include "gpt2c.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define N_FLOATS 20000

/* Numerical Recipes' linear congruential generator, good enough for random weights. */
static uint32_t state;

static uint32_t next_word(void) {
    state = state * 1664525u + 1013904223u;
    return state;
}

/* A multiple of 2^-12 between -1/2 and 1/2, so a float16. */
static float next_weight(void) { return (float)((int32_t)(next_word() >> 20) - 2048) / 4096.0f; }

/* The bits that the weights of a model keep. */
static uint32_t weight_mask;

/* FNV-1a; all NaNs give the same digest. */
static uint64_t digest(uint64_t hash, const float *x, size_t n) {
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &x[i], sizeof bits);
        if (x[i] != x[i])
            bits = 0x7fc00000u;
        for (int byte = 0; byte < 4; byte++)
            hash = (hash ^ ((bits >> (8 * byte)) & 0xff)) * 1099511628211u;
    }
    return hash;
}

static const uint64_t EMPTY_DIGEST = 14695981039346656037u;

static void print_elementwise(const kernel_table *k) {
    static float x[N_FLOATS];
    for (int function = -2; function < GPT2C_IDENTITY; function++) {
        state = 1;
        for (int i = 0; i < N_FLOATS; i++) {
            uint32_t bits = next_word(); /* any float, also denormals, infinities and NaNs */
            memcpy(&x[i], &bits, sizeof bits);
            if (i % 2)
                x[i] = next_weight() * 40.0f;
        }
        if (function == -2)
            k->exp(x, N_FLOATS);
        else if (function == -1)
            k->log(x, N_FLOATS);
        else
            k->activate(x, N_FLOATS, function);
        printf("function %d %016llx\n", function,
               (unsigned long long)digest(EMPTY_DIGEST, x, N_FLOATS));
    }
}

static void check(gpt2c_status status) {
    if (status) {
        fprintf(stderr, "status %d\n", (int)status);
        exit(1);
    }
}

static void write_random(gpt2c_model *model, gpt2c_tensor tensor, int32_t layer, size_t rows,
                         size_t width, float offset) {
    float *values = malloc(rows * width * sizeof *values);
    for (size_t i = 0; i < rows * width; i++) {
        uint32_t bits;
        values[i] = next_weight() + offset;
        memcpy(&bits, &values[i], sizeof bits);
        bits &= weight_mask;
        memcpy(&values[i], &bits, sizeof bits);
    }
    check(gpt2c_model_write(model, tensor, layer, values, 0, rows, width));
    free(values);
}

/* Most matrices of a float32 model get the dtype `stored`; the others stay float32. */
static void set_dtypes(gpt2c_model *model, const gpt2c_config *c, gpt2c_dtype stored) {
    size_t n = (size_t)(c->n_layer + 1) * GPT2C_N_TENSORS;
    uint8_t *dtypes = calloc(n, 1);
    for (size_t i = 0; i < n; i++)
        if (i % 3)
            dtypes[i] = (uint8_t)stored;
    check(gpt2c_model_set_dtypes(model, dtypes));
    free(dtypes);
}

static gpt2c_model *random_model(const gpt2c_config *c, gpt2c_dtype stored, const char *isa,
                                 int n_threads) {
    gpt2c_model *model;
    check(gpt2c_model_create(c, isa, n_threads, &model));
    if (stored != GPT2C_FLOAT32)
        set_dtypes(model, c, stored);
    size_t embd = (size_t)c->n_embd, inner = (size_t)c->n_inner;
    write_random(model, GPT2C_WTE, 0, (size_t)c->n_vocab, embd, 0.0f);
    write_random(model, GPT2C_WPE, 0, (size_t)c->n_positions, embd, 0.0f);
    write_random(model, GPT2C_LN_F_WEIGHT, 0, 1, embd, 1.0f);
    write_random(model, GPT2C_LN_F_BIAS, 0, 1, embd, 0.0f);
    for (int32_t layer = 0; layer < c->n_layer; layer++) {
        write_random(model, GPT2C_LN_1_WEIGHT, layer, 1, embd, 1.0f);
        write_random(model, GPT2C_LN_1_BIAS, layer, 1, embd, 0.0f);
        write_random(model, GPT2C_C_ATTN_WEIGHT, layer, embd, 3 * embd, 0.0f);
        write_random(model, GPT2C_C_ATTN_BIAS, layer, 1, 3 * embd, 0.0f);
        write_random(model, GPT2C_ATTN_C_PROJ_WEIGHT, layer, embd, embd, 0.0f);
        write_random(model, GPT2C_ATTN_C_PROJ_BIAS, layer, 1, embd, 0.0f);
        write_random(model, GPT2C_LN_2_WEIGHT, layer, 1, embd, 1.0f);
        write_random(model, GPT2C_LN_2_BIAS, layer, 1, embd, 0.0f);
        write_random(model, GPT2C_C_FC_WEIGHT, layer, embd, inner, 0.0f);
        write_random(model, GPT2C_C_FC_BIAS, layer, 1, inner, 0.0f);
        write_random(model, GPT2C_MLP_C_PROJ_WEIGHT, layer, inner, embd, 0.0f);
        write_random(model, GPT2C_MLP_C_PROJ_BIAS, layer, 1, embd, 0.0f);
    }
    return model;
}

/* Together, these use all arithmetic of the sampling stages. */
static const gpt2c_stage stages[] = {
    {.kind = GPT2C_REPETITION_PENALTY, .value = 1.1f},
    {.kind = GPT2C_TEMPERATURE, .value = 0.9f},
    {.kind = GPT2C_TOP_N_SIGMA, .value = 4.0f},
    {.kind = GPT2C_TOP_K, .count = 60},
    {.kind = GPT2C_TOP_P, .value = 0.99f},
    {.kind = GPT2C_MIN_P, .value = 0.001f},
    {.kind = GPT2C_TYPICAL_P, .value = 0.98f},
    {.kind = GPT2C_ETA_CUTOFF, .value = 0.001f},
    {.kind = GPT2C_XTC, .value = 0.3f, .other = 0.05f},
    {.kind = GPT2C_MIROSTAT, .value = 4.5f, .other = 0.1f},
};
#define N_STAGES ((int32_t)(sizeof stages / sizeof *stages))

/* Feeds the tokens of a full context in parts, each `growth` tokens longer than the part before; the first part has one
 * token. Exits if the logits do not have this digest. */
static void check_parts(const gpt2c_config *c, gpt2c_model *model, gpt2c_scratch *scratch,
                        gpt2c_sequence *sequence, const int32_t *tokens, int32_t growth,
                        float *logits, uint64_t expected) {
    int32_t n = c->n_positions;
    size_t n_vocab = (size_t)c->n_vocab;
    check(gpt2c_sequence_truncate(sequence, 0));
    for (int32_t i = 0, n_part = 1; i < n; i += n_part, n_part += growth) {
        n_part = n_part < n - i ? n_part : n - i;
        gpt2c_feed part = {sequence, tokens + i, n_part, GPT2C_LOGITS_ALL};
        check(gpt2c_forward(model, scratch, &part, 1, logits + (size_t)i * n_vocab));
    }
    if (digest(EMPTY_DIGEST, logits, (size_t)n * n_vocab) != expected) {
        fprintf(stderr, "the logits differ when tokens are fed in parts (growth %d)\n",
                (int)growth);
        exit(1);
    }
}

/* Feeds a full context in one call and in parts, then samples after a prompt of 5 tokens. Returns the
 * digest of the logits. */
static uint64_t print_model(const gpt2c_config *c, gpt2c_dtype stored, const char *isa,
                            int n_threads) {
    state = 2;
    gpt2c_model *model = random_model(c, stored, isa, n_threads);
    gpt2c_sequence *sequence;
    gpt2c_scratch *scratch;
    check(gpt2c_scratch_create(model, GPT2C_MAX_ROWS, &scratch));
    check(gpt2c_sequence_create(model, &sequence));
    int32_t n = c->n_positions;
    int32_t *tokens = malloc((size_t)n * sizeof *tokens);
    for (int32_t i = 0; i < n; i++)
        tokens[i] = (int32_t)(next_word() >> 8) % c->n_vocab;
    float *logits = malloc((size_t)n * (size_t)c->n_vocab * sizeof *logits);
    gpt2c_feed feed = {sequence, tokens, n, GPT2C_LOGITS_ALL};
    check(gpt2c_forward(model, scratch, &feed, 1, logits));
    uint64_t hash = digest(EMPTY_DIGEST, logits, (size_t)n * (size_t)c->n_vocab);
    printf("logits %d %d %016llx\n", (int)c->layer_dtype, (int)c->n_embd, (unsigned long long)hash);

    check_parts(c, model, scratch, sequence, tokens, 0, logits, hash);
    check_parts(c, model, scratch, sequence, tokens, 1, logits, hash);
    check(gpt2c_sequence_truncate(sequence, 0));
    int32_t drawn[30];
    gpt2c_batch *batch;
    gpt2c_caller caller = {.rests_together = 1};
    check(gpt2c_batch_create(model, &batch));
    gpt2c_job job = {.sequence = sequence,
                     .prompt = tokens,
                     .n_prompt = 5,
                     .tokens = drawn,
                     .max_new_tokens = 30,
                     .rest_at = 30,
                     .sampling = {stages, N_STAGES, 1, 1234567890123u, 0},
                     .mirostat_mu = 9.0f};
    gpt2c_job *jobs[] = {&job};
    check(gpt2c_batch_resume(batch, &caller, jobs, 1));
    while (gpt2c_batch_wait(batch, &caller, 1e9) == 0) {
    }
    check(job.status);
    printf("draws");
    for (int i = 0; i < job.n_tokens; i++)
        printf(" %d", (int)drawn[i]);
    printf("\n");
    free(tokens);
    free(logits);
    gpt2c_batch_free(batch);
    gpt2c_sequence_free(sequence);
    gpt2c_scratch_free(scratch);
    gpt2c_model_free(model);
    return hash;
}

/* Checks that some matrices in 16 bits do not change the logits of float32. */
static void print_narrow(const gpt2c_config *c, const char *isa, int n_threads) {
    const gpt2c_dtype dtypes[] = {GPT2C_FLOAT16, GPT2C_BFLOAT16};
    for (int i = 0; i < 2; i++) {
        weight_mask = i ? 0xffff0000u : 0xffffffffu;
        uint64_t wide = print_model(c, GPT2C_FLOAT32, isa, n_threads);
        if (print_model(c, dtypes[i], isa, n_threads) != wide) {
            fprintf(stderr, "the logits differ with matrices in 16 bits\n");
            exit(1);
        }
    }
}

static void read_exactly(FILE *file, void *to, size_t bytes) {
    if (fread(to, 1, bytes, file) != bytes) {
        fprintf(stderr, "the model file is too short\n");
        exit(1);
    }
}

static int32_t read_int(FILE *file) {
    int32_t number;
    read_exactly(file, &number, sizeof number);
    return number;
}

/* Reads a tensor: its number, layer, rows, width and values. */
static void read_tensor(FILE *file, gpt2c_model *model) {
    int32_t tensor = read_int(file), layer = read_int(file);
    size_t rows = (size_t)read_int(file), width = (size_t)read_int(file);
    float *values = malloc(rows * width * sizeof *values);
    read_exactly(file, values, rows * width * sizeof *values);
    check(gpt2c_model_write(model, (gpt2c_tensor)tensor, layer, values, 0, rows, width));
    free(values);
}

static FILE *open_file(const char *path, const char *mode) {
    FILE *file = fopen(path, mode);
    if (!file) {
        perror(path);
        exit(1);
    }
    return file;
}

/* The model's file has a gpt2c_config, n_positions token ids, the number of tensors, and the tensors. Feeds
 * seven tokens at a time, and writes logits [n_positions, n_vocab]. */
static void write_logits(const char *model_path, const char *logits_path, const char *isa,
                         int n_threads) {
    FILE *file = open_file(model_path, "rb");
    gpt2c_config c;
    gpt2c_model *model;
    gpt2c_sequence *sequence;
    gpt2c_scratch *scratch;
    read_exactly(file, &c, sizeof c);
    check(gpt2c_model_create(&c, isa, n_threads, &model));
    int32_t n = c.n_positions;
    int32_t *tokens = malloc((size_t)n * sizeof *tokens);
    read_exactly(file, tokens, (size_t)n * sizeof *tokens);
    for (int32_t left = read_int(file); left > 0; left--)
        read_tensor(file, model);
    fclose(file);
    check(gpt2c_scratch_create(model, GPT2C_MAX_ROWS, &scratch));
    check(gpt2c_sequence_create(model, &sequence));
    float *logits = malloc(7 * (size_t)c.n_vocab * sizeof *logits);
    file = open_file(logits_path, "wb");
    for (int32_t i = 0; i < n; i += 7) {
        int32_t n_part = n - i < 7 ? n - i : 7;
        gpt2c_feed part = {sequence, tokens + i, n_part, GPT2C_LOGITS_ALL};
        check(gpt2c_forward(model, scratch, &part, 1, logits));
        fwrite(logits, sizeof *logits, (size_t)n_part * (size_t)c.n_vocab, file);
    }
    fclose(file);
    free(tokens);
    free(logits);
    gpt2c_sequence_free(sequence);
    gpt2c_scratch_free(scratch);
    gpt2c_model_free(model);
}

static void print_supported(void) {
    for (int i = 0; gpt2c_isa_name(i); i++)
        if (gpt2c_isa_supported(gpt2c_isa_name(i)))
            printf("%s\n", gpt2c_isa_name(i));
}

int main(int argc, char **argv) {
    if (argc == 1) {
        print_supported();
        return 0;
    }
    const instruction_set *set = argc == 3 || argc == 5 ? cpu_instruction_set(argv[1]) : NULL;
    if (!set) {
        fprintf(stderr,
                "usage: engine_bits [INSTRUCTION_SET N_THREADS [MODEL_FILE LOGITS_FILE]]\n");
        return 2;
    }
    if (argc == 5) {
        write_logits(argv[3], argv[4], argv[1], atoi(argv[2]));
        return 0;
    }
    print_elementwise(set->kernels);
    gpt2c_config configs[] = {
        {.n_vocab = 100,
         .n_positions = 150,
         .n_embd = 64,
         .n_layer = 2,
         .n_head = 4,
         .n_inner = 256,
         .activation = GPT2C_GELU_TANH,
         .tied_lm_head = 1,
         .scale_attn = 1,
         .layer_norm_epsilon = 1e-5f},
        {.n_vocab = 65,
         .n_positions = 70,
         .n_embd = 33,
         .n_layer = 2,
         .n_head = 3,
         .n_inner = 50,
         .activation = GPT2C_SILU,
         .tied_lm_head = 1,
         .scale_attn = 1,
         .scale_by_inverse_layer = 1,
         .layer_norm_epsilon = 1e-3f},
    };
    for (size_t i = 0; i < sizeof configs / sizeof *configs; i++)
        for (int dtype = GPT2C_FLOAT32; dtype <= GPT2C_INT4; dtype++) {
            configs[i].layer_dtype = dtype;
            configs[i].embedding_dtype = dtype == GPT2C_FLOAT32 ? GPT2C_FLOAT32 : GPT2C_INT8;
            configs[i].bfloat16_cache = dtype != GPT2C_FLOAT32;
            configs[i].n_scales = 16;
            weight_mask = 0xffffffffu;
            print_model(&configs[i], GPT2C_FLOAT32, argv[1], atoi(argv[2]));
            if (dtype == GPT2C_FLOAT32)
                print_narrow(&configs[i], argv[1], atoi(argv[2]));
        }
    return 0;
}
