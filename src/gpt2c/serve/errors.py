"""Errors as OpenAI's API reports them: a status and {"error": {message, type, param, code}}."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from gpt2c.errors import CacheMemoryError, ClosedError, ContextError, Error, NumericalError

RETRY_SECONDS: Final = 1  # what Retry-After asks for

# The error's type for each status; other statuses from 400 to 499 are invalid requests.
_TYPES: Final[Mapping[int, str]] = {
    401: "authentication_error",
    403: "permission_error",
    408: "timeout_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "unavailable_error",
}
_RETRIED: Final = (429, 503)
_CLOSING: Final = (408, 413)  # the rest of the body is not read


class RequestError(Exception):
    """A request that gets an error as its answer."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        """`param` is the field that is wrong, and `code` a short name of what is wrong."""
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    @property
    def body(self) -> dict[str, Any]:
        """The answer, for json.dumps."""
        kind = _TYPES.get(self.status, "invalid_request_error")
        return {
            "error": {
                "message": self.message, "type": kind, "param": self.param, "code": self.code,
            }
        }  # fmt: skip

    @property
    def headers(self) -> dict[str, str]:
        """The headers that the answer needs."""
        if self.status == 401:
            return {"WWW-Authenticate": "Bearer"}
        if self.status in _CLOSING:
            return {"Connection": "close"}
        return {"Retry-After": str(RETRY_SECONDS)} if self.status in _RETRIED else {}


def as_request_error(error: Exception, param: str | None = None) -> RequestError:
    """Return the answer for an error of gpt2c, or for one that nobody expected.

    What is wrong with a request is the client's error; a lack of memory is temporary. The message
    of an unexpected error is not sent.
    """
    if isinstance(error, RequestError):
        return error
    message = " ".join(str(error).split())
    if isinstance(error, ContextError):
        return RequestError(400, message, param=param or "prompt", code="context_length_exceeded")
    if isinstance(error, CacheMemoryError):
        return RequestError(503, message, code="out_of_memory")
    if isinstance(error, ClosedError):
        return RequestError(503, "the server is stopping", code="stopping")
    if isinstance(error, NumericalError):
        return RequestError(500, message, code="not_a_number")
    if isinstance(error, Error) and isinstance(error, ValueError | TypeError):
        return RequestError(400, message, param=param)
    return RequestError(500, "the server failed to answer; its log says why")
