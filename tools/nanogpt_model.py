"""A GPT made of nn.Linear with nanoGPT's names, for the fixtures of nanoGPT's family.

nanoGPT, build-nanogpt and minGPT are not packages, so this module rewrites their model files with
the same modules, names and arithmetic. Arguments select where the three differ: the form of GELU,
the tied head, and the buffer for the causal mask.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn


@dataclass
class GPTConfig:
    block_size: int = 6
    vocab_size: int = 11
    n_layer: int = 2
    n_head: int = 2
    n_embd: int = 8


class LayerNorm(nn.Module):
    def __init__(self, width: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-5)


class Attention(nn.Module):
    def __init__(self, config: GPTConfig, bias: bool, mask: bool) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=bias)
        if mask:
            lower = torch.tril(torch.ones(config.block_size, config.block_size))
            self.register_buffer("bias", lower[None, None])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, n, width = x.shape
        heads = [
            part.view(rows, n, self.n_head, width // self.n_head).transpose(1, 2)
            for part in self.c_attn(x).split(width, dim=2)
        ]
        y = nn.functional.scaled_dot_product_attention(*heads, is_causal=True)
        return self.c_proj(y.transpose(1, 2).reshape(rows, n, width))


class MLP(nn.Module):
    def __init__(self, config: GPTConfig, bias: bool, approximate: str) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=bias)
        self.gelu = nn.GELU(approximate=approximate)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c_proj(self.gelu(self.c_fc(x)))


class Block(nn.Module):
    def __init__(self, config: GPTConfig, bias: bool, approximate: str, mask: bool) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(config.n_embd, bias)
        self.attn = Attention(config, bias, mask)
        self.ln_2 = LayerNorm(config.n_embd, bias)
        self.mlp = MLP(config, bias, approximate)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    def __init__(
        self, config: GPTConfig, *, bias: bool = True, exact_gelu: bool = True, tied: bool = True,
        mask: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        approximate = "none" if exact_gelu else "tanh"
        blocks = [Block(config, bias, approximate, mask) for _ in range(config.n_layer)]
        self.config = config
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.vocab_size, config.n_embd),
                "wpe": nn.Embedding(config.block_size, config.n_embd),
                "h": nn.ModuleList(blocks),
                "ln_f": LayerNorm(config.n_embd, bias),
            }
        )
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if tied:
            self.transformer.wte.weight = self.lm_head.weight
        with torch.no_grad():  # larger than usual initial weights, so that logits differ
            for name, parameter in self.named_parameters():
                offset = 1.0 if "ln_" in name and name.endswith("weight") else 0.0
                parameter.copy_(offset + torch.randn_like(parameter) / math.sqrt(10))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.transformer.wte(ids) + self.transformer.wpe(torch.arange(ids.shape[1]))
        for block in self.transformer.h:
            x = block(x)
        return self.lm_head(self.transformer.ln_f(x))
