"""How the workers of a pass divide products and attention, and that no bit depends on it."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import ISAS, cases, config_of, model_on, needs_engine, random_weights
from hypothesis import given, settings
from hypothesis import strategies as st

if ISAS:
    from gpt2c.engine import _engine

pytestmark = needs_engine

Rectangles = list[tuple[int, int, int, int]]  # (begin row, end row, begin column, end column)

THREADS = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
SHAPES = {"124M": (768, 12), "355M": (1024, 16), "774M": (1280, 20), "1.5B": (1600, 25)}
N_VOCAB = 50257
PANEL = 32
ROWS_OF_TILES = (8, 6, 2)  # AVX-512; AVX2 and NEON; scalar
PAGE_POSITIONS = 64

# A tile of r rows costs r + TILE_OVERHEAD, because the weights (in attention, the keys and values)
# are loaded once for each tile. csrc/pass/shares.h has measurements.
TILE_OVERHEAD = 1


def panels_of(n_embd: int) -> dict[str, int]:
    """The panels of each product of a pass."""
    columns = {"c_attn": 3 * n_embd, "c_proj": n_embd, "c_fc": 4 * n_embd, "lm_head": N_VOCAB}
    return {name: -(-n // PANEL) for name, n in columns.items()}


def rows_cost(n_rows: int, tile_rows: int) -> int:
    return n_rows + TILE_OVERHEAD * -(-n_rows // tile_rows)


def product_costs(n_rows: int, n_panels: int, tile_rows: int, n_workers: int) -> list[int]:
    """The cost of each worker's share of a product, in rows of a panel."""
    return [
        sum(
            rows_cost(end_row - begin_row, tile_rows) * (end - begin)
            for begin_row, end_row, begin, end in _engine.product_rectangles(
                n_rows, n_panels, tile_rows, worker, n_workers
            )
        )
        for worker in range(n_workers)
    ]


def attention_shares(feeds: list[tuple[int, int]], n_head: int, n: int) -> list[Rectangles]:
    return [_engine.attention_rectangles(feeds, n_head, worker, n) for worker in range(n)]


def positions_of(feeds: list[tuple[int, int]]) -> list[int]:
    return [first + i for first, n_rows in feeds for i in range(n_rows)]


def attention_cost(share: Rectangles, positions: list[int], tile_rows: int) -> int:
    """The cost of a share, in attended positions.

    Tiles do not cross pages. Each computes the scores of all its rows up to its last position.
    """
    total = 0
    for begin_row, end_row, begin, end in share:
        row = begin_row
        while row < end_row:
            page_end = row + PAGE_POSITIONS - positions[row] % PAGE_POSITIONS
            n = min(tile_rows, end_row - row, page_end - row)
            total += (end - begin) * (n + TILE_OVERHEAD) * (positions[row] + n)
            row += n
    return total


def max_excess(n_workers: int) -> float:
    """How much larger than the mean the largest share may be."""
    return 0.1 if n_workers <= 32 else 0.2


@pytest.mark.parametrize("tile_rows", ROWS_OF_TILES)
@pytest.mark.parametrize("n_rows", [32, 256])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_largest_share_of_a_product_is_near_the_mean(shape, n_rows, tile_rows):
    for name, n_panels in panels_of(SHAPES[shape][0]).items():
        for n in THREADS:
            largest = max(product_costs(n_rows, n_panels, tile_rows, n))
            mean = n_panels * rows_cost(n_rows, tile_rows) / n
            assert largest <= mean * (1 + max_excess(n)), (name, n, largest / mean)


@pytest.mark.parametrize("tile_rows", ROWS_OF_TILES)
@pytest.mark.parametrize("feeds", [[(0, 256)], [(40, 1)] * 32, [(900, 1)] * 32], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_largest_share_of_attention_is_near_the_mean(shape, feeds, tile_rows):
    n_head, positions = SHAPES[shape][1], positions_of(feeds)
    for n in THREADS:
        shares = attention_shares(feeds, n_head, n)
        largest = max(attention_cost(share, positions, tile_rows) for share in shares)
        [whole] = attention_shares(feeds, n_head, 1)
        mean = attention_cost(whole, positions, tile_rows) / n
        assert largest <= mean * (1 + max_excess(n)), (n, largest / mean)


@pytest.mark.parametrize("shape", SHAPES)
def test_decoding_is_divided_as_well_as_panels_and_heads_allow(shape):
    n_embd, n_head = SHAPES[shape]
    for n in THREADS:
        for n_panels in panels_of(n_embd).values():
            assert max(product_costs(1, n_panels, 8, n)) <= -(-n_panels // n) * rows_cost(1, 8)
        shares = attention_shares([(500, 1)], n_head, n)
        most = max(sum(end - begin for _, _, begin, end in share) for share in shares)
        assert most <= -(-n_head // n)


def covered(shares: list[Rectangles], n_rows: int, n_columns: int) -> np.ndarray:
    """How many shares compute each output, [n_rows, n_columns]."""
    counts = np.zeros((n_rows, n_columns), dtype=int)
    for share in shares:
        for begin_row, end_row, begin, end in share:
            assert 0 <= begin_row < end_row <= n_rows
            assert 0 <= begin < end <= n_columns
            counts[begin_row:end_row, begin:end] += 1
    return counts


@settings(max_examples=cases(300), deadline=None)
@given(
    st.integers(1, 256), st.integers(1, 400), st.sampled_from([2, 6, 8, 256]), st.integers(1, 256)
)
def test_shares_of_a_product_cover_it_once(n_rows, n_panels, tile_rows, n):
    shares = [_engine.product_rectangles(n_rows, n_panels, tile_rows, w, n) for w in range(n)]
    assert (covered(shares, n_rows, n_panels) == 1).all()


@settings(max_examples=cases(300), deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2000), st.integers(1, 40)), min_size=1, max_size=6),
    st.integers(1, 30),
    st.integers(1, 256),
)
def test_shares_of_attention_cover_it_once(feeds, n_head, n):
    n_rows = sum(rows for _, rows in feeds)
    assert (covered(attention_shares(feeds, n_head, n), n_rows, n_head) == 1).all()


def test_a_mixed_batch_is_divided_evenly():
    """A prompt joins decode steps at different depths."""
    feeds = [(0, 200), *((37 * i % 1000, 1) for i in range(50))]
    positions = positions_of(feeds)
    for n in THREADS:
        costs = [sum((positions[r] + 1) * (end - begin) for a, b, begin, end in share
                     for r in range(a, b)) for share in attention_shares(feeds, 12, n)]  # fmt: skip
        assert max(costs) <= 1.2 * sum(costs) / n


# ---- equal bits ----


def results_on(n_threads: int, isa: str, head_dim: int, dtype: str) -> dict[str, np.ndarray]:
    """Logits of a prompt, log-probabilities of a batch and of a decoded text, and probed values."""
    n_head = 5  # so 5 threads have whole heads; 2, 3, 8 and 16 threads divide heads
    config = config_of(
        n_embd=n_head * head_dim, n_head=n_head, n_positions=300, vocab_size=500, n_layer=2
    )
    model = model_on(isa, config, random_weights(config), threads=n_threads, dtype=dtype)
    ids = np.random.default_rng(1).integers(0, 500, 290).tolist()
    prompts = [ids[i : i + 3 + 5 * (i % 4)] for i in range(32)]
    batch = model.complete(prompts, max_new_tokens=4, logprobs=0, draft=None)
    decoded = model.complete(ids[:40], max_new_tokens=30, logprobs=0, draft=None)
    probed = model.forward(ids[:70], capture=["scores", "probs", "logits"])
    return {
        "prompt": model.logits(ids),
        "batch": np.array([text.logprobs for text in batch]),
        "decode": np.array(decoded.logprobs),
        **{f"probed {name}": probed[name] for name in ("scores", "probs", "logits")},
    }


def check_same_bits(isa: str, head_dim: int, dtype: str) -> None:
    alone = results_on(1, isa, head_dim, dtype)
    for n in (2, 3, 5, 8, 16):
        for name, found in results_on(n, isa, head_dim, dtype).items():
            np.testing.assert_array_equal(found, alone[name], err_msg=f"{name}, {n} threads")


@pytest.mark.parametrize("head_dim", [64, 24])  # a multiple of PANEL, and not
def test_no_bit_depends_on_the_number_of_threads(isa, head_dim):
    check_same_bits(isa, head_dim, "float32")


@pytest.mark.parametrize("dtype", ["int8", "int4"])
@pytest.mark.parametrize("head_dim", [64, 24])
def test_no_bit_of_quantised_models_depends_on_the_number_of_threads(head_dim, dtype):
    check_same_bits(ISAS[-1], head_dim, dtype)


@pytest.mark.parametrize("n_threads", [17, 40])
def test_threads_in_several_groups_give_the_same_bits(n_threads):
    """More than 16 threads meet at a tree of barriers (csrc/pool.c)."""
    alone = results_on(1, ISAS[-1], 64, "float32")
    _engine.pretend_cpus(n_threads)
    try:
        several = results_on(n_threads, ISAS[-1], 64, "float32")
    finally:
        _engine.pretend_cpus(16)  # as in conftest.py
    for name, found in several.items():
        np.testing.assert_array_equal(found, alone[name], err_msg=name)
