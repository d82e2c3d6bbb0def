"""The metrics of GET /metrics, for Prometheus.

A metric that vLLM has too has vLLM's name and meaning, so that dashboards for vLLM work. A text is
counted when it ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.core import HistogramMetricFamily

from gpt2c.generate.options import Completion
from gpt2c.scheduler import Handle
from gpt2c.serve.models import ServedModel

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_MODEL: Final = ("model_name",)  # vLLM's label
_SECONDS: Final = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 600,
)  # fmt: skip
_COUNTS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)


class Metrics:
    """The metrics of one server, in a registry of its own."""

    def __init__(self) -> None:
        """Begin with all counts at 0."""
        self._registry = CollectorRegistry()
        histogram, counter = self._histogram, self._counter
        self.prompt_tokens = counter("vllm:prompt_tokens", "Prompt tokens of answered requests")
        self.generation_tokens = counter("vllm:generation_tokens", "Generated tokens")
        self.success = Counter(
            "vllm:request_success", "Finished texts", (*_MODEL, "finished_reason"),
            registry=self._registry,
        )  # fmt: skip
        self.cache_queries = counter(
            "vllm:prefix_cache_queries", "Prompt tokens of texts that began"
        )
        self.cache_hits = counter("vllm:prefix_cache_hits", "Those that the prefix cache had")
        self.latency = histogram(
            "vllm:e2e_request_latency_seconds", "From a request to the end of its answer", _SECONDS
        )
        self.first_token = histogram(
            "vllm:time_to_first_token_seconds", "From a request to a text's first token", _SECONDS
        )
        self.between_tokens = histogram(
            "vllm:inter_token_latency_seconds", "Between two tokens of a text", _SECONDS
        )
        self.queue_time = histogram(
            "vllm:request_queue_time_seconds", "What a text waited in the queue", _SECONDS
        )
        self.prefill_time = histogram(
            "vllm:request_prefill_time_seconds",
            "From a text's beginning to its first token",
            _SECONDS,
        )
        self.decode_time = histogram(
            "vllm:request_decode_time_seconds", "From a text's first token to its last", _SECONDS
        )
        self.inference_time = histogram(
            "vllm:request_inference_time_seconds",
            "From a text's beginning to its last token",
            _SECONDS,
        )
        self.request_prompt = histogram(
            "vllm:request_prompt_tokens", "Prompt tokens per request", _COUNTS
        )
        self.request_generation = histogram(
            "vllm:request_generation_tokens", "Generated tokens per text", _COUNTS
        )
        self.params_n = histogram("vllm:request_params_n", "The n of requests", _COUNTS)
        self.params_max_tokens = histogram(
            "vllm:request_params_max_tokens", "The max_tokens of requests", _COUNTS
        )
        self.passes = counter("gpt2c:passes", "Forward passes that chose tokens, per text")
        self.drafted = counter("gpt2c:drafted_tokens", "Tokens that were drafted")
        self.accepted = counter("gpt2c:accepted_tokens", "Drafted tokens that were accepted")
        self._errors = Counter(
            "gpt2c:errors", "Requests that got an error", ("status",), registry=self._registry
        )
        self.disconnects = Counter(
            "gpt2c:disconnects", "Requests whose client left", registry=self._registry
        )

    def _counter(self, name: str, help: str) -> Counter:
        return Counter(name, help, _MODEL, registry=self._registry)

    def _histogram(self, name: str, help: str, bounds: tuple[float, ...]) -> _Histogram:
        found = _Histogram(name, help, bounds)
        self._registry.register(found)
        return found

    def watch(self, models: Callable[[], list[ServedModel]]) -> None:
        """Show what runs and waits, and the memory, of all models at the time of each scrape."""

        def gauge(name: str, help: str, value: Callable[[ServedModel], float]) -> None:
            self._registry.register(_ModelGauge(name, help, models, value))

        gauge("vllm:num_requests_running", "Texts that are generated now",
              lambda s: s.scheduler.n_running)  # fmt: skip
        gauge("vllm:num_requests_waiting", "Texts that wait to be generated",
              lambda s: s.scheduler.n_waiting)  # fmt: skip
        gauge("vllm:kv_cache_usage_perc", "Used share of the KV cache, 0 to 1; 0 without a limit",
              lambda s: s.model.kv_cache_bytes / (s.model.kv_cache_limit or math.inf))  # fmt: skip
        gauge("gpt2c:kv_cache_bytes", "Memory of the KV cache", lambda s: s.model.kv_cache_bytes)
        gauge("gpt2c:weights_bytes", "Memory of the weights", lambda s: s.model.n_bytes)

    def count_request(self, name: str, n_prompt: int, n: int, max_tokens: int) -> None:
        """Count a request of a model that was accepted."""
        self.prompt_tokens.labels(name).inc(n_prompt)
        self.request_prompt.observe(name, n_prompt)
        self.params_n.observe(name, n)
        self.params_max_tokens.observe(name, max_tokens)

    def count_text(self, name: str, reason: str, completion: Completion) -> None:
        """Count a text that a model has finished."""
        n = len(completion.ids) + (completion.end_id is not None)
        self.generation_tokens.labels(name).inc(n)
        self.request_generation.observe(name, n)
        self.success.labels(name, reason).inc()
        self.passes.labels(name).inc(completion.passes)
        self.drafted.labels(name).inc(completion.drafted)
        self.accepted.labels(name).inc(completion.accepted)

    def count_times(self, name: str, began: float, n_prompt: int, handle: Handle) -> None:
        """Count the times of a text, whether it has finished or was cancelled.

        `began` is when its request came, on the clock of time.monotonic.
        """
        times = handle.times
        if times.began is None:
            return
        self.cache_queries.labels(name).inc(n_prompt)
        self.cache_hits.labels(name).inc(handle.n_cached)
        self.queue_time.observe(name, times.began - times.added)
        if not (tokens := list(times.tokens)):
            return
        self.first_token.observe(name, tokens[0] - began)
        self.prefill_time.observe(name, tokens[0] - times.began)
        self.decode_time.observe(name, tokens[-1] - tokens[0])
        self.inference_time.observe(name, tokens[-1] - times.began)
        self.between_tokens.observe(name, *np.diff(tokens).tolist())

    def count_error(self, status: int) -> None:
        """Count an answer that is an error."""
        self._errors.labels(str(status)).inc()

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)


class _ModelGauge:
    """A gauge whose values are computed for each scrape."""

    def __init__(
        self,
        name: str,
        help: str,
        models: Callable[[], list[ServedModel]],
        value: Callable[[ServedModel], float],
    ) -> None:
        self._name, self._help, self._models, self._value = name, help, models, value

    def collect(self) -> Any:
        gauge = Gauge(self._name, self._help, _MODEL, registry=None)
        for served in self._models():
            gauge.labels(served.name).set(self._value(served))
        return gauge.collect()


class _Histogram:
    """A histogram by model. Unlike prometheus_client's, it takes many values at once cheaply.

    Only the event loop uses it, so it needs no lock.
    """

    def __init__(self, name: str, help: str, bounds: Sequence[float]) -> None:
        self._name, self._help = name, help
        self._bounds = np.array([*bounds, math.inf])
        self._counts: dict[str, NDArray[np.int64]] = {}  # by model, int64 [n_bounds]
        self._sums: dict[str, float] = {}

    def observe(self, model: str, *values: float) -> None:
        """Count values."""
        counts = self._counts.setdefault(model, np.zeros(len(self._bounds), dtype=np.int64))
        np.add.at(counts, np.searchsorted(self._bounds, values), 1)
        self._sums[model] = self._sums.get(model, 0.0) + math.fsum(values)

    def collect(self) -> Any:
        family = HistogramMetricFamily(self._name, self._help, labels=_MODEL)
        shown = ["+Inf" if math.isinf(bound) else str(float(bound)) for bound in self._bounds]
        for model, counts in self._counts.items():
            buckets = list(zip(shown, np.cumsum(counts).tolist(), strict=True))
            family.add_metric([model], buckets, self._sums[model])
        return [family]
