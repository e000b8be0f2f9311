"""The HTTP port: GET /metrics for Prometheus, GET /status.json, GET /healthz. Nothing here changes state.

Runs in threads of its own and gets every page by asking the broker, whose thread alone touches the state.
A request whose Host is a name other than localhost is refused: a page in a browser that rebinds its own name to this
address would carry that name. Knows HTTP. Does not know what the pages hold.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

REQUEST_SECONDS = 5.0
_TEXT = "text/plain; charset=utf-8"


class Page(NamedTuple):
    """A content type, and what makes the body."""

    content_type: str
    body: Callable[[], bytes]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], pages: Mapping[str, Page], hosts: frozenset[str]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.pages = pages
        self.hosts = hosts
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = REQUEST_SECONDS
    server_version = "dwrap"
    sys_version = ""

    def do_GET(self) -> None:
        if not is_allowed_host(self.headers.get("Host", ""), self.server.hosts):
            return self._send(403, _TEXT, b"dwrap: this host name is not served here; use an IP address or localhost\n")
        page = self.server.pages.get(self.path.partition("?")[0])
        if page is None:
            return self._send(404, _TEXT, "".join(f"{path}\n" for path in self.server.pages).encode())
        try:
            body = page.body()
        except TimeoutError:
            return self._send(503, _TEXT, b"dwrap: the distributor is too busy to answer\n")
        self._send(200, page.content_type, body)

    def _send(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", "default-src 'none'")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Requests are not logged: a scrape every few seconds would drown what matters."""


def is_allowed_host(header: str, names: frozenset[str]) -> bool:
    """Whether a Host header names this server by address, as localhost, or by one of the names."""
    host = header.strip().lower()
    if host.startswith("["):
        host = host[1:].partition("]")[0]
    elif host.count(":") == 1:
        host = host.partition(":")[0]
    if host in names:
        return True
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return True


def serve(host: str, port: int, pages: Mapping[str, Page]) -> tuple[str, Callable[[], None]]:
    """Starts to serve. Returns the address as a URL and what stops it. Raises OSError when the port cannot be had."""
    server = _Server((host, port), pages, frozenset({host.lower()}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.2}, name="http", daemon=True)
    thread.start()

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{server.server_address[1]}", stop
