"""Makes requests with some of the server's fields, and mutates them, for the fuzz and the traces.

A mutation changes a request at one level, from the values of single fields to the bytes of HTTP's
framing. Input `number` of a seed is always the same bytes.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

from fuzzing import mutated
from http_client import as_json, request_bytes

from gpt2c.serve.completion_fields import FIELDS, REFUSED

KEY = "a-key-for-the-fuzzer"  # what valid inputs send


# ---- valid requests ----

WORDS = [
    "the",
    " king",
    "é",
    "\n",
    "<|endoftext|>",
    " daughter",
    "a b c",
    "日本",
    "\U0001f600",
    "x",
]


def _text(rng: random.Random) -> str:
    return "".join(rng.choice(WORDS) for _ in range(rng.choice((0, 1, 2, 3, 6))))


def _ids(rng: random.Random) -> list[int]:
    return [rng.randrange(270) for _ in range(rng.choice((0, 1, 2, 5)))]


def _prompts(rng: random.Random) -> Any:
    kind = rng.randrange(6)
    if kind < 3:
        return _text(rng)
    if kind == 3:
        return [_text(rng) for _ in range(rng.choice((1, 2, 3)))]
    if kind == 4:
        return _ids(rng) or [1]
    return [_ids(rng) for _ in range(rng.choice((1, 2, 3)))]


def _number(low: float, high: float) -> Callable[[random.Random], Any]:
    return lambda rng: rng.choice((low, high, round(rng.uniform(low, high), 3)))


# Makes a value of each field of a completion, mostly a valid one.
VALUES: dict[str, Callable[[random.Random], Any]] = {
    "model": lambda rng: rng.choice(("tiny", "t", "tiny", "gpt-4")),
    "max_tokens": lambda rng: rng.choice((0, 1, 2, 4, 9)),
    "temperature": lambda rng: rng.choice((0, 0, 0.5, 1, 1e-9, 100)),
    "top_p": _number(0, 1), "n": lambda rng: rng.choice((1, 1, 2, 6)),
    "best_of": lambda rng: rng.choice((1, 2, 6)), "echo": lambda rng: rng.random() < 0.7,
    "logprobs": lambda rng: rng.choice((0, 1, 3, 8)),
    "stop": lambda rng: rng.choice(("the", ["a", "é"], "\n", ["\U0001f600"])),
    "stream": lambda rng: rng.random() < 0.7,
    "stream_options": lambda rng: {"include_usage": rng.random() < 0.7},
    "seed": lambda rng: rng.choice((0, 7, 2**64 - 1)),
    "presence_penalty": _number(-2, 2), "frequency_penalty": _number(-2, 2),
    "logit_bias": lambda rng: {str(rng.randrange(270)): rng.choice((-100, 100, 0.5))},
    "user": _text, "top_k": lambda rng: rng.choice((-1, 0, 1, 40)), "min_p": _number(0, 1),
    "repetition_penalty": _number(0.01, 100), "min_tokens": lambda rng: rng.choice((0, 1, 3)),
    "stop_token_ids": _ids, "ignore_eos": lambda rng: rng.random() < 0.7,
    "bad_words": lambda rng: [rng.choice(("the", "king", " "))],
    "allowed_token_ids": lambda rng: _ids(rng) or [3],
    "truncate_prompt_tokens": lambda rng: rng.choice((-1, 1, 5)),
    "truncation_side": lambda rng: rng.choice(("left", "right")),
    "add_special_tokens": lambda rng: rng.random() < 0.5,
    "priority": lambda rng: rng.choice((0, 1, 9)),
    "request_id": lambda rng: rng.choice(("a", "A-_.:9" * 10)),
    "return_tokens_as_token_ids": lambda rng: rng.random() < 0.7,
    "return_token_ids": lambda rng: rng.random() < 0.7,
    "parse_special": lambda rng: rng.random() < 0.5, "typical_p": _number(0, 1),
    "top_n_sigma": _number(0, 10), "xtc_probability": _number(0, 1),
    "xtc_threshold": _number(0, 1), "mirostat_tau": _number(0, 100), "mirostat_eta": _number(0, 10),
    "dry_multiplier": _number(0, 100), "dry_base": _number(1, 100),
    "dry_allowed_length": lambda rng: rng.choice((1, 2, 5)),
    "dry_penalty_last_n": lambda rng: rng.choice((-1, 1, 20)),
    "dry_sequence_breakers": lambda rng: ["\n", "a"],
    "t_max_predict_ms": lambda rng: rng.choice((1, 50)), "epsilon_cutoff": _number(0, 1),
    "eta_cutoff": _number(0, 1), "no_repeat_ngram_size": lambda rng: rng.choice((0, 1, 3)),
    "suppress_tokens": _ids,
}  # fmt: skip


def completion(rng: random.Random) -> dict[str, Any]:
    """Return a body for /v1/completions with some of its fields, by itself mostly valid."""
    body: dict[str, Any] = {"prompt": _prompts(rng), "max_tokens": rng.choice((0, 1, 2, 3, 5))}
    for name in rng.sample(sorted(VALUES), rng.choice((0, 1, 2, 3, 5, 12))):
        body[name] = VALUES[name](rng)
    if "stream_options" in body:
        body["stream"] = True
    return body


def valid(rng: random.Random) -> tuple[str, str, dict[str, Any] | None]:
    """Return the method, the path and the body of a request."""
    kind = rng.randrange(20)
    if kind < 11:
        return "POST", "/v1/completions", completion(rng)
    if kind < 13:
        body = {"context": _prompts(rng), "continuation": _prompts(rng)}
        if rng.randrange(2):
            body |= {"logprobs": rng.choice((0, 3)), "parse_special": rng.random() < 0.5}
        return "POST", "/score", body
    if kind < 15:
        encoding = rng.choice(("float", "base64"))
        return "POST", "/v1/embeddings", {"input": _prompts(rng), "encoding_format": encoding}
    if kind == 15:
        body = {"prompt": _text(rng), "return_token_strs": rng.random() < 0.5}
        return "POST", "/tokenize", body
    if kind == 16:
        return "POST", "/detokenize", {"tokens": _ids(rng)}
    if kind == 17:
        return "POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}
    paths = ("/v1/models", "/v1/models/tiny", "/health", "/version", "/tokenizer_info", "/metrics")
    return "GET", rng.choice(paths), None


# ---- mutations, from the values of fields to the bytes of the connection ----

ODD: list[Any] = [
    None, True, False, 0, -0.0, 1, -1, 2, 0.5, -0.5, 1e-320, 1e308, -1e308, 2**31 - 1, 2**31,
    -(2**31), 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30, "", " ", "a", "0", "-1",
    "NaN", "true", "null", "\0", "\ufeff", "\ud800", "\udfff", "\u202e", "e\u0301", "\U0010ffff",
    "<|endoftext|>", "../../etc/passwd", "http://127.0.0.1/", "{{7*7}}", "%s%n", "\r\nX: y",
    [], [[]], [[[]]], {}, {"": None}, [None], [True], [1, "a"], ["a", 1], [-1], [2**31], [1.5],
    {"a": 1}, {"1": "a"}, {"-1": 1}, {"1": 101}, {"٣": 1}, {"0": 1, "00": 1}, [""], ["a"] * 70,
    "a" * 300, "é" * 5000, list(range(300)), [[1] * 100] * 20, {str(i): 1 for i in range(80)},
]  # fmt: skip


def _nodes(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of all values in a JSON value."""
    found = [path]
    if isinstance(value, dict | list):
        children = value.items() if isinstance(value, dict) else enumerate(value)
        for key, child in children:
            found += _nodes(child, (*path, key))
    return found


def _replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = _replaced(value[path[0]], path[1:], new)
    return copy


def _dump(value: Any, rng: random.Random) -> bytes:
    """Return JSON; strings with lone surrogates are escaped, others sometimes."""
    try:
        return json.dumps(value, ensure_ascii=rng.random() < 0.3).encode()
    except UnicodeEncodeError:
        return json.dumps(value).encode()


def _mutate_types(rng: random.Random, body: dict[str, Any]) -> bytes:
    changed: Any = body
    for _ in range(rng.choice((1, 1, 2))):
        changed = _replaced(changed, rng.choice(_nodes(changed)), rng.choice(ODD))
    return _dump(changed, rng)


@cache
def _names() -> list[str]:
    return [*(f.name for f in FIELDS), *REFUSED, "", "promt", "Prompt", "constructor", "a" * 300]


def _mutate_fields(rng: random.Random, body: dict[str, Any]) -> bytes:
    changed = dict(body)
    for _ in range(rng.choice((1, 1, 2, 4))):
        name = rng.choice(_names())
        if name in VALUES and rng.random() < 0.5:
            changed[name] = VALUES[name](rng)
        else:
            changed[name] = rng.choice(ODD)
    return _dump(changed, rng)


def _mutate_unicode(rng: random.Random, body: dict[str, Any]) -> bytes:
    odd = (
        b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82", b"\0",
        b"\xef\xbb\xbf",
        b"\\ud83d", b"\\ude00", b"\\u0000", b"\\ud83d\\ude00", b"\xcc\x81" * 40, b"\xe2\x80\xae",
        b"\\uFFFE", b"\\u12", b"\\x41", b"<|endoftext|>", b"\xf0\x9f\x98\x80", b"\\", b"\x7f",
        b"\x1b[2J",
    )  # fmt: skip
    raw = bytearray(_dump(body, rng))
    if rng.random() < 0.1:
        return bytes(raw).decode().encode(rng.choice(("utf-16", "utf-16-le", "utf-32", "utf-7")))
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(raw) + 1)
        if rng.random() < 0.7:  # mostly within strings
            quotes = [i + 1 for i, byte in enumerate(raw) if byte == 34]
            at = rng.choice(quotes) if quotes else at
        raw[at:at] = rng.choice(odd)
    return bytes(raw)


def _mutate_syntax(rng: random.Random, body: dict[str, Any]) -> bytes:
    raw = _dump(body, rng)
    kind = rng.randrange(10)
    if kind == 0:
        depth = rng.choice((10, 31, 32, 33, 100, 5000))
        return b'{"prompt":' + b"[" * depth + b"]" * rng.choice((depth, depth - 1, 0)) + b"}"
    if kind == 1:
        return raw[:-1] + b',"prompt":"b"}'
    if kind == 2:
        return raw[: rng.randrange(len(raw))]
    if kind == 3:
        return raw + rng.choice((b"}", b" {}", b"\0", b" ", b"\n\n", b",", b"//", b"\xef\xbb\xbf"))
    if kind == 4:
        big = rng.choice(
            (b"9" * 5000, b"1e999", b"NaN", b"-Infinity", b"0x10", b"01", b"1.", b"-0")
        )
        return b'{"prompt":"a","max_tokens":' + big + b"}"
    if kind == 5:
        return rng.choice((b"", b"[]", b"null", b"1", b'"a"', b"{}", b"[{}]", b" ", b"{", b'{"a"}'))
    words = (b"{", b"}", b"[", b"]", b'"', b",", b":", b"\\", b"'", b"/*a*/", b"null", b"-", b"e5")
    changed = bytearray(raw)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(changed) + 1)
        changed[at : at + rng.choice((0, 1))] = rng.choice(words)
    return bytes(changed)


def _mutate_bytes(rng: random.Random, body: dict[str, Any]) -> bytes:
    return mutated(rng, _dump(body, rng))


# Makes a value with about n parts.
_BIG: dict[str, Callable[[int, random.Random], Any]] = {
    "prompt": lambda n, rng: rng.choice((["a"], [1], "a", " ", "é", [[1]])) * n,
    "stop": lambda n, rng: rng.choice((["a"] * min(n, 100), "a" * n)),
    "user": lambda n, _: "u" * n, "model": lambda n, _: "m" * n,
    "logit_bias": lambda n, _: {str(i): 1 for i in range(min(n, 3000))},
    "seed": lambda n, _: [1] * n, "bad_words": lambda n, _: ["a" * (n % 90 + 1)] * (n % 80),
    "allowed_token_ids": lambda n, _: [i % 270 for i in range(n)], "k": lambda n, _: n,
    "input": lambda n, _: ["a"] * n, "context": lambda n, _: "a" * n,
    "tokens": lambda n, _: [1] * n, "request_id": lambda n, _: "r" * n,
}  # fmt: skip


def _mutate_sizes(rng: random.Random, body: dict[str, Any]) -> bytes:
    n = rng.choice((17, 65, 70, 300, 1000, 3000, 7000, 8001, 9000))
    name = rng.choice(sorted(_BIG))
    body = {**body, "k" * n if name == "k" else name: _BIG[name](n, rng)}
    raw = _dump(body, rng)
    return raw + b" " * (rng.choice((39_000, 41_000)) - len(raw)) if rng.random() < 0.05 else raw


BODY_LEVELS: dict[str, Callable[[random.Random, dict[str, Any]], bytes]] = {
    "bytes": _mutate_bytes,
    "syntax": _mutate_syntax,
    "types": _mutate_types,
    "fields": _mutate_fields,
    "unicode": _mutate_unicode,
    "sizes": _mutate_sizes,
}

_HEADERS: list[tuple[bytes, bytes]] = [
    (b"Host", b"evil.example"), (b"Host", b""), (b"Host", b"[::1"),
    (b"Host", b"127.0.0.1:99999999"),
    (b"Origin", b"null"), (b"Origin", b"https://evil.example"), (b"Content-Type", b"text/plain"),
    (b"Content-Type", b"application/json; charset=utf-16"), (b"Content-Type", b"\xff"),
    (b"Content-Type", b"multipart/form-data; boundary=a"), (b"Authorization", b"Bearer"),
    (b"Authorization", b"Basic YTpi"), (b"Authorization", b"Bearer " + b"k" * 3000),
    (b"X-Api-Key", b"\xe9" * 9), (b"X-Request-Id", b"a b"), (b"X-Request-Id", b"x" * 101),
    (b"X-Request-Id", b"ok-1"), (b"Expect", b"100-continue"), (b"Expect", b"nothing"),
    (b"Upgrade", b"websocket"), (b"Upgrade", b"h2c"), (b"Connection", b"Upgrade"),
    (b"Connection", b"keep-alive"), (b"Connection", b"close"), (b"Accept-Encoding", b"gzip, br"),
    (b"Content-Encoding", b"gzip"), (b"Range", b"bytes=0-1"), (b"If-None-Match", b"*"),
    (b"Cookie", b"a=b; " * 50), (b"X-Forwarded-For", b"1.2.3.4"), (b"Forwarded", b"for=1"),
    (b"X-Big", b"b" * 3900), (b"X-Bigger", b"b" * 5000), (b"A" * 300, b"1"), (b"X-Tab", b"a\tb"),
    (b"X-Http-Method-Override", b"DELETE"), (b"Transfer-Encoding", b"gzip, chunked"),
    (b"Content-Length", b"+5"), (b"Content-Length", b"5, 5"), (b"Content-Length", b"9" * 30),
    (b"Bad Name", b"1"), (b"", b"1"), (b"X-Null", b"a\0b"), (b"X-Cr", b"a\rb"), (b"X-Lf", b"a\nb"),
]  # fmt: skip
_METHODS = [b"GET", b"POST", b"PUT", b"DELETE", b"HEAD", b"OPTIONS", b"PATCH", b"TRACE", b"CONNECT",
            b"post", b"A" * 200, b"P\xd6ST", b"PRI"]  # fmt: skip
_PATHS = [b"/", b"//", b"/v1", b"/v1/", b"/v1/completions/", b"/V1/COMPLETIONS", b"*", b"",
          b"http://localhost/health", b"/health?x=%00", b"/%2e%2e/%2e%2e/etc/passwd", b"/health#a",
          b"/v1/models/%ff", b"/v1/models/" + b"m" * 3000, b"/tokenizer_info?model=x&model=t",
          b"/tokenizer_info?model=%ed%a0%80", b"/v1/models/a%0d%0aX:%20y", b"/../health",
          b"/v1/completions?prompt=a", b"localhost:80", b"/\xe9", b"/v1//completions"]  # fmt: skip


@dataclass(frozen=True)
class Input:
    """The bytes to send in parts, and what must come back.

    If `framed` is not None, HTTP's framing is valid: there is exactly one answer, and after it the
    connection can be used again unless the answer says otherwise. Such an input can also be given
    to the app in this process. Else the connection is a new one, which the server must close in
    time.
    """

    level: str
    parts: tuple[bytes, ...]
    framed: tuple[str, str, bytes] | None = None  # the method, the path and the body
    is_head: bool = False
    end: str = "wait"  # then: "wait", "half-close" or "leave"


LEVELS = [*BODY_LEVELS, "headers", "framing", "chunks", "pipelines"]
_WEIGHTS = [16, 15, 16, 20, 12, 8, 5, 4, 3, 1]


def make_input(seed: int, number: int) -> Input:
    """Return an input of a seed."""
    rng = random.Random(f"{seed} {number}")
    (level,) = rng.choices(LEVELS, _WEIGHTS)
    if level in BODY_LEVELS:
        while True:
            method, path, body = valid(rng)
            if body is not None:
                break
        raw = BODY_LEVELS[level](rng, body)
        key = {"Authorization": f"Bearer {KEY}"}
        return Input(level, (request_bytes(method, path, raw, key),), (method, path, raw))
    make = {"headers": _headers, "framing": _framing, "chunks": _chunks, "pipelines": _pipeline}
    return make[level](rng)


def _request(rng: random.Random) -> tuple[bytes, list[tuple[bytes, bytes]], bytes]:
    """Return a valid request: its first line, headers and body."""
    method, path, body = valid(rng)
    raw = b"" if body is None else as_json(body)
    headers = [(b"Host", b"localhost"), (b"Authorization", b"Bearer " + KEY.encode())]
    if body is not None:
        headers += [(b"Content-Type", b"application/json"), (b"Content-Length", b"%d" % len(raw))]
    return f"{method} {path} HTTP/1.1".encode(), headers, raw


def _joined(line: bytes, headers: list[tuple[bytes, bytes]], body: bytes) -> bytes:
    return line + b"\r\n" + b"".join(b"%s: %s\r\n" % pair for pair in headers) + b"\r\n" + body


def _headers(rng: random.Random) -> Input:
    """Change headers, the method or the path."""
    line, headers, body = _request(rng)
    method, path, version = line.split(b" ")
    for _ in range(rng.choice((1, 1, 2, 3))):
        kind = rng.randrange(8)
        if kind < 3:
            headers.insert(rng.randrange(len(headers) + 1), rng.choice(_HEADERS))
        elif kind == 3:
            name, value = rng.choice(_HEADERS)
            headers = [pair for pair in headers if pair[0] != name] + [(name, value)]
        elif kind == 4:
            headers.pop(rng.randrange(len(headers))) if headers else None
        elif kind == 5:
            method = rng.choice(_METHODS)
        elif kind == 6:
            path = rng.choice(_PATHS)
        else:
            version = rng.choice((b"HTTP/1.0", b"HTTP/1.1", b"HTTP/2.0", b"HTTP/0.9", b"HTTQ/1.1"))
    headers += [(b"X-N", b"v")] * rng.choice((0, 0, 0, 0, 40, 400))
    raw = _joined(b" ".join((method, path, version)), headers, body)
    return Input("headers", (raw, _LAST), is_head=method == b"HEAD", end=_end(rng))


# Follows what may be whole or not: whatever its framing was, the server then closes.
_LAST = b"GET /version HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def _end(rng: random.Random) -> str:
    return rng.choice(("wait",) * 5 + ("half-close", "leave", "leave"))


def _split(rng: random.Random, raw: bytes) -> tuple[bytes, ...]:
    """Cut bytes into parts, which are sent one after the other."""
    cuts = sorted(rng.randrange(len(raw) + 1) for _ in range(rng.choice((0, 0, 1, 2, 5))))
    edges = [0, *cuts, len(raw)]
    return tuple(raw[a:b] for a, b in pairwise(edges) if a < b)


def _framing(rng: random.Random) -> Input:
    """Change the bytes of the head, or the declared length."""
    line, headers, body = _request(rng)
    head = _joined(line, headers, b"")
    kind = rng.randrange(8)
    if kind == 0:
        change = rng.choice((-3, -1, 1, 5, 100, 10**9))
        headers = [
            (name, b"%d" % (int(value) + change) if name == b"Content-Length" else value)
            for name, value in headers
        ]
        raw = _joined(line, headers, body)
    elif kind == 1:
        raw = head.replace(b"\r\n", rng.choice((b"\n", b"\r", b"\r\r\n", b"\n\r"))) + body
    elif kind == 2:
        raw = (head + body)[: rng.randrange(len(head + body) + 1)]
    elif kind == 3:
        raw = bytes(rng.randrange(256) for _ in range(rng.choice((1, 5, 60, 600, 6000))))
    elif kind == 4:
        raw = rng.choice(
            (
                b"\r\n" * 50, b"\x16\x03\x01\x02\x00\x01\x00", b"GET /health\r\n", b"\0" * 5000,
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"A" * 100_000,
                b"GET / HTTP/1.1\r\n" + b"a:b\r\n" * 3000,
            )
        )  # fmt: skip
        raw += head + body
    else:
        raw = mutated(rng, head) + body
    return Input("framing", (*_split(rng, raw), _LAST), end=_end(rng))


def _chunked(rng: random.Random, body: bytes) -> bytes:
    """Return a body in chunks, some of them wrong."""
    out = b""
    for part in _split(rng, body) or (b"",):
        size = b"%x" % len(part)
        kind = rng.randrange(24)
        if kind == 0:
            size = rng.choice(
                (b"", b"-1", b"0x5", b"zz", b"f" * 17, b"+3", b" 3", b"%x" % (len(part) + 1))
            )
        elif kind == 1:
            size += rng.choice((b";a=b", b";" + b"x" * 5000, b";\0", b" ", b"\n"))
        out += size + b"\r\n" + part + (b"\r\n" if kind != 2 else rng.choice((b"", b"\n", b"XX")))
    end = rng.choice(
        (b"0\r\n\r\n",) * 12
        + (b"", b"0\r\n", b"0\r\nA: b\r\n\r\n", b"0\r\n" + b"T: t\r\n" * 2000 + b"\r\n")
    )
    return out + end


def _chunks(rng: random.Random) -> Input:
    """Send a chunked body, or both lengths (request smuggling)."""
    line, headers, body = _request(rng)
    lengths = [pair for pair in headers if pair[0] == b"Content-Length"]
    headers = [pair for pair in headers if pair[0] != b"Content-Length"]
    coding = rng.choice((b"chunked",) * 9 + (b"Chunked", b"chunked, chunked", b"xchunked", b"gzip"))
    headers.append((b"Transfer-Encoding", coding))
    if rng.random() < 0.1:
        headers += lengths
    if rng.random() < 0.1:
        headers.append((b"Expect", b"100-continue"))
    if rng.random() < 0.1:
        headers = [(name, b"no" if name == b"Authorization" else value) for name, value in headers]
    if rng.random() < 0.03:
        body += b" " * 50_000
    raw = _joined(line, headers, _chunked(rng, body))
    return Input("chunks", (*_split(rng, raw), _LAST), end=_end(rng))


def _pipeline(rng: random.Random) -> Input:
    """Send several requests at once, one of them perhaps wrong."""
    raw = b"".join(_joined(*_request(rng)) for _ in range(rng.choice((2, 2, 3, 6))))
    if rng.random() < 0.5:
        raw = mutated(rng, raw)
    return Input("pipelines", (*_split(rng, raw), _LAST), end=_end(rng))
