"""The metrics of GET /metrics, for Prometheus.

A metric that vLLM has too has vLLM's name and meaning, so that dashboards for vLLM work. Times of
first tokens and between tokens are those of streams: only their clients see single tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from gpt2c.generate.options import Completion
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
        self.first_token = histogram(
            "vllm:time_to_first_token_seconds", "From a stream's request to a first token", _SECONDS
        )
        self.between_tokens = histogram(
            "vllm:inter_token_latency_seconds", "Between two tokens of a streamed text", _SECONDS
        )
        self.latency = histogram(
            "vllm:e2e_request_latency_seconds", "From a request to the end of its answer", _SECONDS
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

    def _histogram(self, name: str, help: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, help, _MODEL, buckets=buckets, registry=self._registry)

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
        self.request_prompt.labels(name).observe(n_prompt)
        self.params_n.labels(name).observe(n)
        self.params_max_tokens.labels(name).observe(max_tokens)

    def count_text(self, name: str, reason: str, completion: Completion) -> None:
        """Count a text that a model has finished."""
        n = len(completion.ids) + (completion.end_id is not None)
        self.generation_tokens.labels(name).inc(n)
        self.request_generation.labels(name).observe(n)
        self.success.labels(name, reason).inc()
        self.passes.labels(name).inc(completion.passes)
        self.drafted.labels(name).inc(completion.drafted)
        self.accepted.labels(name).inc(completion.accepted)

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
