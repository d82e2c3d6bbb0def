"""Who may ask: API keys, and the checks that keep web pages away from a local server.

A web page that a user visits can send requests to 127.0.0.1. With DNS rebinding, its own host name
leads there, so the Host header must not be a strange name. Without it, its Origin header says where
the page is from. A form can post text/plain without asking first, so a body must be declared JSON.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from gpt2c.checks.untrusted import read_whole
from gpt2c.errors import OptionError
from gpt2c.serve.errors import RequestError

_MAX_KEY_FILE: Final = 1 << 20
_MIN_KEY: Final = 8  # characters
_OPEN_PATHS: Final = ("/health",)  # need no key


@dataclass(frozen=True)
class Access:
    """The rules. `key_digests` is empty if no key is needed.

    A host name is allowed if it is in `hosts`, is "localhost", or is an address: DNS rebinding
    needs a name. "*" allows every host or origin.
    """

    key_digests: tuple[bytes, ...] = ()
    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()
    checks_host: bool = True  # False for a Unix socket, which no browser reaches

    def check(self, method: str, path: str, headers: Mapping[str, str]) -> int:
        """Raise RequestError (401, 403 or 415) unless the request is allowed.

        Return the number of the client's key, from 1; 0 without keys. `headers` are by lower-case
        names.
        """
        self._check_host(headers.get("host", ""))
        origin = headers.get("origin")
        if origin is not None and not {origin, "*"} & self.origins:
            raise RequestError(
                403, "the Origin header names a web page that may not use this server; allow it "
                "with --allowed-origin", code="origin",
            )  # fmt: skip
        number = 0 if path in _OPEN_PATHS else self._check_key(headers)
        if method == "POST" and not _is_json(headers.get("content-type", "")):
            raise RequestError(
                415, "the Content-Type header must be application/json", code="content_type"
            )
        return number

    def _check_host(self, host: str) -> None:
        if not self.checks_host or "*" in self.hosts:
            return
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            name = ""
        if name == "localhost" or name in self.hosts or _is_address(name):
            return
        raise RequestError(
            403, "the Host header is missing or names a host that this server does not know; "
            "allow it with --allowed-host", code="host",
        )  # fmt: skip

    def _check_key(self, headers: Mapping[str, str]) -> int:
        """Return the number of the client's key; 0 if none is needed.

        The key is compared with every key, in a time that depends on neither.
        """
        if not self.key_digests:
            return 0
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            key = headers.get("x-api-key", "")
        given = digest(key.strip())
        found = 0
        for number, known in enumerate(self.key_digests, 1):
            found += number * hmac.compare_digest(known, given)
        if not found:
            message = "an API key is needed: send it as Authorization: Bearer KEY"
            raise RequestError(401, message, code="invalid_api_key")
        return found


def digest(key: str) -> bytes:
    """Return what is kept of a key: digests have one length, so comparing them leaks none."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_json(content_type: str) -> bool:
    kind, _, parameters = content_type.partition(";")
    charset = parameters.strip().lower().replace('"', "")
    return kind.strip().lower() == "application/json" and charset in ("", "charset=utf-8")


def key_digests(path: str | None, environment: str | None) -> tuple[bytes, ...]:
    """Return the digests of the keys in a file, and of those in an environment variable.

    A file has a key per line; blank lines and lines that begin with # are skipped. The variable has
    keys separated by commas. Raises OptionError for a short key or one with white space, without
    repeating it, and the errors of reading a file.
    """
    keys: list[tuple[str, str]] = []
    if path is not None:
        raw = read_whole(Path(path), limit=_MAX_KEY_FILE, error=OptionError)
        try:
            lines = raw.decode().splitlines()
        except UnicodeDecodeError as error:
            raise OptionError(f"{path}: is not UTF-8 at byte {error.start}") from None
        keys += [(f"{path}, line {i}", line.strip()) for i, line in enumerate(lines, 1)]
        keys = [(where, key) for where, key in keys if key and not key.startswith("#")]
        if not keys:
            raise OptionError(f"{path}: has no API key; write one per line")
    if environment is not None:
        keys += [("GPT2C_API_KEY", key.strip()) for key in environment.split(",")]
    return _digests_of(keys)


def _digests_of(keys: Iterable[tuple[str, str]]) -> tuple[bytes, ...]:
    digests: dict[bytes, None] = {}
    for where, key in keys:
        if len(key) < _MIN_KEY or not key.isprintable() or " " in key or not key.isascii():
            raise OptionError(
                f"{where}: an API key must have at least {_MIN_KEY} ASCII characters, none of them "
                "white space"
            )
        digests[digest(key)] = None
    return tuple(digests)
