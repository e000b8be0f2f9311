"""The HTTP port: GET /metrics for Prometheus, GET /status.json, GET /healthz. Nothing here changes state, so nothing here needs a token.

One thread with a loop of its own. A connection is one request, of which only the head is read: it may have HEAD_BYTES, and the whole
exchange REQUEST_SECONDS, however the bytes trickle. No more than MOST_CONNECTIONS are open: a further one takes the place of the oldest
that has not said what it wants. Pages come from the broker, whose thread alone touches the state.
A request whose Host is a name is refused, save for localhost and the names that were given: a page in a browser that rebinds its own
name to this address would carry that name. No answer lets other origins read it, and none may be framed, sniffed or run.
Knows HTTP. Does not know what the pages hold.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import re
import socket
import struct
import threading
from collections.abc import Callable, Collection, Mapping
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, Final, NamedTuple

REQUEST_SECONDS: Final = 5.0
MOST_CONNECTIONS: Final = 64
HEAD_BYTES: Final = 8 * 1024
_LINGER_SECONDS: Final = 0.5
_LINGER_BYTES: Final = 64 * 1024
_AT_ONCE: Final = struct.pack("ii", 1, 0)
_TEXT: Final = "text/plain; charset=utf-8"
_ALWAYS: Final = {
    "Connection": "close",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
_REQUEST = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}) ([!-~]+) HTTP/1\.[01]")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t -~\x80-\xff]*)")
_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^][:\s]+))(?::[0-9]{0,5})?")

log: Final = logging.getLogger("dwrap.distributor")


class Page(NamedTuple):
    """A content type, and what makes the body."""

    content_type: str
    body: Callable[[], bytes]


class Limits(NamedTuple):
    """What a visitor may use up."""

    connections: int = MOST_CONNECTIONS
    seconds: float = REQUEST_SECONDS


LIMITS: Final = Limits()


class _Answer(NamedTuple):
    status: HTTPStatus
    body: bytes
    content_type: str = _TEXT
    more: tuple[tuple[str, str], ...] = ()
    has_body: bool = True

    def encoded(self) -> bytes:
        head = {"Date": formatdate(usegmt=True), "Content-Type": self.content_type, "Content-Length": len(self.body), **_ALWAYS}
        lines = [f"HTTP/1.1 {self.status.value} {self.status.phrase}", *(f"{name}: {value}" for name, value in (*head.items(), *self.more))]
        return "".join(f"{line}\r\n" for line in [*lines, ""]).encode("latin-1") + (self.body if self.has_body else b"")


_MALFORMED: Final = _Answer(HTTPStatus.BAD_REQUEST, b"dwrap: this is no HTTP/1 request\n")
_TOO_LARGE: Final = _Answer(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, b"dwrap: the request's head is too large\n")
_NOT_READ: Final = _Answer(HTTPStatus.METHOD_NOT_ALLOWED, b"dwrap: pages here can only be read\n", more=(("Allow", "GET, HEAD"),))
_STRANGER: Final = _Answer(
    HTTPStatus.FORBIDDEN, b"dwrap: this host name is not served here; use an IP address or localhost, or allow it with --http-host\n"
)
_BUSY: Final = _Answer(HTTPStatus.SERVICE_UNAVAILABLE, b"dwrap: the distributor is too busy to answer\n")
_DEFECT: Final = _Answer(HTTPStatus.INTERNAL_SERVER_ERROR, b"dwrap: the page cannot be made; the distributor's log says why\n")


class _Site:
    """The pages, and who is visiting."""

    def __init__(self, pages: Mapping[str, Page], hosts: frozenset[str], limits: Limits) -> None:
        self._pages = pages
        self._hosts = hosts
        self._limits = limits
        self._visits: set[asyncio.Task[Any]] = set()
        self._reading: dict[asyncio.Task[Any], None] = {}  # those whose head has not come, in the order of their arrival

    async def visit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, from its first byte to its end."""
        task = asyncio.current_task()
        if task is None or not self._has_room():
            return _cut(writer)
        self._visits.add(task)
        self._reading[task] = None
        try:
            async with asyncio.timeout(self._limits.seconds):
                await self._serve(task, reader, writer)
        except (TimeoutError, asyncio.CancelledError, OSError):  # too slow, too many, or gone
            _cut(writer)
        finally:
            self._forget(task)
            writer.transport.abort()

    def _has_room(self) -> bool:
        if len(self._visits) >= self._limits.connections and self._reading:
            oldest = next(iter(self._reading))
            oldest.cancel()
            self._forget(oldest)
        return len(self._visits) < self._limits.connections

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._visits.discard(task)
        self._reading.pop(task, None)

    async def _serve(self, task: asyncio.Task[Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            head = b"x" * (HEAD_BYTES + 1)
        except asyncio.IncompleteReadError as cut:
            head = cut.partial
            if not head:
                return
        self._reading.pop(task, None)
        answer = await self._answer(head)
        writer.transport.set_write_buffer_limits(high=0)  # drain: until all is sent
        writer.write(answer.encoded())
        await writer.drain()
        writer.write_eof()
        await _linger(reader)

    async def _answer(self, head: bytes) -> _Answer:
        if len(head) > HEAD_BYTES:
            return _TOO_LARGE
        request = parse(head)
        if request is None:
            return _MALFORMED
        method, target, host = request
        if not is_allowed_host(host, self._hosts):
            return _STRANGER
        if method not in ("GET", "HEAD"):
            return _NOT_READ
        answer = await self._look_up(target.partition("?")[0])
        return answer if method == "GET" else answer._replace(has_body=False)

    async def _look_up(self, path: str) -> _Answer:
        page = self._pages.get(path)
        if page is None:
            return _Answer(HTTPStatus.NOT_FOUND, "".join(f"{known}\n" for known in self._pages).encode())
        try:
            return _Answer(HTTPStatus.OK, await asyncio.to_thread(page.body), page.content_type)
        except TimeoutError:
            return _BUSY
        except Exception:
            log.exception("cannot make the page %s", path)  # one of ours: it is in the table
            return _DEFECT


def _cut(writer: asyncio.StreamWriter) -> None:
    """Ends a connection at once, and what the kernel still holds of its answer."""
    with contextlib.suppress(OSError):  # it has gone
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
    writer.transport.abort()


async def _linger(reader: asyncio.StreamReader) -> None:
    """Lets the other end read the answer: a connection that is closed with bytes unread is reset, and what was sent may be lost.

    What still comes is thrown away, a little of it and for a moment.
    """
    left = _LINGER_BYTES
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LINGER_SECONDS):
            while left > 0 and (piece := await reader.read(left)):
                left -= len(piece)


def parse(head: bytes) -> tuple[str, str, str] | None:
    """Method, target and Host of a request's head; None when it is malformed, or could be read in two ways."""
    if not head.endswith(b"\r\n\r\n"):
        return None
    first, *rest = head[:-4].split(b"\r\n")
    request = _REQUEST.fullmatch(first)
    headers = [_HEADER.fullmatch(line) for line in rest]
    if request is None or None in headers:
        return None
    hosts = [found[2].decode("latin-1") for found in headers if found and found[1].lower() == b"host"]
    if len(hosts) > 1:
        return None
    return request[1].decode("ascii"), request[2].decode("ascii"), hosts[0] if hosts else ""


def is_allowed_host(header: str, names: Collection[str]) -> bool:
    """Whether a Host header names this server by address, as localhost, or by one of the names, which are in lower case.

    An address cannot be rebound: a browser that sends it in Host was told it by the user, or by a page that can read no answer.
    """
    found = _HOST.fullmatch(header.strip().lower())
    if found is None:
        return False
    host = found[1] or found[2]
    if host in names:
        return True
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return True


def serve(
    host: str, port: int, pages: Mapping[str, Page], names: Collection[str] = (), limits: Limits = LIMITS
) -> tuple[str, Callable[[], None]]:
    """Starts to serve. Returns the address as a URL and what stops it. Raises OSError when the port cannot be had."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(MOST_CONNECTIONS)  # from now on whoever connects waits, and is not refused
    except OSError:
        listener.close()
        raise
    site = _Site(pages, frozenset({host.lower(), *(name.lower() for name in names)}), limits)
    loop = asyncio.new_event_loop()
    ending = asyncio.Event()

    async def run() -> None:
        server = await asyncio.start_server(site.visit, sock=listener, limit=HEAD_BYTES)
        async with server:
            await ending.wait()

    def run_to_end() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(run())

    thread = threading.Thread(target=run_to_end, name="http", daemon=True)
    thread.start()

    def stop() -> None:
        loop.call_soon_threadsafe(ending.set)
        thread.join()

    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{listener.getsockname()[1]}", stop
