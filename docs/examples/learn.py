"""GPT-2 from scratch: the code, the numbers and the pictures of docs/learn.md.

    python docs/examples/learn.py [--out FOLDER]

Prints every number that the page shows and writes a picture for each of its parts to FOLDER
(default: learn-pictures). Needs matplotlib. NumPy computes everything; gpt2c only loads the weights
and the tokenizer of its embedded model.

In shapes, n_seq tokens are fed now and n_total is n_seq plus the tokens in the cache.
n_embd = n_head * head_dim.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice, takewhile
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

import gpt2c

Array: TypeAlias = np.ndarray
Weights: TypeAlias = dict[str, Array]
Norm: TypeAlias = Callable[[Array, Weights, str], Array]
Cache: TypeAlias = dict[str, tuple[Array, Array]]

PROMPT = "Once upon a time there was a king"

# ---- loading ----


class Model(NamedTuple):
    """All that it takes to generate text."""

    tokenizer: Any  # encode(text) -> ids, decode(ids) -> text
    w: Weights  # the tensors, by GPT-2's names
    n_head: int
    eos_id: int | None  # the token that ends a text


def load(name: str | None = None) -> Model:
    """Load a checkpoint: by default the embedded model. float64, so rounding never shows."""
    with gpt2c.GPT2.from_pretrained(name) as model:
        layers = [
            f"h.{block}.{layer}"
            for block in range(model.config.n_layer)
            for layer in ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
        ]
        names = [f"{layer}.{kind}" for layer in [*layers, "ln_f"] for kind in ("weight", "bias")]
        w = {
            name: model.weight(name).astype(np.float64)
            for name in ["wte.weight", "wpe.weight", *names]
        }
        return Model(model.tokenizer, w, model.config.n_head, model.config.eos_token_id)


# ---- 1. embeddings ----


def embed(ids: list[int], w: Weights, n_past: int = 0) -> Array:
    """Return a vector for each token: its embedding plus that of its position."""
    positions = np.arange(n_past, n_past + len(ids))  # [n_seq]
    return w["wte.weight"][ids] + w["wpe.weight"][positions]  # [n_seq, n_embd]


# ---- 2. layer norm ----


def normalise(x: Array, axis: int) -> Array:
    """Shift and scale x to mean 0 and variance 1 along axis."""
    centred = x - x.mean(axis, keepdims=True)
    return centred / np.sqrt(np.square(centred).mean(axis, keepdims=True) + 1e-5)


def layer_norm(x: Array, w: Weights, name: str) -> Array:
    """Normalise each token on its own, along n_embd."""
    return normalise(x, axis=-1) * w[name + ".weight"] + w[name + ".bias"]  # [n_seq, n_embd]


def wrong_norm(x: Array, w: Weights, name: str) -> Array:
    """Normalise across the tokens. Only the axis is wrong, but it breaks the model."""
    return normalise(x, axis=0) * w[name + ".weight"] + w[name + ".bias"]  # [n_seq, n_embd]


# ---- 3. attention ----


def linear(x: Array, w: Weights, name: str) -> Array:
    """Multiply by a matrix [n_in, n_out] and add a bias [n_out]."""
    return x @ w[name + ".weight"] + w[name + ".bias"]  # [n_seq, n_in] -> [n_seq, n_out]


def softmax(x: Array) -> Array:
    """Turn numbers into positive ones that sum to 1 along the last axis."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))  # subtracting the max avoids overflow
    return e / e.sum(axis=-1, keepdims=True)


def split_heads(x: Array, n_head: int) -> Array:
    """Cut each token's vector into n_head pieces."""
    return x.reshape(len(x), n_head, -1).swapaxes(0, 1)  # [n_head, n_seq, head_dim]


def attention_probs(q: Array, k: Array) -> Array:
    """Return how much each query looks at each key; later keys get 0."""
    n_seq, n_total = q.shape[1], k.shape[1]
    scores = q @ k.swapaxes(1, 2) / math.sqrt(q.shape[2])  # [n_head, n_seq, n_total]
    mask = np.tri(n_seq, n_total, n_total - n_seq, dtype=bool)  # [n_seq, n_total], True: visible
    return softmax(np.where(mask, scores, -np.inf))  # [n_head, n_seq, n_total]


def attention(x: Array, w: Weights, name: str, n_head: int, cache: Cache | None = None) -> Array:
    """Let each token read from itself and the tokens before it."""
    qkv = np.split(linear(x, w, name + ".c_attn"), 3, axis=-1)  # 3 times [n_seq, n_embd]
    q, k, v = (split_heads(part, n_head) for part in qkv)  # each [n_head, n_seq, head_dim]
    if cache is not None:
        if name in cache:
            k = np.concatenate([cache[name][0], k], axis=1)  # [n_head, n_total, head_dim]
            v = np.concatenate([cache[name][1], v], axis=1)  # [n_head, n_total, head_dim]
        cache[name] = k, v
    mixed = attention_probs(q, k) @ v  # [n_head, n_seq, head_dim]
    joined = mixed.swapaxes(0, 1).reshape(x.shape)  # [n_seq, n_embd]
    return linear(joined, w, name + ".c_proj")  # [n_seq, n_embd]


# ---- 4. the MLP ----


def gelu(x: Array) -> Array:
    """Return x where it is large and about 0 where it is very negative, smooth in between."""
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def mlp(x: Array, w: Weights, name: str) -> Array:
    """Transform the vector of each token on its own."""
    hidden = gelu(linear(x, w, name + ".c_fc"))  # [n_seq, 4 * n_embd]
    return linear(hidden, w, name + ".c_proj")  # [n_seq, n_embd]


# ---- 5. the residual stream ----


def transformer_block(
    x: Array,
    w: Weights,
    name: str,
    n_head: int,
    norm: Norm = layer_norm,
    cache: Cache | None = None,
) -> Array:
    """Add attention's output to the stream, then the MLP's."""
    x = x + attention(norm(x, w, name + ".ln_1"), w, name + ".attn", n_head, cache)
    return x + mlp(norm(x, w, name + ".ln_2"), w, name + ".mlp")  # [n_seq, n_embd]


def count_blocks(w: Weights) -> int:
    """Return n_layer."""
    return sum(name.endswith(".ln_1.weight") for name in w)


# ---- 6. the head ----


def unembed(x: Array, w: Weights, norm: Norm = layer_norm) -> Array:
    """Compare each token's vector with the embedding of every token of the vocabulary."""
    return norm(x, w, "ln_f") @ w["wte.weight"].T  # [n_seq, n_vocab]


def gpt2(
    ids: list[int],
    w: Weights,
    n_head: int,
    norm: Norm = layer_norm,
    n_past: int = 0,
    cache: Cache | None = None,
) -> Array:
    """Return logits [n_seq, n_vocab]: row i says how well each token fits after token i."""
    x = embed(ids, w, n_past)  # [n_seq, n_embd]
    for block in range(count_blocks(w)):
        x = transformer_block(x, w, f"h.{block}", n_head, norm, cache)  # [n_seq, n_embd]
    return unembed(x, w, norm)  # [n_seq, n_vocab]


# ---- 7. greedy decoding ----


def generate(
    ids: list[int], w: Weights, n_head: int, n_new: int, norm: Norm = layer_norm
) -> list[int]:
    """Return n_new tokens that follow ids; each is the most likely one."""
    tokens = list(ids)
    for _ in range(n_new):
        logits = gpt2(tokens, w, n_head, norm)  # [n_seq, n_vocab]
        tokens.append(int(logits[-1].argmax()))
    return tokens[len(ids) :]


# ---- 8. the KV cache ----


def continuation(
    ids: list[int], w: Weights, n_head: int, choose: Callable = np.argmax
) -> Iterator[int]:
    """Yield the tokens that follow ids, without end. Each token is computed once."""
    cache: Cache = {}
    n_past = 0
    while True:
        logits = gpt2(ids, w, n_head, n_past=n_past, cache=cache)  # [n_seq, n_vocab]
        n_past += len(ids)
        ids = [int(choose(logits[-1]))]
        yield ids[0]


# ---- 9. sampling ----


def sampler(temperature: float, top_k: int, seed: int) -> Callable[[Array], int]:
    """Return a function that draws one of the top_k most likely ids."""
    generator = random.Random(seed)

    def choose(logits: Array) -> int:  # [n_vocab]
        kept = np.argsort(-logits, kind="stable")[:top_k]  # [top_k] ids, the most likely first
        return generator.choices(kept, softmax(logits[kept] / temperature))[0]

    return choose


# ---- 10. gen_text ----


def gen_text(prompt: str, n_tokens_to_generate: int = 40, model: Model | None = None) -> str:
    """Return the text that follows prompt, greedily."""
    tokenizer, w, n_head, eos_id = model or load()
    new_ids = islice(continuation(tokenizer.encode(prompt), w, n_head), n_tokens_to_generate)
    return tokenizer.decode(list(takewhile(lambda id: id != eos_id, new_ids)))


# ---- the numbers and the pictures of the page ----


def visible(model: Model, ids: Any) -> list[str]:
    """Return the text of each token, with a dot for a space."""
    return [model.tokenizer.decode([int(id)]).replace(" ", "·") for id in ids]


def most_likely(model: Model, logits: Array, n: int) -> list[str]:
    """Return the n most likely tokens of logits [n_vocab], each with its probability."""
    probs = softmax(logits)  # [n_vocab]
    best = np.argsort(-probs, kind="stable")[:n]
    return [f"{token} {p:.2f}" for token, p in zip(visible(model, best), probs[best], strict=True)]


def table(*rows: Any) -> None:
    """Print rows in columns, the first one aligned to the left."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for first, *others in cells:
        aligned = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        print("  ".join([first.ljust(widths[0]), *aligned]))
    print()


def numbers(row: Any, digits: int = 2) -> list[str]:
    """Format the numbers for a table."""
    return [f"{number:.{digits}f}" for number in row]


@contextmanager
def picture(path: Path, title: str, n_columns: int = 1, width: float = 7) -> Iterator[Any]:
    """Give axes to draw on, n_columns side by side, and save the picture when the block ends."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * n_columns, 5), layout="constrained")
    axes = figure.subplots(1, n_columns)
    yield axes
    figure.suptitle(title)
    figure.savefig(path, dpi=110)


def grid(
    axes: Any, values: Array, rows: Any, columns: Any, texts: Any = (), **options: Any
) -> None:
    """Draw a matrix as coloured squares: rows and columns with labels, texts in the squares."""
    image = axes.imshow(values, **{"cmap": "Blues", "aspect": "auto", "vmin": 0, **options})
    axes.set_yticks(range(len(rows)), rows)
    axes.set_xticks(range(len(columns)), columns, rotation=45)
    axes.figure.colorbar(image, ax=axes)
    for i, row in enumerate(texts):
        for j, text in enumerate(row):
            color = "white" if values[i, j] > 0.6 else "black"
            axes.text(j, i, text, ha="center", va="center", color=color)


def cosine(a: Array, b: Array) -> Array:
    """Return the cosine of the angle between each row of a and each row of b, [len(a), len(b)]."""
    return unit_rows(a) @ unit_rows(b).T


def unit_rows(x: Array) -> Array:
    """Scale each row to length 1."""
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def show_embeddings(model: Model, ids: list[int], out: Path) -> None:
    """Print and draw part 1, embeddings."""
    wte, wpe = model.w["wte.weight"], model.w["wpe.weight"]
    table(["token", *visible(model, ids)], ["id", *ids], ["position", *range(len(ids))])
    table(["wte.weight", *wte.shape], ["wpe.weight", *wpe.shape])
    words = [" king", " queen", " prince", " fox", " wolf", " red", " blue", " two", " three"]
    chosen = [model.tokenizer.encode(word)[0] for word in words]
    alike = cosine(wte[chosen], wte)  # [n_words, n_vocab]
    for row in alike[[0, 3, 5, 7]]:
        best = np.argsort(-row)[:5]
        table(["token", *visible(model, best)], ["cosine", *numbers(row[best])])
    with picture(out / "embeddings.png", "How alike two embeddings are (cosine)", 2) as (
        left,
        right,
    ):
        grid(left, alike[:, chosen], words, words)
        left.set_title("tokens")
        right.imshow(cosine(wpe, wpe), cmap="Blues")
        right.set_title("positions")


def with_fox(model: Model, ids: list[int]) -> list[list[int]]:
    """Return ids n_seq times, with " fox" in place of a different token each time."""
    (fox,) = model.tokenizer.encode(" fox")
    return [[*ids[:i], fox, *ids[i + 1 :]] for i in range(len(ids))]


def effect(model: Model, ids: list[int], norm: Norm = layer_norm) -> Array:
    """Return [n_seq, n_seq]: how far " fox" in place of token i moves the logits of token j."""
    logits = gpt2(ids, model.w, model.n_head, norm)  # [n_seq, n_vocab]
    changed = [gpt2(other, model.w, model.n_head, norm) for other in with_fox(model, ids)]
    return np.abs(np.stack(changed) - logits).max(axis=-1)


def show_layer_norm(model: Model, ids: list[int], out: Path) -> None:
    """Print and draw part 2, layer norm."""
    tokenizer, w, n_head, _ = model
    tokens, x = visible(model, ids), embed(ids, w)
    table(
        ["variance", *tokens],
        ["x", *numbers(x.var(axis=-1))],
        ["normalise(x, axis=-1)", *numbers(normalise(x, axis=-1).var(axis=-1))],
        ["normalise(x, axis=0)", *numbers(normalise(x, axis=0).var(axis=-1))],
    )
    effects = {norm.__name__: effect(model, ids, norm) for norm in (layer_norm, wrong_norm)}
    table(
        ["·king -> ·fox moves", *tokens],
        *([name, *numbers(rows[-1])] for name, rows in effects.items()),
    )
    for norm in (layer_norm, wrong_norm):
        probs = softmax(gpt2(ids, w, n_head, norm))[np.arange(len(ids) - 1), ids[1:]]
        print(f"{norm.__name__}: {np.exp(np.log(probs).mean()):.4f}")
        print(f"{PROMPT}|{tokenizer.decode(generate(ids, w, n_head, 24, norm))}\n")
    with picture(
        out / "layer_norm.png", "How far the logits move when a token becomes ·fox", 2
    ) as panels:
        for axes, (name, rows) in zip(panels, effects.items(), strict=True):
            grid(axes, rows, tokens, tokens, vmax=20)
            axes.set(title=name, ylabel="the token replaced", xlabel="the token whose logits move")


def layers(model: Model, ids: list[int]) -> Iterator[tuple[str, Array, Array]]:
    """Yield the name of each layer, what it adds and the stream afterwards, [n_seq, n_embd]."""
    w, x = model.w, embed(ids, model.w)
    yield "embedding", x, x
    for block in range(count_blocks(w)):
        h = f"h.{block}"
        added = attention(layer_norm(x, w, h + ".ln_1"), w, h + ".attn", model.n_head)
        x = x + added
        yield h + ".attn", added, x
        added = mlp(layer_norm(x, w, h + ".ln_2"), w, h + ".mlp")
        x = x + added
        yield h + ".mlp", added, x


def streams(model: Model, ids: list[int]) -> dict[str, Array]:
    """Return the stream [n_seq, n_embd] after each layer."""
    return {name: x for name, _, x in layers(model, ids)}


def show_attention(model: Model, ids: list[int], out: Path) -> None:
    """Print and draw part 3, attention."""
    tokens = visible(model, ids)
    x = layer_norm(streams(model, ids)["h.1.mlp"], model.w, "h.2.ln_1")  # [n_seq, n_embd]
    q, k, _ = np.split(linear(x, model.w, "h.2.attn.c_attn"), 3, axis=-1)
    probs = attention_probs(split_heads(q, model.n_head), split_heads(k, model.n_head))
    table(
        ["h.2, head 2", *tokens],
        *([token, *numbers(row)] for token, row in zip(tokens, probs[2], strict=True)),
    )
    with picture(out / "attention.png", "What block 2 looks at", 1 + len(probs), 5) as panels:
        grid(panels[0], np.tri(len(ids)), tokens, tokens, vmax=1)
        panels[0].set_title("the mask")
        for head, axes in enumerate(panels[1:]):
            grid(axes, probs[head], tokens, tokens, vmax=1)
            axes.set_title(f"head {head}")


def show_mlp(model: Model, ids: list[int], out: Path) -> None:
    """Print and draw part 4, the MLP."""
    points = np.arange(-3, 4)
    table(["x", *points], ["gelu(x)", *numbers(gelu(points), 3)])
    after = streams(model, ids)
    hidden = []  # of each block, before gelu: [n_seq, 4 * n_embd]
    for h in (f"h.{block}" for block in range(count_blocks(model.w))):
        x = layer_norm(after[h + ".attn"], model.w, h + ".ln_2")  # [n_seq, n_embd]
        hidden.append(linear(x, model.w, h + ".mlp.c_fc"))
    table(
        ["block", *range(len(hidden))],
        ["neurons", *(values.shape[1] for values in hidden)],
        ["above 0", *(f"{(values > 0).mean():.0%}" for values in hidden)],
    )
    with picture(out / "mlp.png", "The neurons of the MLP", 2) as (left, right):
        line = np.linspace(-4, 4, 200)
        left.plot(line, np.maximum(line, 0), "--", label="max(x, 0)")
        left.plot(line, gelu(line), label="gelu(x)")
        left.legend()
        for block, values in enumerate(hidden):
            bins = np.linspace(-8, 4, 97)
            right.hist(values.ravel(), bins, histtype="step", label=f"block {block}")
        right.set_xlabel("a neuron before gelu")
        right.legend()


def show_residual(model: Model, ids: list[int], out: Path) -> None:
    """Print and draw part 5, the residual stream."""
    norm = np.linalg.norm
    rows = [(name, norm(added[-1]), norm(x[-1])) for name, added, x in layers(model, ids)]
    table(["norm, of ·king", "added", "stream"], *([row[0], *numbers(row[1:], 1)] for row in rows))
    names, added, after = zip(*rows, strict=True)
    with picture(out / "residual.png", "The stream of the last token: Euclidean norms") as axes:
        axes.bar(names, added, label="what is added")
        axes.plot(names, after, "ko-", label="the stream afterwards")
        axes.tick_params("x", rotation=45)
        axes.legend()


def show_head(model: Model, ids: list[int], out: Path) -> None:
    """Print and draw part 6, the head."""
    tokens, depths = visible(model, ids), range(count_blocks(model.w) + 1)
    best = most_likely(model, gpt2(ids, model.w, model.n_head)[-1], 5)
    table(["after ·king", *best])
    after = {name: x for name, x in streams(model, ids).items() if not name.endswith(".attn")}
    lens = [unembed(x, model.w) for x in after.values()]  # each [n_seq, n_vocab]
    best = [visible(model, logits.argmax(axis=-1)) for logits in lens]
    table(["blocks", *tokens], *([n, *row] for n, row in zip(depths, best, strict=True)))
    probs = np.stack([softmax(logits).max(axis=-1) for logits in lens])  # [n_layer + 1, n_seq]
    with picture(out / "head.png", "The most likely next token after n blocks", width=10) as axes:
        grid(axes, probs, depths, tokens, best, vmax=1)
        axes.set_ylabel("blocks")


def show_greedy(model: Model, ids: list[int], out: Path) -> None:
    """Print and draw part 7, greedy decoding."""
    rows = []
    for token, other in zip(visible(model, ids), with_fox(model, ids), strict=True):
        logits = gpt2(other, model.w, model.n_head)[-1]  # [n_vocab]
        rows.append([f"{token} -> ·fox", *most_likely(model, logits, 3)])
    table(*rows)
    tokens, texts, best, probs = list(ids), [], [], []
    for _ in range(6):
        logits = gpt2(tokens, model.w, model.n_head)[-1]  # [n_vocab]
        texts.append(f"{model.tokenizer.decode(tokens)}|")
        best.append(most_likely(model, logits, 4))
        probs.append(np.sort(softmax(logits))[:-5:-1])  # [4]
        tokens.append(int(logits.argmax()))
    table(*([text, *row[:3]] for text, row in zip(texts, best, strict=True)))
    with picture(out / "greedy.png", "The most likely tokens of each step", width=10) as axes:
        grid(axes, np.stack(probs), range(1, 7), ["taken", "2nd", "3rd", "4th"], best, vmax=1)
        axes.set_ylabel("step")


def show_cache(model: Model, ids: list[int], out: Path) -> None:
    """Print and draw part 8, the KV cache."""
    n_new = 40
    new = islice(continuation(ids, model.w, model.n_head), n_new)
    same = list(new) == generate(ids, model.w, model.n_head, n_new)
    rows = {
        "without a cache": [len(ids) + step for step in range(n_new)],
        "with a cache": [len(ids)] + [1] * (n_new - 1),
    }
    table(
        ["tokens computed", "step 1", "step 2", f"step {n_new}", "all steps"],
        *([name, row[0], row[1], row[-1], sum(row)] for name, row in rows.items()),
    )
    print(f"the same text: {'yes' if same else 'no'}\n")
    with picture(out / "cache.png", "Tokens that the model computes") as axes:
        for name, row in rows.items():
            axes.plot(range(1, n_new + 1), np.cumsum(row), label=name)
        axes.set_xlabel("tokens generated")
        axes.legend()


def show_sampling(model: Model, ids: list[int], out: Path) -> None:
    """Print and draw part 9, sampling."""
    logits = gpt2(ids, model.w, model.n_head)[-1]  # [n_vocab]
    best = np.argsort(-logits)[:8]
    probs = {t: softmax(logits / t)[best] for t in (0.5, 1.0, 2.0)}
    table(["temperature", *visible(model, best)], *([t, *numbers(row)] for t, row in probs.items()))
    print("temperature 0.8, top_k 40")
    for seed in (1, 2, 3):
        choose = sampler(temperature=0.8, top_k=40, seed=seed)
        new = islice(continuation(ids, model.w, model.n_head, choose), 24)
        print(f"seed {seed}: {PROMPT}|{model.tokenizer.decode(list(new))}")
    print()
    with picture(out / "sampling.png", "What temperature does to the probabilities") as axes:
        for i, (t, row) in enumerate(probs.items()):
            axes.bar(np.arange(8) + 0.27 * (i - 1), row, width=0.25, label=f"temperature {t}")
        axes.set_xticks(range(8), visible(model, best))
        axes.legend()


PARTS = (
    show_embeddings, show_layer_norm, show_attention, show_mlp, show_residual, show_head,
    show_greedy, show_cache, show_sampling,
)  # fmt: skip


def main() -> None:
    """Print and draw every part."""
    parser = argparse.ArgumentParser(
        description="Print the numbers of docs/learn.md, and draw its pictures"
    )
    parser.add_argument("--out", type=Path, default=Path("learn-pictures"), help="for the pictures")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    model = load()
    ids = model.tokenizer.encode(PROMPT)
    for show in PARTS:
        print(f"---- {show.__name__.removeprefix('show_')} ----\n")
        show(model, ids, out)
    print("---- gen_text ----\n")
    print("Once upon a time|" + gen_text("Once upon a time", 40, model))
    print(f"\nThe pictures are in {out}.")


if __name__ == "__main__":
    main()
