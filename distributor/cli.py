"""`dwrap-distributor`: reads the options, puts the rooms together, prints the ready line, serves until SIGTERM.

Knows the process: options, log, limits, signals, systemd. Everything else is in the rooms.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import resource
import signal
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import click
import zmq

from dwrap.distributor import http, version
from dwrap.distributor.broker import Broker
from dwrap.distributor.keyring import Keyring
from dwrap.distributor.ledger import SILENCE_SECONDS, Ledger, boot_id
from dwrap.distributor.listen import is_local
from dwrap.distributor.past import Past
from dwrap.distributor.reports import Reports
from dwrap.distributor.scheduler import Scheduler
from dwrap.protocol import keys
from dwrap.protocol.messages import DEFAULT_HTTP_PORT, DEFAULT_PORT
from dwrap.protocol.service import Watchdog, die, end_when_told, log_to_stderr, notify

_STAMP_BYTES = 16
_HOLD_SECONDS = 3.0
_HOLD_STEP_SECONDS = 0.02
log = logging.getLogger("dwrap.distributor")


def _read_config(context: click.Context, _: click.Parameter, file: Path | None) -> None:
    """Takes the defaults of the other options from a TOML file: `listen = ["tcp://…"]`, `http`, `state`, `keys`, …"""
    if file is None:
        return
    try:
        settings = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        die(f"cannot read {file}: {error}; correct it, or leave --config out")
    known = {"listen": "endpoints", "http": "http_address", "http-host": "http_hosts", "state": "state", "insecure": "insecure",
             "insecure-http": "insecure_http", "keys": "keys_folder", "environment": "environment"}  # fmt: skip
    if unknown := sorted(settings.keys() - known.keys()):
        die(f"{file} has unknown settings: {', '.join(unknown)}; known are {', '.join(known)}")
    context.default_map = {known[name]: value for name, value in settings.items()}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--listen", "endpoints", multiple=True, metavar="ENDPOINT", default=[f"tcp://127.0.0.1:{DEFAULT_PORT}"], show_default=True,
    help="tcp://HOST:PORT (port 0: any free one) or ipc://PATH; may be repeated.",
)  # fmt: skip
@click.option(
    "--http", "http_address", metavar="HOST:PORT|off", default=f"127.0.0.1:{DEFAULT_HTTP_PORT}", show_default=True,
    help="Where /metrics and /status.json are served.",
)  # fmt: skip
@click.option(
    "--http-host", "http_hosts", multiple=True, metavar="NAME",
    help="A name that requests may be addressed to, as Prometheus does; addresses and localhost always may. May be repeated.",
)  # fmt: skip
@click.option(
    "--config", type=click.Path(dir_okay=False, path_type=Path), callback=_read_config, is_eager=True, expose_value=False,
    help="TOML file with defaults of these options.",
)  # fmt: skip
@click.option(
    "--state", type=click.Path(file_okay=False, path_type=Path), help="Directory that keeps the epoch and the assignments over restarts."
)
@click.option(
    "--keys", "keys_folder", type=click.Path(file_okay=False, path_type=Path), metavar="DIR",
    help="Listen beyond this machine for those whose keys are in DIR/authorized_keys (see dwrapctl key, invite). "
    "Its own key is made there if there is none.",
)  # fmt: skip
@click.option(
    "--environment", type=click.Choice(["strict", "warn"]), default="strict", show_default=True,
    help="Whether jobs may go to agents with other compilers or packages when there is none with the same; warn: they may, and are marked.",
)  # fmt: skip
@click.option("--insecure", is_flag=True, help="Listen beyond this machine without keys: anyone who reaches the port may run commands.")
@click.option("--insecure-http", is_flag=True, help="Serve --http beyond this machine: anyone who reaches it sees agents, load and totals.")
@click.version_option(version(), prog_name="dwrap-distributor")
def main(
    endpoints: tuple[str, ...], http_address: str, http_hosts: tuple[str, ...], state: Path | None, keys_folder: Path | None,
    environment: str, insecure: bool, insecure_http: bool,
) -> None:  # fmt: skip
    """Takes jobs from `dwrap`, and hands them to agents."""
    end_when_told()
    log_to_stderr()
    http_at = _http_address(http_address)
    _check_reach(endpoints, keys_folder, insecure)
    if http_at and not is_local(f"tcp://{http_address}"):
        _check_http_reach(http_address, insecure or insecure_http)
    most_connections = _raise_descriptor_limit()
    keyring = _keyring(keys_folder) if keys_folder else None
    held = _hold(state)
    now = time.monotonic()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    context.setsockopt(zmq.MAX_SOCKETS, 65_535)
    try:
        epoch = next_epoch(state, time.time_ns())
        ledger = Ledger(state, epoch, now, boot_id()) if state else None
        past = ledger.past if ledger else Past(now, frozenset({epoch}), now + SILENCE_SECONDS)
        scheduler = Scheduler(_secret, past=past, strict=environment == "strict")
        reports = Reports(scheduler, epoch)
        alive = Watchdog(os.environ, os.getpid()).beat
        broker = Broker(context, endpoints, scheduler, reports, _secret, insecure, ledger, keyring, most_connections, alive)
        url, stop_http = _serve_http(http_at, http_hosts, broker, reports)
    except keys.KeysError as error:
        die(f"cannot start: {error}")
    except (OSError, zmq.ZMQError) as error:
        die(f"cannot start: {error.strerror or error}; choose another address with --listen and --http, or end what uses it")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: broker.stop())
    print("ready", *broker.addresses, *([url] if url else []), flush=True)
    notify("READY=1")
    log.info("serving %s, version %s", json.dumps(broker.addresses), version())
    broker.run()
    notify("STOPPING=1")
    stop_http()
    broker.close()
    if ledger:
        ledger.close()
    if held is not None:
        os.close(held)
    context.destroy(linger=200)


def _hold(state: Path | None) -> int | None:
    """Makes the directory this distributor's own until the descriptor is closed; one that is just ending is waited for."""
    if state is None:
        return None
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        held = os.open(state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        deadline = time.monotonic() + _HOLD_SECONDS
        while True:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return held
            except BlockingIOError:
                if time.monotonic() > deadline:
                    die(f"cannot use --state {state}: another distributor does; end that one, or name another directory")
                time.sleep(_HOLD_STEP_SECONDS)
    except OSError as error:
        die(f"cannot use --state {state}: {error.strerror or error}; name a directory that this user may write to")


def _secret() -> str:
    """What nobody can guess."""
    return os.urandom(_STAMP_BYTES).hex()


def next_epoch(state: Path | None, clock_ns: int) -> int:
    """The number of this incarnation: larger than that of every one before, by the clock and by the file in `state`.

    Raises OSError when the file cannot be written.
    """
    epoch = clock_ns // 1_000_000
    if state is None:
        return epoch
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = state / "epoch"
    before = file.read_text(encoding="ascii").strip() if file.exists() else "0"
    epoch = max(epoch, int(before) + 1) if before.isdecimal() else epoch
    fresh = state / "epoch.new"
    fresh.write_text(f"{epoch}\n", encoding="ascii")
    fresh.replace(file)
    return epoch


def _http_address(text: str) -> tuple[str, int] | None:
    if text == "off":
        return None
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65_535:
        die(f"--http {text} is not of the form HOST:PORT; say --http 127.0.0.1:{DEFAULT_HTTP_PORT}, or --http off")
    return host.strip("[]"), int(port)


def _serve_http(
    address: tuple[str, int] | None, names: tuple[str, ...], broker: Broker, reports: Reports
) -> tuple[str, Callable[[], None]]:
    """Returns the URL that is served and what stops it; nothing is served when there is no address."""
    if address is None:
        return "", lambda: None

    def status() -> bytes:
        return json.dumps(broker.ask(lambda: reports.status(broker.addresses)), indent=1).encode() + b"\n"

    pages = {
        "/status.json": http.Page("application/json", status),
        "/metrics": http.Page("text/plain; version=0.0.4; charset=utf-8", lambda: bytes(broker.ask(reports.metrics_text))),
        "/healthz": http.Page("text/plain; charset=utf-8", lambda: bytes(broker.ask(lambda: b"ok\n"))),
    }
    try:
        return http.serve(*address, pages, names)
    except OSError as error:
        where = f"{address[0]}:{address[1]}"
        die(f"cannot serve http on {where}: {error.strerror or error}; choose another with --http HOST:PORT, or --http off")


def _check_reach(endpoints: tuple[str, ...], keys_folder: Path | None, insecure: bool) -> None:
    if insecure and keys_folder:
        die("--insecure and --keys contradict each other; leave one out")
    for endpoint in endpoints:
        if not endpoint.startswith(("tcp://", "ipc://")):
            die(f"cannot listen on {endpoint}: it is neither tcp://HOST:PORT nor ipc://PATH")
        if is_local(endpoint) or keys_folder:
            continue
        if not insecure:
            remedy = "say --keys DIR, use 127.0.0.1 or ipc://, or --insecure"
            die(f"refuses to listen on {endpoint}: others can reach it and there are no keys; {remedy}")
        log.warning("listening on %s without keys: whoever can reach it may run commands on the agents", endpoint)


def _check_http_reach(address: str, may: bool) -> None:
    if not may:
        die(f"refuses to serve http on {address}: others can reach it; use 127.0.0.1, a proxy, or --insecure-http")
    log.warning("serving http on %s: whoever can reach it sees agents, load and totals", address)


def _keyring(folder: Path) -> Keyring:
    """The keys in a folder; the distributor's own is made when there is none."""
    try:
        if not (folder / "server.key").exists():
            keys.write_pair(folder, "server", keys.new_pair())
        keyring = Keyring(folder, keys.read_pair(folder, "server"))
    except keys.KeysError as error:
        die(f"cannot use --keys {folder}: {error}")
    except OSError as error:
        die(f"cannot use --keys {folder}: {error.strerror or error}; name a directory that this user may write to")
    log.info("this distributor's key is %s", keyring.pair.public)
    return keyring


def _raise_descriptor_limit() -> int:
    """Each connection is a descriptor; the soft limit is often 1,024. Returns how many there can be."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard if hard != resource.RLIM_INFINITY else 1 << 20
