"""`dwrap-agent`: reads the options, puts the rooms together, serves until it has drained.

Knows the process: options, log, work directory. Everything else is in the rooms.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import click

from dwrap.agent import environment, rights, workplace
from dwrap.agent.accounts import Accounts
from dwrap.agent.announce import announcer
from dwrap.agent.events import Installed, Mounted
from dwrap.agent.former import Former
from dwrap.agent.link import Link
from dwrap.agent.load import Load, session_seconds
from dwrap.agent.memory import memory
from dwrap.agent.registration import Registration
from dwrap.agent.runner import Runners, choose_tree, find_program
from dwrap.agent.session import Session
from dwrap.agent.stock import Stock
from dwrap.agent.survey import Survey
from dwrap.protocol import keys
from dwrap.protocol.dial import dial
from dwrap.protocol.endpoint import Endpoint, parse_endpoint
from dwrap.protocol.messages import Value
from dwrap.protocol.service import die, end_when_told, log_to_stderr

log = logging.getLogger("dwrap.agent")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("distributor")
@click.option(
    "--root", "roots", multiple=True, metavar="DIR",
    help="A tree that all machines share; may be repeated. [default: /, if the distributor is on this machine]",
)
@click.option("--slots", type=click.IntRange(min=1), help="Jobs at a time. [default: one for each processor]")
@click.option("--name", help="What the agent is called. [default: this host's name]")
@click.option("--label", "labels", multiple=True, metavar="K=V", help="Something that jobs may ask for; may be repeated.")
@click.option("--allow-root", is_flag=True, help="Run root's jobs too.")
@click.option(
    "--views", type=click.Choice(["auto", "always", "never"]), default="auto",
    help="Whether to record what commands write, so that all hosts see it. [auto: if a root is on a network file system]",
)
@click.option("--accept-flaws", is_flag=True, help="Serve even from mounts that are known to give wrong bytes.")
@click.option("--tree", type=click.Choice(["auto", "pidns", "subreaper"]), default="auto", help="How the processes of a job are held.")
@click.option(
    "--processes", type=click.IntRange(min=1), default=environment.most_processes, metavar="N",
    help="At most so many processes and threads for one user, all jobs together. [default: 8192, or a quarter of what the kernel allows]",
)
@click.option("--work", type=click.Path(file_okay=False, path_type=Path), help="Where temporary directories are made. [default: TMPDIR]")
@click.option(
    "--keys", "keys_folder", type=click.Path(file_okay=False, path_type=Path), metavar="DIR",
    help="Where agent.key and known_distributors are. [default: DWRAP_KEYS; /etc/dwrap/keys for root, ~/.config/dwrap/keys for others]",
)  # fmt: skip
@click.option(
    "--health", "health_file", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
    help="Keep FILE up to date while a distributor counts on this agent, for probes: python3 -m dwrap.agent.health FILE.",
)  # fmt: skip
@click.option("--insecure", is_flag=True, help="Dial a distributor on another machine without keys.")
@click.version_option(package_name="dwrap", prog_name="dwrap-agent")
def main(
    distributor: str,
    roots: tuple[str, ...],
    slots: int | None,
    name: str | None,
    labels: tuple[str, ...],
    allow_root: bool,
    views: str,
    accept_flaws: bool,
    tree: str,
    processes: int,
    work: Path | None,
    keys_folder: Path | None,
    health_file: Path | None,
    insecure: bool,
) -> None:
    """Runs jobs for the DISTRIBUTOR (tcp://HOST:PORT, ipc://PATH, or HOST)."""
    end_when_told()
    log_to_stderr()
    try:
        endpoint = parse_endpoint(distributor)
        is_named = keys_folder is not None or bool(os.environ.get("DWRAP_KEYS"))
        how = dial(endpoint, keys_folder or keys.directory(os.environ, os.geteuid()), "agent", insecure, is_named)
        warning = rights.check(os.geteuid(), views != "never")
        program = find_program()
        tree = choose_tree(program) if tree == "auto" else tree
        checked_roots = tuple(environment.check_root(root) for root in roots or _default_roots(endpoint))
        checked_labels = tuple(environment.check_label(label) for label in labels)
        slots = slots or environment.processors()
        name = name or socket.gethostname()
        survey = Survey(checked_roots, views)
        known = _registration(name, slots, checked_roots, checked_labels, tree, allow_root)
        stock = Stock(program)
        known = replace(known, records=views != "never", mounted=survey.first(accept_flaws), installed=stock.first())
        agent = f"{name} of {endpoint.address}"  # two farms on one machine may well call their agents the same
        with workplace.claim(work, agent) as folder:
            session = Session(replace(known, incarnation=workplace.incarnation(folder)))
            former = Former(work, agent, folder)
            workplace.become_subreaper()
            runners = Runners(program, folder, checked_roots, tree, processes, spares=slots)
            load = Load(lambda: runners.ended_cpu_seconds + session_seconds(runners.pids))
            accounts = Accounts(os.geteuid(), allow_root)
            with announcer(name, slots, endpoint.address, health_file) as announce:
                changes = partial(_news, survey, stock)
                link = Link(how, session, runners, former, accounts, load, announce.ready, survey=changes, each_tick=announce.look)
                if warning:
                    log.warning("%s", warning)
                log.info("dialling %s, tree %s", endpoint.address, tree)
                if how.is_unprotected:
                    log.warning("dialling %s without keys: whoever can reach it, or is on the way, may run commands here", endpoint.address)
                end = link.run()
    except (OSError, ValueError, keys.KeysError) as error:
        die(f"cannot start: {error}")
    if end.reason:
        die(end.reason)
    sys.exit(end.status)


def _registration(name: str, slots: int, roots: tuple[str, ...], labels: tuple[str, ...], tree: str, allow_root: bool) -> Registration:
    uid = os.geteuid()
    extra: list[tuple[str, Value]] = [("label", label) for label in labels]
    extra += [("host", socket.gethostname()), ("cpus", environment.processors())]
    extra += [("memory_bytes", memory().total), ("tree", tree)]
    if allow_root:
        extra.append(("allow_root", 1))
    return Registration(name, slots, roots, "any" if uid == 0 else str(uid), tuple(extra))


def _default_roots(endpoint: Endpoint) -> tuple[str, ...]:
    """On one machine everything is shared; between machines only the operator knows what is."""
    if endpoint.is_local:
        return ("/",)
    raise ValueError("no --root is given, and the distributor is on another machine; name each tree that is shared at the same path")


def _news(survey: Survey, stock: Stock) -> Mounted | Installed | None:
    return survey.news() or stock.news(time.monotonic())
