# C's values of constants that Python defines too: tests/test_shared_constants.py compares them.
# Included by _engine.pyx.

cdef extern from "draft/draft.h" nogil:
    enum: MAX_DRAFTS

cdef extern from "gpt2c.h" nogil:
    enum:
        GPT2C_LAST_PENALTY
        GPT2C_POINT_RESID_PRE
        GPT2C_POINT_LN_1
        GPT2C_POINT_Q
        GPT2C_POINT_K
        GPT2C_POINT_V
        GPT2C_POINT_SCORES
        GPT2C_POINT_PROBS
        GPT2C_POINT_ATTN_OUT
        GPT2C_POINT_RESID_MID
        GPT2C_POINT_LN_2
        GPT2C_POINT_MLP_PRE
        GPT2C_POINT_MLP_ACT
        GPT2C_POINT_MLP_OUT
        GPT2C_POINT_RESID_POST
        GPT2C_POINT_LN_F
        GPT2C_POINT_LOGITS

NUMBERS = {
    "arithmetic": GPT2C_ARITHMETIC,
    "max_threads": GPT2C_MAX_THREADS,
    "max_rows": GPT2C_MAX_ROWS,
    "max_top": GPT2C_MAX_TOP,
    "max_drafts": MAX_DRAFTS,
    "page_positions": PAGE_POSITIONS,
    "group": GROUP,
    "panel": PANEL,
    "int8_block_bytes": INT8_BLOCK_BYTES,
    "int4_block_bytes": INT4_BLOCK_BYTES,
    "n_points": GPT2C_N_POINTS,
    "first_model_point": <int>GPT2C_POINT_EMBED,
    "last_penalty": GPT2C_LAST_PENALTY,
}

# C's enumerators by Python's names for them.
ENUMS = {
    "activations": ACTIVATIONS,
    "dtypes": DTYPES,
    "stages": STAGES,
    "tensors": TENSORS,
    "points": {
        "resid_pre": GPT2C_POINT_RESID_PRE,
        "ln_1": GPT2C_POINT_LN_1,
        "q": GPT2C_POINT_Q,
        "k": GPT2C_POINT_K,
        "v": GPT2C_POINT_V,
        "scores": GPT2C_POINT_SCORES,
        "probs": GPT2C_POINT_PROBS,
        "attn_out": GPT2C_POINT_ATTN_OUT,
        "resid_mid": GPT2C_POINT_RESID_MID,
        "ln_2": GPT2C_POINT_LN_2,
        "mlp_pre": GPT2C_POINT_MLP_PRE,
        "mlp_act": GPT2C_POINT_MLP_ACT,
        "mlp_out": GPT2C_POINT_MLP_OUT,
        "resid_post": GPT2C_POINT_RESID_POST,
        "embed": <int>GPT2C_POINT_EMBED,
        "ln_f": GPT2C_POINT_LN_F,
        "logits": GPT2C_POINT_LOGITS,
    },
}


def _layouts():
    """Return the layouts of C's structs as NumPy dtypes."""
    cdef gpt2c_token_score score
    cdef gpt2c_alternative top
    return {
        "score": np.dtype({
            "names": ["log_prob", "entropy", "rank"],
            "formats": [
                f"f{sizeof(score.log_prob)}", f"f{sizeof(score.entropy)}", f"i{sizeof(score.rank)}",
            ],
            "offsets": [
                <char *>&score.log_prob - <char *>&score,
                <char *>&score.entropy - <char *>&score,
                <char *>&score.rank - <char *>&score,
            ],
            "itemsize": sizeof(score),
        }),
        "top": np.dtype({
            "names": ["log_prob", "id"],
            "formats": [f"f{sizeof(top.log_prob)}", f"i{sizeof(top.id)}"],
            "offsets": [<char *>&top.log_prob - <char *>&top, <char *>&top.id - <char *>&top],
            "itemsize": sizeof(top),
        }),
    }


LAYOUTS = _layouts()
