# For tests: single kernels of an instruction set, the pages that feeding needs, and the choice of
# threads. Included by _engine.pyx.

cdef const instruction_set *set_of(str isa) except NULL:
    cdef bytes name = isa.encode()
    cdef const instruction_set *instructions = cpu_instruction_set(name)
    if instructions == NULL:
        raise BackendError(f"instruction set {isa!r} is not compiled in or cannot run here")
    return instructions


cdef const kernel_table *kernels_of(str isa) except NULL:
    return set_of(isa).kernels


def elementwise(str isa not None, str function not None, x):
    """Apply a kernel's exp, log or activation to float32 x of any shape."""
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
    """Compute the layer norm of one row."""
    cdef const kernel_table *kernels = kernels_of(isa)
    if not x.shape[0] == weight.shape[0] == bias.shape[0] > 0:
        raise OptionError("layer_norm takes three vectors of one length")
    result = np.empty(x.shape[0], dtype=np.float32)
    cdef float[::1] out = result
    kernels.layer_norm(&x[0], &weight[0], &bias[0], epsilon, <int>x.shape[0], &out[0])
    return result


def narrow(str isa not None, const float[:, ::1] rows not None, str dtype not None):
    """Return (rows [n, up to PANEL columns] as uint16 [n, PANEL], whether all values fit)."""
    if not 0 < rows.shape[1] <= PANEL or rows.shape[0] == 0:
        raise OptionError(f"narrow takes rows of up to {PANEL} columns")
    result = np.zeros((rows.shape[0], PANEL), dtype=np.uint16)
    cdef uint16_t[:, ::1] out = result
    fits = kernels_of(isa).narrow(
        &rows[0, 0], rows.shape[1], <int>rows.shape[0], <int>rows.shape[1], STORED_DTYPES[dtype],
        &out[0, 0],
    )
    return result, bool(fits)


def widen(str isa not None, const uint16_t[::1] narrow not None, str dtype not None):
    """Return the values of float16 or bfloat16 bits, a multiple of PANEL, as float32."""
    if narrow.shape[0] == 0 or narrow.shape[0] % PANEL:
        raise OptionError(f"widen takes a multiple of {PANEL} values")
    result = np.empty(narrow.shape[0], dtype=np.float32)
    cdef float[::1] out = result
    kernels_of(isa).widen(&narrow[0], narrow.shape[0], STORED_DTYPES[dtype], &out[0])
    return result


def matmul(
    str isa not None, const float[:, ::1] x not None, weight, bias, residual, activation,
    str dtype not None="float32",
):
    """Compute activation(x @ weight + bias) + residual.

    The shapes are [n_rows, k], [k, n], [n] and [n_rows, n]. bias, residual and activation (a name)
    may be None. dtype is that of the packed weights, which must fit.
    """
    cdef const kernel_table *kernels = kernels_of(isa)
    cdef int n_rows = <int>x.shape[0], k = <int>x.shape[1], n = weight.shape[1]
    cdef int n_panels = (n + PANEL - 1) // PANEL
    padded = np.zeros((k, n_panels * PANEL), dtype=np.float32)
    padded[:, :n] = weight
    packed = padded.reshape(k, n_panels, PANEL).transpose(1, 0, 2)
    cdef float[:, :, ::1] panels = np.ascontiguousarray(packed)
    cdef uint16_t[:, ::1] narrow_panels
    cdef float[:, ::1] widened = np.empty((k, PANEL), dtype=np.float32)
    padded = np.zeros(n_panels * PANEL, dtype=np.float32)
    padded[:n] = 0 if bias is None else bias
    cdef float[::1] bias_view = padded
    result = np.zeros((n_rows, n), dtype=np.float32)
    if residual is not None:
        result[...] = residual
    cdef float[:, ::1] out = result
    cdef matmul_args args
    args.x, args.x_stride, args.n_rows, args.k = &x[0, 0], k, n_rows, k
    args.panels, args.dtype = &panels[0, 0, 0], STORED_DTYPES[dtype]
    args.widened = &widened[0, 0]
    if dtype != "float32":
        bits, fits = narrow(isa, np.asarray(panels).reshape(-1, PANEL), dtype)
        if not fits:
            raise OptionError(f"the weights do not fit in {dtype}")
        narrow_panels = bits
        args.panels = &narrow_panels[0, 0]
    args.bias = NULL if bias is None else &bias_view[0]
    args.residual = NULL if residual is None else &out[0, 0]
    args.out, args.out_stride, args.residual_stride, args.n = &out[0, 0], n, n, n
    args.activation = GPT2C_IDENTITY if activation is None else ACTIVATIONS[activation]
    args.quantized_out.values = NULL
    kernels.matmul(&args, 0, n_panels)
    return result


def quantize_rows(str isa not None, const float[:, ::1] x not None):
    """Quantise rows [n_rows, k] to int8.

    Return the values [n_groups, n_rows, GROUP], the scales [n_groups, n_rows] and the negative sums
    of the values [n_groups, n_rows].
    """
    cdef int n_rows = <int>x.shape[0], k = <int>x.shape[1]
    result = empty_rows(n_rows, k)
    cdef quantized_rows out = rows_at(result)
    kernels_of(isa).quantize_rows(&x[0, 0], k, 0, n_rows, k, &out)
    return result


cdef tuple empty_rows(int n_rows, int k):
    """Allocate the arrays that quantize_rows returns."""
    n_groups = (k + GROUP - 1) // GROUP
    return (
        np.empty((n_groups, n_rows, GROUP), dtype=np.int8),
        np.empty((n_groups, n_rows), dtype=np.float32),
        np.empty((n_groups, n_rows), dtype=np.int32),
    )


cdef quantized_rows rows_at(tuple arrays):
    cdef const int8_t[:, :, ::1] values = arrays[0]
    cdef const float[:, ::1] scales = arrays[1]
    cdef const int32_t[:, ::1] sums = arrays[2]
    cdef quantized_rows rows
    rows.values, rows.scales = <int8_t *>&values[0, 0, 0], <float *>&scales[0, 0]
    rows.minus_sums = <int32_t *>&sums[0, 0]
    rows.stride, rows.values_stride = values.shape[1], values.shape[1] * GROUP
    return rows


def quantize_block(
    str isa not None, int bits, const float[:, ::1] weights not None, int n_scales=16,
):
    """Quantise one group of a panel, [GROUP, PANEL] weights; return the bytes of the block."""
    if (weights.shape[0], weights.shape[1]) != (GROUP, PANEL) or bits not in (4, 8):
        raise OptionError(f"quantize_block takes {GROUP} x {PANEL} weights")
    block = np.empty(INT8_BLOCK_BYTES if bits == 8 else INT4_BLOCK_BYTES, dtype=np.uint8)
    cdef uint8_t[::1] out = block
    if bits == 8:
        kernels_of(isa).quantize_int8(&weights[0, 0], &out[0])
    else:
        kernels_of(isa).quantize_int4(&weights[0, 0], n_scales, &out[0])
    return block


def integer_matmul(
    str isa not None, int bits, tuple rows not None, const uint8_t[:, :, ::1] panels not None,
    int n, activation=None, is_out_quantized=False,
):
    """Compute activation(rows @ weights) from rows as quantize_rows returns them.

    panels holds blocks, [n_panels, n_groups, bytes]. Return float32 [n_rows, n] or, if
    is_out_quantized is true, the same quantised, as quantize_rows returns it.
    """
    cdef const integer_table *kernels = set_of(isa).integer
    cdef int n_groups = rows[0].shape[0], n_rows = rows[0].shape[1]
    block_bytes = INT8_BLOCK_BYTES if bits == 8 else INT4_BLOCK_BYTES
    expected = ((n + PANEL - 1) // PANEL, n_groups, block_bytes)
    if (panels.shape[0], panels.shape[1], panels.shape[2]) != expected:
        raise OptionError(f"integer_matmul takes blocks of the shape {expected}")
    result = np.zeros((n_rows, n), dtype=np.float32)
    cdef float[:, ::1] out = result
    cdef matmul_args args
    args.quantized, args.n_rows, args.k = rows_at(rows), n_rows, n_groups * GROUP
    args.panels, args.bias, args.residual = &panels[0, 0, 0], NULL, NULL
    args.out, args.out_stride, args.n = &out[0, 0], n, n
    args.activation = GPT2C_IDENTITY if activation is None else ACTIVATIONS[activation]
    args.quantized_out.values = NULL
    if is_out_quantized:
        result = empty_rows(n_rows, n)
        args.quantized_out = rows_at(result)
    if bits == 8:
        kernels.matmul_int8(&args, 0, <int>panels.shape[0])
    else:
        kernels.matmul_int4(&args, 0, <int>panels.shape[0])
    return result


def attention(
    str isa not None, const float[:, ::1] q not None, keys, values, float scale, is_bfloat16=False,
):
    """Compute causal attention of one head.

    keys and values are [n_positions, head_dim]. The rows q [n_rows, head_dim] belong to the last
    n_rows positions, which must be in one page of the KV cache. With is_bfloat16 the keys and
    values are truncated to bfloat16.
    """
    cdef const kernel_table *kernels = kernels_of(isa)
    cdef int n_rows = <int>q.shape[0], head_dim = <int>q.shape[1], n_positions = keys.shape[0]
    cdef int n_pages = (n_positions + PAGE_POSITIONS - 1) // PAGE_POSITIONS, i
    if (n_positions - n_rows) // PAGE_POSITIONS != (n_positions - 1) // PAGE_POSITIONS:
        raise OptionError("attention takes rows of one page")
    # The kernel must not read beyond the last position: a NaN there would show.
    padded = np.full((2, n_pages * PAGE_POSITIONS, head_dim), np.nan, dtype=np.float32)
    padded[0, :n_positions], padded[1, :n_positions] = keys, values
    stored = np.empty((n_pages, 2, head_dim * PAGE_POSITIONS), dtype=np.float32)
    for i in range(n_pages):
        page = padded[:, i * PAGE_POSITIONS:(i + 1) * PAGE_POSITIONS]
        stored[i, 0], stored[i, 1] = page[0].T.ravel(), page[1].ravel()
    if is_bfloat16:
        stored = (stored.view(np.uint32) >> 16).astype(np.uint16)
    cdef const uint8_t[:, :, ::1] pages = stored.view(np.uint8)
    cdef const void *pointers[64]
    if n_pages > 64:
        raise OptionError("attention takes up to 64 pages")
    for i in range(n_pages):
        pointers[i] = &pages[i, 0, 0]
    cdef float[:, ::1] scores = np.empty((ATTENTION_ROWS, n_positions), dtype=np.float32)
    result = np.empty((n_rows, head_dim), dtype=np.float32)
    cdef float[:, ::1] out = result
    cdef attention_args args
    args.q, args.q_stride, args.n_rows = &q[0, 0], head_dim, n_rows
    args.pages = pointers
    args.key_offset, args.value_offset = 0, head_dim * PAGE_POSITIONS
    args.n_positions, args.head_dim, args.scale = n_positions - n_rows + 1, head_dim, scale
    args.scores, args.scores_stride = &scores[0, 0], n_positions
    args.out, args.out_stride = &out[0, 0], head_dim
    args.is_bfloat16, args.prefetches = is_bfloat16, NULL
    kernels.attention(&args)
    return result


def store(
    str isa not None, const float[:, ::1] key not None, const float[:, ::1] value not None,
    is_bfloat16,
):
    """Store the keys and values of the first positions of an empty page, [n, head_dim] each.

    Return the page's (keys [head_dim, PAGE_POSITIONS], values [PAGE_POSITIONS, head_dim]). Elements
    that the kernel does not write are zero. With is_bfloat16 the arrays are uint16.
    """
    n, head_dim = key.shape[0], key.shape[1]
    if value.shape[0] != n or value.shape[1] != head_dim or head_dim < 1:
        raise OptionError("store takes keys and values of one shape")
    if not 1 <= n <= PAGE_POSITIONS:
        raise OptionError(f"store takes 1 to {PAGE_POSITIONS} positions")
    dtype = np.uint16 if is_bfloat16 else np.float32
    keys = np.zeros((head_dim, PAGE_POSITIONS), dtype=dtype)
    values = np.zeros((PAGE_POSITIONS, head_dim), dtype=dtype)
    cdef uint8_t[::1] to_keys = keys.reshape(-1).view(np.uint8)
    cdef uint8_t[::1] to_values = values.reshape(-1).view(np.uint8)
    kernels_of(isa).store(
        &key[0, 0], &value[0, 0], <size_t>head_dim, <int>n, <int>head_dim, is_bfloat16,
        &to_keys[0], &to_values[0],
    )
    return keys, values


def arg_max(str isa not None, const float[::1] logits not None):
    """Return the lowest id with the largest logit, or -1 if any logit is NaN."""
    cdef const kernel_table *kernels = kernels_of(isa)
    if logits.shape[0] == 0:
        raise OptionError("arg_max takes at least one logit")
    return kernels.arg_max(&logits[0], <int>logits.shape[0])


def add(str isa not None, const float[::1] x not None, const float[::1] added not None):
    """Compute x + added."""
    if not x.shape[0] == added.shape[0] > 0:
        raise OptionError("add takes two vectors of one length")
    result = np.array(x)
    cdef float[::1] out = result
    kernels_of(isa).add(&added[0], <int>x.shape[0], &out[0])
    return result


def log_sum_exp(str isa not None, const float[::1] logits not None):
    """Return (log-sum-exp, entropy in nats).

    A log-probability is a logit minus the log-sum-exp.
    """
    cdef const kernel_table *kernels = kernels_of(isa)
    cdef float total, entropy
    if logits.shape[0] == 0:
        raise OptionError("log_sum_exp takes at least one logit")
    kernels.log_sum_exp(&logits[0], <int>logits.shape[0], &total, &entropy)
    return total, entropy


def measures(
    str isa not None, const float[::1] logits not None, float order,
    const float[::1] added not None, const float[::1] other not None,
):
    """Return the second moment, a Renyi entropy, a set's log-probability and a cross-entropy.

    All three arrays are [n]; `added` is 0 for the ids of the set and -infinity for the others.
    """
    cdef const kernel_table *kernels = kernels_of(isa)
    cdef float total, entropy, other_total
    cdef int n = <int>logits.shape[0]
    if not logits.shape[0] == added.shape[0] == other.shape[0] > 0:
        raise OptionError("measures takes three vectors of one length")
    kernels.log_sum_exp(&logits[0], n, &total, &entropy)
    kernels.log_sum_exp(&other[0], n, &other_total, &entropy)
    return (
        kernels.second_moment(&logits[0], n, total),
        kernels.renyi_entropy(&logits[0], n, total, order),
        kernels.set_log_prob(&logits[0], n, total, &added[0]),
        kernels.cross_entropy(&logits[0], n, total, &other[0], other_total),
    )


def rank(str isa not None, const float[::1] logits not None, int id):
    """Return the rank of an id, 1 for the most likely."""
    cdef const kernel_table *kernels = kernels_of(isa)
    if not 0 <= id < logits.shape[0]:
        raise OptionError(f"id {id} is not one of {logits.shape[0]}")
    return kernels.rank(&logits[0], <int>logits.shape[0], id)


def draw(
    str isa not None, const float[::1] logits not None, const int32_t[::1] ids not None,
    uint64_t seed, uint32_t sample, uint32_t position,
):
    """Return (the id whose logit plus Gumbel noise is largest, that sum)."""
    cdef noise_key key
    cdef float score
    key.seed, key.sample, key.position = seed, sample, position
    if not logits.shape[0] == ids.shape[0] > 0:
        raise OptionError("draw takes a logit for each of at least one id")
    id = kernels_of(isa).draw(&logits[0], &ids[0], <int>ids.shape[0], &key, &score)
    return id, score


def uniform(str isa not None, uint64_t seed, uint32_t sample, uint32_t position):
    """Return the uniform number in [0, 1) that belongs to a position."""
    cdef noise_key key
    key.seed, key.sample, key.position = seed, sample, position
    return kernels_of(isa).uniform(&key)


# ---- the KV cache ----

def bytes_needed(Sequence sequence not None, int32_t n_tokens):
    """Return the bytes of the pages that feeding n_tokens more would allocate."""
    return cache_bytes_needed(sequence.pointer, n_tokens)


# ---- how workers divide a pass ----

def tile_rows(str isa not None):
    """Return the max number of rows in a tile of the float matmul."""
    return kernels_of(isa).tile_rows


def product_rectangles(int n_rows, int n_panels, int tile_rows, int worker, int n_workers):
    """Return a worker's share of a product: tuples (begin row, end row, begin panel, end panel)."""
    cdef rectangle share[MAX_PRODUCT_RECTANGLES]
    cdef product_shape shape
    if min(n_rows, n_panels, tile_rows) < 1 or not 0 <= worker < n_workers:
        raise OptionError("product_rectangles takes positive sizes and one of the workers")
    shape.n_rows, shape.n_panels, shape.tile_rows = n_rows, n_panels, tile_rows
    cdef int n = product_share(shape, worker, n_workers, share), i
    return [(share[i].begin_row, share[i].end_row, share[i].begin, share[i].end) for i in range(n)]


def attention_rectangles(feeds, int n_head, int worker, int n_workers):
    """Return a worker's share of attention: tuples (begin row, end row, begin head, end head).

    feeds are tuples (first position, n_rows), with at most GPT2C_MAX_ROWS rows in total.
    """
    cdef attention_feed listed[GPT2C_MAX_ROWS + 1]
    cdef int64_t work_before[GPT2C_MAX_ROWS + 1]
    cdef attention_rows rows
    cdef attention_place place, end
    cdef rectangle part
    cdef int i
    if not 0 < sum(n_rows for _, n_rows in feeds) <= GPT2C_MAX_ROWS or not 0 <= worker < n_workers:
        raise OptionError(f"attention_rectangles takes 1 to {GPT2C_MAX_ROWS} rows and a worker")
    rows.n_rows, rows.n_feeds, rows.feeds, rows.work_before = 0, 0, listed, work_before
    for first_position, n_rows in feeds:
        for i in range(n_rows):
            attention_add_row(&rows, first_position + i, i == 0)
    attention_share(&rows, n_head, worker, n_workers, &place, &end)
    share = []
    while attention_next(&rows, n_head, &place, end, &part):
        share.append((part.begin_row, part.end_row, part.begin, part.end))
    return share


# ---- how many threads run ----

def pretend_cpus(int n):
    """Let calls choose their threads as if the process could run on n CPUs; 0 undoes this."""
    pool_pretend_cpus(n)


def learn_crowding(reports, double now, int n_workers):
    """Learn from reports. Return (how many of n_workers stay idle, whether waits spin less).

    reports are tuples (n_threads, n_idle, begin, end, cpu_seconds, lost_seconds). The state is
    reset before and after.
    """
    cdef call_report report
    crowding_forget()
    for (
        report.n_threads, report.n_idle, report.begin, report.end, report.cpu_seconds,
        report.lost_seconds,
    ) in reports:
        crowding_learn(&report)
    result = crowding_n_idle(now, n_workers), bool(crowding_is_recent())
    crowding_forget()
    return result
