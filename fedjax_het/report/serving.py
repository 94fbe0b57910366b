"""A live page over plain HTTP on the loopback, for a browser on the same machine; read-only."""

import contextlib
import errno
import ipaddress
import json
import socket
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from fedjax_het.common.errors import InputError, require
from fedjax_het.report.live import LivePage

_LOOK_S = 1.0


def require_loopback(host: str) -> str:
    """An address of the loopback; raises `InputError` for any other, which others could reach."""
    address = "127.0.0.1" if host == "localhost" else host
    try:
        inside = ipaddress.ip_address(address).is_loopback
    except ValueError:
        inside = False
    require(
        inside,
        f"--host={host}",
        "must be an address of the loopback, as the page is served without a password",
        "use 127.0.0.1, and ssh -L to look from another machine",
    )
    return address


class Server(ThreadingHTTPServer):
    """Serves a live page and its state.

    Args:
      host: address of the loopback.
      port: port; 0 for one that is free.
      live: the page.

    Raises:
      InputError: for an address that others could reach, or a port that is not free.
    """

    daemon_threads = True

    def __init__(self, host: str, port: int, live: LivePage):
        address = require_loopback(host)
        if ":" in address:
            self.address_family = socket.AF_INET6
        self.live, self._over = live, threading.Event()
        try:
            super().__init__((address, port), _Handler)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES, errno.EADDRNOTAVAIL):
                raise
            raise InputError(
                f"--port={port}: cannot be used ({error.strerror}); name another port, or "
                "--port=0 for one that is free"
            ) from None

    @property
    def url(self) -> str:
        """Address of the page."""
        host, port = str(self.server_address[0]), self.server_port
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/"

    def run(self) -> None:
        """Serves until it is interrupted; another thread looks for news meanwhile."""
        looking = threading.Thread(target=self._look, daemon=True)
        looking.start()
        try:
            with contextlib.suppress(KeyboardInterrupt):
                self.serve_forever()
        finally:
            self._over.set()
            self.server_close()

    def _look(self) -> None:
        while not self._over.wait(_LOOK_S):
            self.live.refresh()


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        """Answers a request of the page or of its state."""
        # Pages of other origins must not read it by a name that leads to the loopback.
        named = (self.headers.get("Host") or "").rpartition(":")[0].strip("[]")
        try:
            require_loopback(named)
        except InputError:
            self.send_error(HTTPStatus.FORBIDDEN)
            return
        live = self.server.live
        if self.path == "/":
            self._answer("text/html; charset=utf-8", live.page)
        elif self.path == "/state":
            told = {"version": live.version, "state": live.state.state, "text": live.state.text}
            self._answer("application/json", json.dumps(told).encode())
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def _answer(self, kind: str, content: bytes) -> None:
        self.send_response(HTTPStatus.OK)
        for name, value in (
            ("Content-Type", kind),
            ("Content-Length", str(len(content))),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
        ):
            self.send_header(name, value)
        with contextlib.suppress(ConnectionError):  # the reader has gone on
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Writes no line for every request."""
