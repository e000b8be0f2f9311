"""http.py over real sockets: who is answered, what no answer ever says, and what visitors can use up."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import select
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dwrap.distributor.http import HEAD_BYTES, LIMITS, MOST_CONNECTIONS, Limits, Page, parse, serve

HALF_OPEN = 200
HALF = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nX-"
KNOWN = {"200", "400", "403", "404", "405", "408", "431", "503"}


def busy() -> bytes:
    raise TimeoutError


PAGES = {
    "/metrics": Page("text/plain; version=0.0.4; charset=utf-8", lambda: b"dwrap_agents 0.0\n"),
    "/status.json": Page("application/json", lambda: b"{}\n"),
    "/busy": Page("text/plain", busy),
}


@contextlib.contextmanager
def served(limits: Limits = LIMITS, names: tuple[str, ...] = ()) -> Iterator[int]:
    """Such a server's port."""
    url, stop = serve("127.0.0.1", 0, PAGES, names, limits)
    try:
        yield int(url.rpartition(":")[2])
    finally:
        stop()


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with served() as port:
        yield port


def said(port: int, request: bytes, seconds: float = 5, end: bool = True) -> bytes:
    """Everything that comes back; a reset ends it too."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as link:
        with contextlib.suppress(OSError):
            link.sendall(request)
            if end:
                link.shutdown(socket.SHUT_WR)
        answer = b""
        with contextlib.suppress(OSError):
            while piece := link.recv(65_536):
                answer += piece
        return answer


def status(answer: bytes) -> str:
    return answer.split(b" ", 2)[1].decode() if answer.startswith(b"HTTP/1.1 ") else "none"


def ask(port: int, method: str = "GET", path: str = "/metrics", host: str = "localhost", more: str = "") -> bytes:
    return said(port, f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n{more}\r\n".encode("latin-1"), end=False)


def head_of(answer: bytes) -> dict[str, str]:
    lines = answer.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")[1:]
    return {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:7778", "127.0.0.1", "10.1.2.3:7778", "[::1]:7778", "[2001:db8::1]"])
def test_addresses_and_localhost_are_served(port: int, host: str) -> None:
    answer = ask(port, host=host)
    assert status(answer) == "200"
    assert answer.endswith(b"\r\n\r\ndwrap_agents 0.0\n")


REBOUND = ["evil.example", "evil.example:7778", "localhost.evil.example", "127.0.0.1.evil.example", "[::1].evil.example", "a@localhost", ""]


@pytest.mark.parametrize("host", REBOUND)
def test_a_name_that_was_rebound_to_this_address_is_not(port: int, host: str) -> None:
    answer = ask(port, host=host)
    assert status(answer) == "403"
    assert b"dwrap_agents" not in answer


def test_a_name_is_served_when_the_operator_says_so() -> None:
    with served(names=("Farm.example",)) as port:
        assert status(ask(port, host="farm.example:7778")) == "200"
        assert status(ask(port, host="evil.example")) == "403"


@pytest.mark.parametrize("hosts", ["Host: localhost\r\nHost: evil.example\r\n", "Host: localhost\r\nHost: localhost\r\n", ""])
def test_a_host_that_is_told_twice_or_never_is_none(port: int, hosts: str) -> None:
    assert status(said(port, f"GET /metrics HTTP/1.1\r\n{hosts}\r\n".encode())) == ("400" if hosts else "403")


METHODS = ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "get", "PROPFIND", "X-" + "Y" * 30]


@pytest.mark.parametrize("method", METHODS)
def test_nothing_but_reading(port: int, method: str) -> None:
    answer = ask(port, method, more="Origin: http://evil.example\r\nAccess-Control-Request-Method: GET\r\nX-Canary: c4nary\r\n")
    assert status(answer) == "405"
    assert head_of(answer)["allow"] == "GET, HEAD"
    assert b"c4nary" not in answer, "TRACE would tell"


def test_a_body_is_not_read_and_the_answer_comes_all_the_same(port: int) -> None:
    answer = said(port, b"POST /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999999\r\n\r\n" + b"x" * 60_000, end=False)
    assert status(answer) == "405"


def test_head_is_get_without_the_body(port: int) -> None:
    got, looked = ask(port), ask(port, "HEAD")
    assert head_of(looked)["content-length"] == head_of(got)["content-length"] == str(len(b"dwrap_agents 0.0\n"))
    assert looked.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("method", "path", "host"),
    [("GET", "/metrics", "localhost"), ("HEAD", "/status.json", "localhost"), ("GET", "/busy", "localhost"), ("GET", "/none", "localhost"),
     ("OPTIONS", "/metrics", "localhost"), ("OPTIONS", "*", "localhost"), ("GET", "/metrics", "evil.example"), ("GET", "", "localhost")],
)  # fmt: skip
def test_no_answer_is_for_other_origins(port: int, method: str, path: str, host: str) -> None:
    head = head_of(ask(port, method, path, host, more="Origin: http://evil.example\r\nAccess-Control-Request-Private-Network: true\r\n"))
    assert not [name for name in head if name.startswith("access-control")]
    assert head["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert head["x-content-type-options"] == "nosniff"
    assert head["cache-control"] == "no-store"
    assert "html" not in head["content-type"]


@pytest.mark.parametrize("path", ["/..", "/../etc/passwd", "/%2e%2e/metrics", "//metrics", "/metrics/", "/metrics%00", "/./metrics"])
def test_a_path_is_a_word_and_nothing_else(port: int, path: str) -> None:
    answer = ask(port, path=path)
    assert status(answer) == "404"
    assert b"root:" not in answer


def test_a_query_is_ignored(port: int) -> None:
    assert status(ask(port, path="/metrics?<script>")) == "200"
    answer = ask(port, path="/<script>alert(1)</script>")
    assert status(answer) == "404"
    assert b"script" not in answer


def test_a_distributor_that_is_busy_is_said_to_be(port: int) -> None:
    assert status(ask(port, path="/busy")) == "503"


@pytest.mark.parametrize(
    "request_head",
    [
        b"GARBAGE\r\n\r\n",
        b"GET /metrics\r\n\r\n",
        b"GET /metrics HTTP/2.0\r\nHost: localhost\r\n\r\n",
        b"GET  /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nHost : localhost\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n folded: yes\r\n\r\n",
        b"GET /metrics HTTP/1.1\nHost: evil.example\r\nHost: localhost\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nHost: localhost\rX: y\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nHost: local\0host\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
        b"\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n",
    ],
)
def test_what_can_be_read_in_two_ways_is_refused(port: int, request_head: bytes) -> None:
    assert status(said(port, request_head)) == "400"
    assert parse(request_head) is None


SMUGGLED = b"GET /status.json HTTP/1.1\r\nHost: evil.example\r\n\r\n"


@pytest.mark.parametrize(
    "lengths",
    [b"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n", b"Content-Length: 4\r\nContent-Length: 60\r\n", b"Connection: keep-alive\r\n",
     b"Upgrade: websocket\r\nConnection: Upgrade\r\n", b"Expect: 100-continue\r\n"],
)  # fmt: skip
def test_what_follows_a_request_is_no_request(port: int, lengths: bytes) -> None:
    answer = said(port, b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n" + lengths + b"\r\n0\r\n\r\n" + SMUGGLED)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert status(answer) == "200"
    assert head_of(answer)["connection"] == "close"


@pytest.mark.parametrize(
    "request_head",
    [
        b"GET /" + b"a" * HEAD_BYTES + b" HTTP/1.1\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * HEAD_BYTES + b"\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\n" + b"X: y\r\n" * HEAD_BYTES + b"\r\n",
        b"a" * 1_000_000,
    ],
)
def test_a_head_has_a_bound(port: int, request_head: bytes) -> None:
    assert status(said(port, request_head)) == "431"
    assert status(ask(port)) == "200"


# ---- what visitors can use up ----


@contextlib.contextmanager
def half_open(port: int, count: int = HALF_OPEN) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        links = [stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5)) for _ in range(count)]
        for link in links:
            with contextlib.suppress(OSError):
                link.sendall(HALF)
        yield links


def alive(links: list[socket.socket]) -> int:
    """How many the other end has not closed."""
    ended = select.select(links, [], [], 0)[0]
    return len(links) - len(ended)


def answers_within_a_second(port: int) -> bool:
    with contextlib.suppress(OSError):
        return status(said(port, b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n", seconds=1)) == "200"
    return False


def test_those_who_never_finish_their_request_keep_nobody_out() -> None:
    threads = threading.active_count()
    with served() as port, half_open(port) as links:
        assert answers_within_a_second(port)
        assert alive(links) <= MOST_CONNECTIONS
        assert threading.active_count() <= threads + 7, "a thread for each would be 200"
        assert links[-1] not in select.select(links, [], [], 0)[0], "the oldest go first"


def test_without_the_bound_they_would_stay() -> None:
    """The control: it is the bound that ends them."""
    with served(Limits(connections=10 * HALF_OPEN)) as port, half_open(port) as links:
        assert status(ask(port)) == "200", "all of them have been let in"
        assert alive(links) == HALF_OPEN


def test_such_visitors_do_keep_others_out_elsewhere() -> None:
    """The other control: a server that answers one after the other, as the standard library's does."""

    class Handler(BaseHTTPRequestHandler):
        timeout = 2

        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        port = server.server_address[1]
        assert status(said(port, b"GET / HTTP/1.0\r\n\r\n")[:20].replace(b"1.0", b"1.1")) == "200"
        with half_open(port, 3):
            assert not answers_within_a_second(port)
        server.shutdown()


def trickles_for(port: int, seconds: float) -> float:
    """How long a visitor may go on who sends a byte at a time; not longer than `seconds`."""
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), timeout=5) as link, contextlib.suppress(OSError):
        while not select.select([link], [], [], 0.05)[0] and time.monotonic() < began + seconds:
            link.sendall(b"G")
    return time.monotonic() - began


def test_the_deadline_is_for_the_whole_request() -> None:
    with served(Limits(seconds=0.5)) as port:
        assert 0.4 < trickles_for(port, 10) < 3
    with served(Limits(seconds=60)) as port:
        assert trickles_for(port, 1.5) >= 1.5, "the control"


def test_who_does_not_read_the_answer_is_not_waited_for() -> None:
    large = {"/metrics": Page("text/plain", lambda: b"x" * 15_000_000)}
    url, stop = serve("127.0.0.1", 0, large, (), Limits(connections=1, seconds=2))
    port = int(url.rpartition(":")[2])
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as link:
            link.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
            watch = select.poll()
            watch.register(link, select.POLLRDHUP)
            assert watch.poll(20_000), "it is not ended"
        read = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        read.request("GET", "/metrics")
        assert len(read.getresponse().read()) == 15_000_000, "the control: who reads has it all"
    finally:
        stop()


def test_a_page_that_is_being_made_is_not_dropped_for_newcomers() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow() -> bytes:
        begun.set()
        go_on.wait(5)
        return b"made\n"

    url, stop = serve("127.0.0.1", 0, {"/slow": Page("text/plain", slow)}, (), Limits(connections=2))
    port = int(url.rpartition(":")[2])
    try:
        link = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        link.request("GET", "/slow")
        assert begun.wait(5)
        with half_open(port, 20):
            go_on.set()
            assert link.getresponse().read() == b"made\n"
    finally:
        stop()


def test_a_page_that_fails_is_said_to_and_the_next_is_served() -> None:
    calls = itertools.count()

    def broken() -> bytes:
        if next(calls) == 0:
            raise ValueError("\x1b[31msecret")
        return b"whole\n"

    url, stop = serve("127.0.0.1", 0, {"/page": Page("text/plain", broken)})
    port = int(url.rpartition(":")[2])
    try:
        first = ask(port, path="/page")
        assert (status(first), b"secret" in first) == ("500", False)
        assert ask(port, path="/page").endswith(b"whole\n")
    finally:
        stop()


WORDS = st.sampled_from(
    [b"GET ", b"HEAD ", b"POST ", b"/metrics", b"/busy", b" HTTP/1.1", b"\r\n", b"\r\n\r\n", b"Host: localhost", b"Host: ", b":", b" ",
     b"Content-Length: 9", b"Transfer-Encoding: chunked", b"\0", b"\n", b"..", b"%", b"\xff\xfe"]
)  # fmt: skip
HEADS = st.lists(st.one_of(WORDS, st.binary(max_size=20)), max_size=25).map(b"".join)


@settings(max_examples=300, deadline=None)
@given(HEADS)
def test_whatever_is_sent(port: int, request_head: bytes) -> None:
    assert status(said(port, request_head)) in KNOWN | {"none"}


@settings(max_examples=50, deadline=None)
@given(HEADS)
def test_whatever_is_sent_after_a_request(port: int, rest: bytes) -> None:
    answer = said(port, b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n" + rest)
    assert (status(answer), answer.count(b"HTTP/1.1 ")) == ("200", 1)


def test_it_still_serves_after_all_that(port: int) -> None:
    assert status(ask(port)) == "200"
