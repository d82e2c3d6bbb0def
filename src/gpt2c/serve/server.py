"""Running the server: its socket, loading the models, signals and the end."""

from __future__ import annotations

import logging
import os
import socket
import stat
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Final

import uvicorn

from gpt2c.errors import OptionError
from gpt2c.model import GPT2
from gpt2c.serve.app import Service, make_app
from gpt2c.serve.connections import limited_protocol

_log: Final = logging.getLogger(__name__)


@dataclass(frozen=True)
class Address:
    """Where to listen: a host and a port (0: any free one), or the path of a Unix socket."""

    host: str = "127.0.0.1"
    port: int = 8000
    unix_socket: str | None = None

    def bind(self) -> socket.socket:
        """Return a socket that is bound. Raises OSError."""
        if self.unix_socket is not None:
            return _bind_unix(self.unix_socket)
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        # asyncio turns Nagle's algorithm off only for sockets that name their protocol. With it, a
        # stream's token would wait for the acknowledgement of the last, up to 40 ms.
        bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind((self.host, self.port))
        except BaseException:
            bound.close()
            raise
        return bound

    def shown(self, bound: socket.socket) -> str:
        """Return the address for messages, with the port that was found."""
        if self.unix_socket is not None:
            return f"unix:{self.unix_socket}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{bound.getsockname()[1]}"


def _bind_unix(path: str) -> socket.socket:
    """Bind a Unix socket that its user and group may use; replace one that a dead server left."""
    if not hasattr(socket, "AF_UNIX"):
        raise OptionError("this system has no Unix sockets")
    bound = socket.socket(socket.AF_UNIX)
    try:
        if os.path.exists(path) and stat.S_ISSOCK(os.stat(path).st_mode):
            if bound.connect_ex(path) == 0:
                raise OptionError(f"{path}: another server listens there")
            os.unlink(path)
            bound.close()
            bound = socket.socket(socket.AF_UNIX)
        before = os.umask(0o117)
        try:
            bound.bind(path)
        finally:
            os.umask(before)
    except BaseException:
        bound.close()
        raise
    return bound


class _Server(uvicorn.Server):
    """A server that SIGTERM and Ctrl-C drain; a second signal stops it at once."""

    def __init__(self, config: uvicorn.Config, on_stop: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_stop = on_stop

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain, or stop."""
        self.force_exit = self.should_exit
        self.should_exit = True
        self._on_stop()


class Running:
    """A server of a service. `run` blocks; other threads may call `stop`."""

    def __init__(self, service: Service, address: Address) -> None:
        """Bind the socket. Raises OSError."""
        self._service, self._address = service, address
        self._socket = address.bind()
        self.url = address.shown(self._socket)
        self.failure: BaseException | None = None
        limits = service.limits
        config = uvicorn.Config(
            make_app(service),
            http=limited_protocol(limits), ws="none", lifespan="off", log_config=None,
            access_log=False, proxy_headers=False, server_header=False,
            h11_max_incomplete_event_size=limits.max_header_bytes,
            timeout_keep_alive=int(max(limits.idle_seconds, 1)),
            timeout_graceful_shutdown=int(limits.drain_seconds),
        )  # fmt: skip
        self._server = _Server(config, self._refuse_requests)

    @property
    def was_forced(self) -> bool:
        """Whether a second signal ended the server, so that calls may still run in threads."""
        return self._server.force_exit

    def run(
        self,
        load: Callable[..., GPT2] = GPT2.from_pretrained,
        on_ready: Callable[[], None] = lambda: None,
    ) -> None:
        """Serve until a signal or `stop`; load the models meanwhile.

        `on_ready` is called once they are loaded. Raises the error of a model that does not load.
        """
        loading = threading.Thread(
            target=self._load, args=(load, on_ready), name="gpt2c serve loading", daemon=True
        )
        loading.start()
        try:
            self._server.run(sockets=[self._socket])
        finally:
            self._refuse_requests()
            self._socket.close()
            self._service.close()
            if self._address.unix_socket is not None and os.path.exists(self._address.unix_socket):
                os.unlink(self._address.unix_socket)
        if self.failure is not None:
            raise self.failure

    def stop(self) -> None:
        """Begin to drain."""
        self._refuse_requests()
        self._server.should_exit = True

    def _refuse_requests(self) -> None:
        self._service.models.is_stopping = True

    def _load(self, load: Callable[..., GPT2], on_ready: Callable[[], None]) -> None:
        try:
            self._service.models.load(load)
            if self._service.models.is_ready:
                on_ready()
        except BaseException as error:
            self.failure = error
            self._server.should_exit = True
