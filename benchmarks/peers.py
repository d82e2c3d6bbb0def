"""An adapter for each engine, with the methods of `Engine`.

This module imports almost nothing. Each adapter imports its engine in its constructor, because any
other import would count towards that engine's time to the first token.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Any

Ids = list[int]


class Engine:
    """A loaded model. Class attributes say what an engine can do without loading it."""

    packages: tuple[str, ...] = ()  # their versions are reported
    files = "plain"  # the kind of files that it loads: a key of convert.py's CONVERTERS
    is_float32 = True  # it computes in float32, so its greedy ids should equal gpt2c's
    runs_batches = True  # it runs several prompts together
    runs_single_prompts = True  # it takes a single prompt, as ids
    why_no_first_token = ""  # why its first token is not measured; "" if it is

    def __init__(self, folder: str, threads: int) -> None:
        raise NotImplementedError

    def generate(self, prompts: list[Ids], n_new: int) -> list[Ids]:
        """Return exactly n_new greedy ids for each prompt."""
        raise NotImplementedError

    def first(self, prompt: Ids) -> int:
        """Return the first id, in the way that is fastest in a fresh process."""
        return self.generate([prompt], 1)[0][0]

    def timed(self, prompts: list[Ids], n_new: int) -> tuple[float, list[Ids]]:
        """Return the seconds that `generate` took, and its ids."""
        begin = time.perf_counter()
        ids = self.generate(prompts, n_new)
        seconds = time.perf_counter() - begin
        if [len(one) for one in ids] != [n_new] * len(prompts):
            raise RuntimeError(f"expected {n_new} ids per prompt, got {[len(one) for one in ids]}")
        return seconds, ids

    def roofline(self) -> dict[str, float]:
        """Return n_bytes of the model and the machine's stream_rate and multiply_add_rate.

        The result is empty if the engine does not measure them.
        """
        return {}

    def encode(self, text: str) -> Ids:
        """Return the ids of a text."""
        raise NotImplementedError

    def score(self, ids: Ids, stride: int) -> float:
        """Return the total log-probability of ids, in windows that start every `stride` tokens."""
        raise NotImplementedError


class Gpt2c(Engine):
    packages = ("gpt2c",)
    dtype = "float32"
    draft: str | None = None

    def __init__(self, folder: str, threads: int) -> None:
        import gpt2c

        self.model = gpt2c.GPT2.from_pretrained(folder, dtype=self.dtype, threads=threads)

    def generate(self, prompts: list[Ids], n_new: int) -> list[Ids]:
        options: Any = {"max_new_tokens": n_new, "draft": self.draft}
        if len(prompts) == 1:  # as a user would call it
            return [self.model.generate(prompts[0], **options)]
        return self.model.generate(prompts, **options)

    def first(self, prompt: Ids) -> int:
        return next(self.model.stream(prompt))

    def encode(self, text: str) -> Ids:
        return self.model.tokenizer.encode(text)

    def score(self, ids: Ids, stride: int) -> float:
        return self.model.score(ids, stride=stride).total

    def roofline(self) -> dict[str, float]:
        engine: Any = self.model._engine
        found = {"n_bytes": float(self.model.n_bytes)}
        for name in ("stream_rate", "multiply_add_rate"):
            if hasattr(engine, name):
                found[name] = getattr(engine, name)()
        return found


class Gpt2cInt8(Gpt2c):
    files = "gpt2c-int8"
    is_float32 = False
    dtype = "int8"


class Gpt2cInt4(Gpt2cInt8):
    files = "gpt2c-int4"
    dtype = "int4"


class Gpt2cF16(Gpt2c):
    """Float32 from the GGUF file that llama.cpp-f16 loads. Its matrices stay in 16 bits."""

    files = "gguf-f16"
    is_float32 = False  # the file's weights are rounded

    def __init__(self, folder: str, threads: int) -> None:
        super().__init__(os.path.join(folder, "model.gguf"), threads)


class Gpt2cBF16(Gpt2cF16):
    files = "gguf-bf16"


class Gpt2cDraft(Gpt2c):
    """Float32 with draft="auto". Random weights generate repetitive text, which favours it."""

    draft = "auto"


class TorchEager(Engine):
    packages = ("transformers", "torch")

    def __init__(self, folder: str, threads: int) -> None:
        import torch
        from transformers import GPT2LMHeadModel

        torch.set_num_threads(threads)
        self.torch = torch
        self.model = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32).eval()

    def generate(self, prompts: list[Ids], n_new: int) -> list[Ids]:
        ids = self.torch.tensor(prompts)
        with self.torch.inference_mode():
            out = self.model.generate(
                ids, attention_mask=self.torch.ones_like(ids), max_new_tokens=n_new,
                do_sample=False, eos_token_id=None, pad_token_id=0,
                **self.extra_options(ids, n_new),
            )  # fmt: skip
        return out[:, ids.shape[1] :].tolist()

    def extra_options(self, ids: Any, n_new: int) -> dict[str, Any]:
        """Return additional options for transformers' generate."""
        return {}

    def score(self, ids: Ids, stride: int) -> float:
        longest, total, previous = self.model.config.n_positions, 0.0, 0
        for begin in range(0, len(ids), stride):
            end = min(begin + longest, len(ids))
            window = self.torch.tensor(ids[begin:end])
            first = max(previous, begin + 1) - begin  # the window's first scored token
            with self.torch.inference_mode():
                logits = self.model(window[None], use_cache=False).logits[0, first - 1 : -1]
                chosen = self.torch.log_softmax(logits, dim=-1).gather(1, window[first:, None])
            total += float(chosen.sum(dtype=self.torch.float64))
            previous = end
            if end == len(ids):
                break
        return total


class TorchCompiled(TorchEager):
    why_no_first_token = "it first compiles for half a minute"

    def __init__(self, folder: str, threads: int) -> None:
        super().__init__(folder, threads)
        from transformers import CompileConfig

        # One graph per shape; without dynamic=False the second shape gets a slower graph.
        self.compile = CompileConfig(fullgraph=False, dynamic=False, mode="default")
        self.compile._compile_all_devices = True  # otherwise CPUs are skipped, with a warning

    def extra_options(self, ids: Any, n_new: int) -> dict[str, Any]:
        from transformers import StaticCache

        # The cache that generate creates keeps the longest length so far and attends to all of it.
        cache = StaticCache(config=self.model.config, max_cache_len=ids.shape[1] + n_new)
        return {"past_key_values": cache, "compile_config": self.compile}


class LlamaCpp(Engine):
    packages = ("llama-cpp-python",)
    files = "gguf"
    runs_batches = False  # its Python bindings run one sequence at a time

    def __init__(self, folder: str, threads: int) -> None:
        from llama_cpp import Llama

        # Flash attention with the default cache was llama.cpp's fastest setting here.
        self.model = Llama(
            os.path.join(folder, "model.gguf"), n_ctx=0, n_batch=1024, n_threads=threads,
            n_threads_batch=threads, flash_attn=True, logits_all=False, verbose=False,
        )  # fmt: skip

    def generate(self, prompts: list[Ids], n_new: int) -> list[Ids]:
        return [self.generate_one(prompt, n_new) for prompt in prompts]

    def generate_one(self, prompt: Ids, n_new: int) -> Ids:
        self.model.reset()  # otherwise it reuses the last prompt's cache
        ids = self.model.generate(prompt, temp=0.0)
        return [next(ids) for _ in range(n_new)]


class LlamaCppF16(LlamaCpp):
    files = "gguf-f16"
    is_float32 = False


class LlamaCppBF16(LlamaCppF16):
    files = "gguf-bf16"


class LlamaCppQ8(LlamaCpp):
    files = "gguf-q8_0"
    is_float32 = False


class LlamaCppQ4(LlamaCpp):
    files = "gguf-q4_0"
    is_float32 = False


class LlamaBatchedBench(Engine):
    """llama.cpp's own program. It chooses its own prompts and ids, and does not sample."""

    files = "gguf"
    runs_single_prompts = False
    why_no_first_token = "it runs only batches"

    def __init__(self, folder: str, threads: int) -> None:
        self.program = os.environ["LLAMA_BATCHED_BENCH"]
        self.options = ["-m", os.path.join(folder, "model.gguf"), "-t", str(threads)]
        self.options += ["-tb", str(threads), "-b", "2048", "--output-format", "jsonl"]

    def timed(self, prompts: list[Ids], n_new: int) -> tuple[float, list[Ids]]:
        n, length = len(prompts), len(prompts[0])
        # The prefill gives each prompt its first token, so n_new - 1 steps remain.
        shape = ["-npp", str(length), "-ntg", str(n_new - 1), "-npl", str(n)]
        context = ["-c", str(n * 256 * (1 + (length + n_new) // 256))]
        command = [self.program, *self.options, *shape, *context]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=sys.stderr)
        lines = [line for line in done.stdout.decode().splitlines() if line.startswith("{")]
        return float(json.loads(lines[-1])["t"]), []


class CTranslate2(Engine):
    packages = ("ctranslate2",)
    files = "ctranslate2"
    compute = "float32"

    def __init__(self, folder: str, threads: int) -> None:
        for unused in ("torch", "transformers"):  # only its converters need them
            sys.modules[unused] = None  # type: ignore[assignment]
        import ctranslate2

        self.model = ctranslate2.Generator(
            folder, device="cpu", compute_type=self.compute, inter_threads=1, intra_threads=threads
        )

    def generate(self, prompts: list[Ids], n_new: int) -> list[Ids]:
        tokens = [[f"t{i}" for i in prompt] for prompt in prompts]
        found = self.model.generate_batch(
            tokens, min_length=n_new, max_length=n_new, include_prompt_in_result=False
        )
        return [one.sequences_ids[0] for one in found]


class CTranslate2Int8(CTranslate2):
    files = "ctranslate2-int8"
    is_float32 = False
    compute = "int8"


class OpenVINO(Engine):
    packages = ("openvino-genai", "openvino")
    files = "openvino"
    options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}  # noqa: RUF012

    def __init__(self, folder: str, threads: int) -> None:
        import numpy
        import openvino
        import openvino_genai

        self.numpy, self.tensor, self.genai = numpy, openvino.Tensor, openvino_genai
        # Use continuous batching for one prompt too: one prompt runs as fast as without it, and
        # batches run faster. Prefix caching is off, because the decode rate is computed from the
        # difference in time between two runs of one prompt.
        schedule = openvino_genai.SchedulerConfig()
        schedule.enable_prefix_caching = False
        schedule.max_num_batched_tokens = 2048
        self.model = openvino_genai.LLMPipeline(
            folder, "CPU", scheduler_config=schedule, INFERENCE_NUM_THREADS=threads, **self.options
        )

    def generate(self, prompts: list[Ids], n_new: int) -> list[Ids]:
        ids = self.numpy.array(prompts)
        inputs = self.genai.TokenizedInputs(
            self.tensor(ids), self.tensor(self.numpy.ones_like(ids))
        )
        config = self.genai.GenerationConfig(max_new_tokens=n_new, ignore_eos=True, do_sample=False)
        return self.model.generate(inputs, config).tokens


class OpenVINODefault(OpenVINO):
    is_float32 = False  # it computes in bfloat16 if the CPU can
    options: dict[str, Any] = {}  # noqa: RUF012


class OpenVINOInt8(OpenVINODefault):
    files = "openvino-int8"


class OpenVINOInt4(OpenVINODefault):
    files = "openvino-int4"


ENGINES: dict[str, type[Engine]] = {
    "gpt2c": Gpt2c,
    "gpt2c-draft": Gpt2cDraft,
    "gpt2c-int8": Gpt2cInt8,
    "gpt2c-int4": Gpt2cInt4,
    "torch-eager": TorchEager,
    "torch-compiled": TorchCompiled,
    "llama.cpp": LlamaCpp,
    "llama-batched-bench": LlamaBatchedBench,
    "ctranslate2": CTranslate2,
    "openvino-f32": OpenVINO,
    "openvino-default": OpenVINODefault,
    "gpt2c-f16": Gpt2cF16,
    "gpt2c-bf16": Gpt2cBF16,
    "llama.cpp-f16": LlamaCppF16,
    "llama.cpp-bf16": LlamaCppBF16,
    "llama.cpp-q8_0": LlamaCppQ8,
    "llama.cpp-q4_0": LlamaCppQ4,
    "ctranslate2-int8": CTranslate2Int8,
    "openvino-int8": OpenVINOInt8,
    "openvino-int4": OpenVINOInt4,
}
# The default for compare.py --engines.
DEFAULT_ENGINES = (
    "gpt2c", "torch-eager", "torch-compiled", "llama.cpp", "llama-batched-bench", "ctranslate2",
    "openvino-f32", "openvino-default",
)  # fmt: skip
