"""The table of endpoints: routes, the OpenAPI page and tests are made from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from gpt2c.serve import completion_fields, scoring, tokenizing
from gpt2c.serve.fields import Body


@dataclass(frozen=True)
class Endpoint:
    """An endpoint.

    handler
        The name of its method of app.Endpoints.
    answer
        The name of its answer's schema in answers.SCHEMAS, or a media type that is not JSON; None
        if every answer is an error.
    """

    method: str
    path: str
    handler: str
    what: str
    answer: str | None
    body: Body | None = None
    query: str | None = None  # the name of the only parameter


ENDPOINTS: Final = (
    Endpoint("POST", "/v1/completions", "completions", "Continues prompts, and scores them.",
             "Completion", completion_fields.BODY),
    Endpoint("POST", "/v1/chat/completions", "chat",
             "Always an error: GPT-2 has no chat format; send a prompt to /v1/completions.", None),
    Endpoint("POST", "/v1/embeddings", "embeddings", "Embeds texts.", "Embeddings",
             scoring.EMBEDDINGS),
    Endpoint("POST", "/score", "score", "Scores each continuation given its context: pairs, or one "
             "of either with each of the other.", "Scores", scoring.SCORE),
    Endpoint("POST", "/tokenize", "tokenize", "Encodes a text.", "Tokens", tokenizing.TOKENIZE),
    Endpoint("POST", "/detokenize", "detokenize", "Decodes token ids.", "Text",
             tokenizing.DETOKENIZE),
    Endpoint("GET", "/tokenizer_info", "tokenizer_info", "Describes a model's tokenizer.",
             "TokenizerInfo", query="model"),
    Endpoint("GET", "/v1/models", "list_models", "Lists the models and their aliases.", "Models"),
    Endpoint("GET", "/v1/models/{name}", "one_model", "Describes one model.", "Model"),
    Endpoint("GET", "/health", "health", "Whether requests are answered: 503 while the models load "
             "or the server stops. Needs no API key.", "Health"),
    Endpoint("GET", "/metrics", "show_metrics", "Metrics for Prometheus.", "text/plain"),
    Endpoint("GET", "/version", "version", "gpt2c's version, and that of its arithmetic.",
             "Version"),
    Endpoint("GET", "/openapi.json", "openapi", "This API, as OpenAPI 3.1 describes it.",
             "OpenAPI"),
    Endpoint("GET", "/docs", "docs", "The same for people.", "text/html"),
)  # fmt: skip
