# Single kernels of an instruction set, for tests. Included by _engine.pyx.

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


def log_total(str isa not None, const float[::1] logits not None):
    """What to take from a logit for its log-probability, and the entropy, by a kernel."""
    cdef const kernel_table *kernels = kernels_of(isa)
    cdef float total, entropy
    if logits.shape[0] == 0:
        raise OptionError("log_total takes at least one logit")
    kernels.log_total(&logits[0], <int>logits.shape[0], &total, &entropy)
    return total, entropy


def rank(str isa not None, const float[::1] logits not None, int id):
    """1 for the most likely id, by a kernel."""
    cdef const kernel_table *kernels = kernels_of(isa)
    if not 0 <= id < logits.shape[0]:
        raise OptionError(f"id {id} is not one of {logits.shape[0]}")
    return kernels.rank(&logits[0], <int>logits.shape[0], id)


def draw(
    str isa not None, const float[::1] logits not None, const int32_t[::1] ids not None,
    uint64_t seed, uint32_t sample, uint32_t position,
):
    """(the id whose logit plus Gumbel noise is the greatest, that sum), by a kernel."""
    cdef noise_key key
    cdef float score
    key.seed, key.sample, key.position = seed, sample, position
    if not logits.shape[0] == ids.shape[0] > 0:
        raise OptionError("draw takes a logit for each of at least one id")
    id = kernels_of(isa).draw(&logits[0], &ids[0], <int>ids.shape[0], &key, &score)
    return id, score


def chance(str isa not None, uint64_t seed, uint32_t sample, uint32_t position):
    """The number from 0 to 1 that belongs to a position."""
    cdef noise_key key
    key.seed, key.sample, key.position = seed, sample, position
    return kernels_of(isa).chance(&key)
