"""Trains "tales", the small GPT-2 that ships with gpt2c, on children's prose.

    python tools/train_tales.py --corpus childrens-prose.txt

This writes the tokenizer, weights, config and model card to the output folder. It runs on a GPU if
there is one, otherwise on the CPU, where two cores need less than two hours. The seed and the
number of steps are fixed. An interrupted run continues from its last checkpoint.

Needs torch and tokenizers, and gpt2c itself, which draws the samples for the model card.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import tales_card
import tales_corpus
import torch
from check_tales import draw_samples, measure
from safetensors.torch import save
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor, nn
from torch.nn import functional as F

END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True)
class Recipe:
    """Everything that determines the result, except the corpus and the library versions."""

    seed: int = 1
    vocab_size: int = 4096
    positions: int = 512
    width: int = 256
    layers: int = 4
    heads: int = 4
    steps: int = 2000
    warmup: int = 100
    decay: float = 0.4  # the share of the steps, at the end, over which the rates fall to zero
    batch: int = 16  # windows per step
    micro_batch: int = 4  # windows per forward pass; fastest if they fit the CPU's caches
    matrix_rate: float = 0.02
    vector_rate: float = 0.003
    weight_decay: float = 0.02
    momentum: float = 0.95


class Block(nn.Module):
    """Attention and MLP, each after a layer norm, each added to its input."""

    def __init__(self, recipe: Recipe) -> None:
        """Create the layers; `GPT2` replaces torch's initial values."""
        super().__init__()
        width = recipe.width
        self.heads = recipe.heads
        self.ln_1 = nn.LayerNorm(width)
        self.c_attn = nn.Linear(width, 3 * width)
        self.attn_proj = nn.Linear(width, width)
        self.ln_2 = nn.LayerNorm(width)
        self.c_fc = nn.Linear(width, 4 * width)
        self.mlp_proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, length, width] to the same shape."""
        batch, length, width = x.shape
        qkv = self.c_attn(self.ln_1(x)).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attn_proj(attended.transpose(1, 2).reshape(batch, length, width))
        return x + self.mlp_proj(F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh"))


class GPT2(nn.Module):
    """GPT-2 with a tied head; its forward returns the loss of the next tokens."""

    def __init__(self, recipe: Recipe) -> None:
        """Draw initial weights like GPT-2's."""
        super().__init__()
        self.wte = nn.Embedding(recipe.vocab_size, recipe.width)
        self.wpe = nn.Embedding(recipe.positions, recipe.width)
        self.h = nn.ModuleList(Block(recipe) for _ in range(recipe.layers))
        self.ln_f = nn.LayerNorm(recipe.width)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                residual = name.endswith("proj.weight")
                std = 0.02 / math.sqrt(2 * recipe.layers) if residual else 0.02
                nn.init.normal_(parameter, std=std)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, ids: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
        """Return the cross entropy of `targets`, which are the ids shifted by one."""
        x = self.wte(ids) + self.wpe.weight[: ids.shape[1]]
        for block in self.h:
            x = block(x)
        logits = F.linear(self.ln_f(x), self.wte.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction=reduction)


class Muon(torch.optim.Optimizer):
    """Momentum whose update for each matrix is replaced by the nearest orthogonal matrix.

    See Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024). Matrices
    of one shape are orthogonalised together; a fused query-key-value matrix counts as three.
    """

    def __init__(self, matrices: list[Tensor], rate: float, momentum: float, decay: float) -> None:
        """Take matrices [out, in]; each step shrinks them by rate * decay."""
        super().__init__(matrices, {"lr": rate, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Update every matrix from its gradient."""
        for group in self.param_groups:
            stacks: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
            for matrix in group["params"]:
                velocity = self.state[matrix].setdefault("velocity", torch.zeros_like(matrix))
                velocity.lerp_(matrix.grad, 1 - group["momentum"])
                update = matrix.grad.lerp(velocity, group["momentum"])
                pieces = 3 if matrix.shape[0] == 3 * matrix.shape[1] else 1
                for part, change in zip(matrix.chunk(pieces), update.chunk(pieces), strict=True):
                    stacks.setdefault(tuple(part.shape), []).append((part, change))
            for (rows, columns), pairs in stacks.items():
                changes = orthogonalise(torch.stack([change for _, change in pairs]))
                scale = group["lr"] * max(1.0, rows / columns) ** 0.5
                for (part, _), change in zip(pairs, changes, strict=True):
                    part.mul_(1 - group["lr"] * group["decay"]).sub_(change, alpha=scale)


def orthogonalise(stack: Tensor) -> Tensor:
    """Bring the singular values of each matrix close to one by Newton-Schulz iteration."""
    tall = stack.shape[1] > stack.shape[2]
    x = (stack.mT if tall else stack).bfloat16()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x.mT if tall else x).to(stack.dtype)


def rate_factor(step: int, recipe: Recipe) -> float:
    """Return the factor of the learning rate: warm-up, constant, then linear decay to zero."""
    falling = (recipe.steps - step) / (recipe.decay * recipe.steps)
    return min(1.0, (step + 1) / recipe.warmup, falling)


def make_optimizers(model: GPT2, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Return AdamW for embeddings, norms and biases, and Muon for the matrices of the blocks."""
    matrices = [p for p in model.h.parameters() if p.dim() == 2]
    taken = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in taken]
    adam = torch.optim.AdamW(rest, recipe.vector_rate, betas=(0.9, 0.95), weight_decay=0.0)
    muon = Muon(matrices, recipe.matrix_rate, recipe.momentum, recipe.weight_decay)
    return [adam, muon]


def train_tokenizer(tales: list[tales_corpus.Tale], recipe: Recipe, out: Path) -> None:
    """Train a byte-level BPE and write GPT-2's files; the last id is end-of-text, as in GPT-2."""
    tokenizer = ByteLevelBPETokenizer()
    texts = (tale.text for tale in tales)
    tokenizer.train_from_iterator(texts, recipe.vocab_size - 1, show_progress=False)
    tokenizer.save_model(str(out))
    vocab = json.loads((out / "vocab.json").read_text(encoding="utf-8"))
    vocab[END_OF_TEXT] = len(vocab)
    (out / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")


def encode(tales: list[tales_corpus.Tale], out: Path) -> Tensor:
    """Return one stream of ids, with an end-of-text token before each tale and at the end."""
    tokenizer = ByteLevelBPETokenizer(str(out / "vocab.json"), str(out / "merges.txt"))
    end = tokenizer.token_to_id(END_OF_TEXT)
    ids = [end]
    for encoded in tokenizer.encode_batch([tale.text for tale in tales]):
        ids += [*encoded.ids, end]
    return torch.tensor(ids)


def draw_batch(ids: Tensor, step: int, recipe: Recipe) -> Tensor:
    """Return windows [batch, positions + 1] at random places.

    The places depend only on the seed and the step.
    """
    places = np.random.default_rng((recipe.seed, step)).integers(
        len(ids) - recipe.positions, size=recipe.batch
    )
    return torch.stack([ids[p : p + recipe.positions + 1] for p in places.tolist()])


@torch.no_grad()
def held_out_bits(model: nn.Module, ids: Tensor, recipe: Recipe, stride: int) -> float:
    """Return the bits of a stream of tales: the negative log2 of its probability.

    It is scored in full windows, each of which scores its last `stride` tokens. End-of-text tokens
    are only context, because they have no bytes.
    """
    end = int(ids[0])
    size = recipe.positions
    nats = 0.0
    for batch in windows(len(ids), size, stride, recipe.micro_batch):
        inputs = torch.stack([pad(ids[s : s + size], size, end) for s in batch])
        targets = torch.stack([pad(ids[s + 1 : s + 1 + size], size, end) for s in batch])
        losses = model(inputs, targets, reduction="none").view(targets.shape).double()
        scored = targets != end
        for row, start in enumerate(batch):
            scored[row, : size - stride if start else 0] = False
        nats += float(losses[scored].sum())
    return nats / math.log(2)


def windows(length: int, size: int, stride: int, per_batch: int) -> Iterator[list[int]]:
    """Yield batches of the start positions of windows over a stream."""
    starts = list(range(0, max(1, length - 1 - size + stride), stride))
    for first in range(0, len(starts), per_batch):
        yield starts[first : first + per_batch]


def pad(ids: Tensor, size: int, filler: int) -> Tensor:
    """Pad the ids on the right to `size`."""
    return F.pad(ids, (0, size - len(ids)), value=filler)


def bits_per_byte(
    model: nn.Module, held_out: dict[str, tuple[Tensor, int]], recipe: Recipe, stride: int
) -> dict[str, float]:
    """Return the bits per byte of each held-out book, and of all together under "all".

    `held_out` maps each book to its stream of ids and its number of UTF-8 bytes.
    """
    model.eval()
    bits = {book: held_out_bits(model, ids, recipe, stride) for book, (ids, _) in held_out.items()}
    model.train()
    sizes = {book: size for book, (_, size) in held_out.items()}
    scores = {book: bits[book] / sizes[book] for book in bits}
    return scores | {"all": sum(bits.values()) / sum(sizes.values())}


def train(
    model: GPT2,
    ids: Tensor,
    held_out: dict[str, tuple[Tensor, int]],
    recipe: Recipe,
    work: Path,
) -> list[dict[str, float]]:
    """Train in place from the last checkpoint in `work`, if any; return the curve.

    `held_out` is as in `bits_per_byte`. The curve has the step, the training loss and the held-out
    scores of each evaluation. These scores are approximate: windows without overlap, in bfloat16.
    """
    device = ids.device
    optimizers = make_optimizers(model, recipe)
    base_rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    first, curve = load_checkpoint(work, model, optimizers)
    forward = torch.compile(model)
    recent: list[float] = []
    started = time.monotonic()
    for step in range(first, recipe.steps):
        factor = rate_factor(step, recipe)
        for optimizer, rate in zip(optimizers, base_rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * factor
        batch = draw_batch(ids, step, recipe)
        parts = batch.split(recipe.micro_batch)
        total = 0.0
        for part in parts:
            with torch.autocast(device.type, torch.bfloat16):
                loss = forward(part[:, :-1], part[:, 1:]) / len(parts)
            loss.backward()
            total += loss.item()
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad()
        recent.append(total)
        done = step + 1
        if done % 20 == 0:
            rate = (done - first) * batch[:, 1:].numel() / (time.monotonic() - started)
            print(
                f"step {done}  loss {sum(recent[-20:]) / 20:.4f}  {rate:.0f} tokens/s", flush=True
            )
        if done % 400 == 0 or done in (200, recipe.steps):
            with torch.autocast(device.type, torch.bfloat16):
                scores = bits_per_byte(model, held_out, recipe, stride=recipe.positions)
            curve.append({"step": done, "train_loss": sum(recent) / len(recent), **scores})
            recent.clear()
            print(json.dumps(curve[-1]), flush=True)
        if done % 200 == 0 or done == recipe.steps:
            save_checkpoint(work, model, optimizers, done, curve)
    return curve


def save_checkpoint(
    work: Path,
    model: GPT2,
    optimizers: list[torch.optim.Optimizer],
    step: int,
    curve: list[dict[str, float]],
) -> None:
    """Write a checkpoint atomically: an interrupted run keeps the previous one."""
    state = {
        "model": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "step": step,
        "curve": curve,
    }
    torch.save(state, work / "checkpoint.tmp")
    (work / "checkpoint.tmp").replace(work / "checkpoint.pt")


def load_checkpoint(
    work: Path, model: GPT2, optimizers: list[torch.optim.Optimizer]
) -> tuple[int, list[dict[str, float]]]:
    """Restore the last checkpoint, if any; return the number of steps and the curve so far."""
    path = work / "checkpoint.pt"
    if not path.exists():
        return 0, []
    state = torch.load(path, map_location="cpu")
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    print(f"continuing from step {state['step']}")
    return state["step"], state["curve"]


def tensors_of(model: GPT2) -> dict[str, Tensor]:
    """Return the weights in float16 under GPT-2's names, with matrices as [in, out]."""
    names = {"attn_proj": "attn.c_proj", "mlp_proj": "mlp.c_proj", "c_attn": "attn.c_attn"}
    names["c_fc"] = "mlp.c_fc"
    tensors = {}
    for name, value in model.state_dict().items():
        *path, kind = name.split(".")
        path = [names.get(part, part) for part in path]
        is_linear = path[0] == "h" and value.dim() == 2
        tensor = value.T if is_linear else value
        tensors[".".join(["transformer", *path, kind])] = tensor.half().contiguous().cpu()
    return tensors


def config_of(recipe: Recipe) -> dict[str, object]:
    """Return the config.json that transformers would write."""
    end = recipe.vocab_size - 1
    return {
        "activation_function": "gelu_new",
        "architectures": ["GPT2LMHeadModel"],
        "bos_token_id": end,
        "dtype": "float16",
        "eos_token_id": end,
        "layer_norm_epsilon": 1e-05,
        "model_type": "gpt2",
        "n_ctx": recipe.positions,
        "n_embd": recipe.width,
        "n_head": recipe.heads,
        "n_inner": None,
        "n_layer": recipe.layers,
        "n_positions": recipe.positions,
        "tie_word_embeddings": True,
        "vocab_size": recipe.vocab_size,
    }


def export(model: GPT2, recipe: Recipe, out: Path) -> None:
    """Write model.safetensors and config.json."""
    weights = save(tensors_of(model), metadata={"format": "pt"})
    (out / "model.safetensors").write_bytes(weights)  # save_file would make it private to its owner
    config = json.dumps(config_of(recipe), indent=2)
    (out / "config.json").write_text(config + "\n", encoding="utf-8")


def main() -> None:
    """Train the tokenizer and the model; export, score, check and describe it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("src/gpt2c/models/tales"))
    arguments = parser.parse_args()
    recipe, out = Recipe(), arguments.out
    work = out.parent / (out.name + ".work")
    out.mkdir(parents=True, exist_ok=True)
    work.mkdir(exist_ok=True)
    torch.set_num_threads(min(2, torch.get_num_threads()))
    torch.manual_seed(recipe.seed)

    corpus = tales_corpus.load(arguments.corpus)
    train_tokenizer(corpus.train, recipe, out)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    ids = encode(corpus.train, out).to(device)
    held_out = {
        book: (encode(tales, out).to(device), sum(len(tale.text.encode()) for tale in tales))
        for book, tales in corpus.held_out.items()
    }
    print(f"{len(corpus.train)} tales, {len(ids)} tokens to train on, on {device}", flush=True)
    model = GPT2(recipe).to(device)
    curve = train(model, ids, held_out, recipe, work)
    (work / "curve.json").write_text(json.dumps(curve, indent=1) + "\n", encoding="utf-8")
    export(model, recipe, out)

    model.half().float()  # score the stored float16 weights
    samples = draw_samples(out)
    facts = tales_card.Facts(
        recipe=asdict(recipe),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        training_tokens=len(ids),
        corpus=corpus,
        curve=curve,
        scores=bits_per_byte(model, held_out, recipe, stride=recipe.positions // 2),
        measures=measure(samples, [tale.text for tale in corpus.train]),
        samples=samples[:3],
    )
    (out / "MODEL_CARD.md").write_text(tales_card.model_card(facts), encoding="utf-8")
    print(facts.scores, facts.measures)


if __name__ == "__main__":
    main()
