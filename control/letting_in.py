"""`dwrapctl key`, `invite`, `join`: making keys, saying whom they let in, and handing that on in one line.

`key` and `invite` work on a keys directory; a distributor that runs there notices within a second. `join` asks one over the network.
Secrets never stand in an argument, where every user of the machine could read them. Knows files and one question; draws tables.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click

from dwrap.control import client
from dwrap.control.errors import ControlError
from dwrap.protocol import authorized, keys
from dwrap.protocol.authorized import Grant, KeyLineError
from dwrap.protocol.dial import Dial
from dwrap.protocol.endpoint import parse_endpoint

_HOUR = 3_600.0
_FOLDER = click.option(
    "--keys", "folder", type=click.Path(file_okay=False, path_type=Path), metavar="DIR",
    help="The keys directory. [default: DWRAP_KEYS; /etc/dwrap/keys for root, ~/.config/dwrap/keys for others]",
)  # fmt: skip


def _folder(given: Path | None) -> Path:
    try:
        found = given or keys.directory(os.environ, os.geteuid())
    except keys.KeysError as error:
        raise ControlError(f"cannot tell where keys are: {error}") from error
    if found is None:
        raise ControlError("cannot tell where keys are: neither HOME nor DWRAP_KEYS is set; say --keys DIR")
    return found


def _edit(folder: Path, change: Callable[[str], str], what: str) -> None:
    """Edits authorized_keys. Raises ControlError."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        authorized.edit(folder, change)
    except KeyLineError as error:
        raise ControlError(f"cannot {what}: {error}") from error
    except OSError as error:
        raise ControlError(f"cannot {what}: cannot write {folder / authorized.FILE}: {error.strerror or error}; say --keys DIR") from error


@click.group(name="key")
def key_group() -> None:
    """Makes keys, and says whom they let in."""


@key_group.command(name="new")
@_FOLDER
@click.argument("kind", default="client", type=click.Choice(keys.KINDS))
def key_new(folder: Path | None, kind: str) -> None:
    """Makes a key pair, and prints its public half: of a client (the default: you), an agent, or a server (a distributor)."""
    try:
        pair = keys.new_pair()
        file = keys.write_pair(_folder(folder), kind, pair)
    except keys.KeysError as error:
        raise ControlError(f"cannot make a key: {error}") from error
    except OSError as error:
        raise ControlError(f"cannot make a key in {_folder(folder)}: {error.strerror or error}; say --keys DIR") from error
    click.echo(pair.public)
    hints = {
        "client": f"dwrapctl key allow NAME {pair.public} --submit --uid {os.getuid()}",
        "agent": f"dwrapctl key allow NAME {pair.public} --serve",
    }
    print(f"dwrap: the secret half is in {file}, and stays there", file=sys.stderr)
    if kind in hints:
        print(f"dwrap: on the distributor's host: {hints[kind]}", file=sys.stderr)


@key_group.command(name="show")
@_FOLDER
@click.argument("kind", default="client", type=click.Choice(keys.KINDS))
def key_show(folder: Path | None, kind: str) -> None:
    """Prints the public half of a key here. That of the server is what others pin with `key trust`."""
    try:
        click.echo(keys.read_pair(_folder(folder), kind).public)
    except keys.KeysError as error:
        raise ControlError(f"cannot show the key: {error}") from error


def _rights(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed((
        click.option("--submit", is_flag=True, help="It may submit jobs; needs --uid."),
        click.option("--serve", is_flag=True, help="It may be an agent. With --uid: for that uid only."),
        click.option("--operate", is_flag=True, help="It may drain agents."),
        click.option("--uid", "uids", metavar="LIST", help="Uids of its jobs: 1000, or 1000-1999, or several with commas; root as 0."),
        click.option("--group", "groups", metavar="LIST", help="Groups that its jobs may have beside those in the agents' databases."),
    )):  # fmt: skip
        command = option(command)
    return command


def _grant(key: str, name: str, submit: bool, serve: bool, operate: bool, uids: str | None, groups: str | None) -> Grant:
    """Raises ControlError."""
    wanted = {"submit": submit, "serve": serve, "operate": operate}
    try:
        return authorized.check_grant(
            Grant(
                authorized.check_key(key),
                authorized.check_name(name),
                frozenset(right for right, is_wanted in wanted.items() if is_wanted),
                uids=authorized.parse_uids(uids) if uids else (),
                groups=authorized.parse_groups(groups) if groups else (),
            )
        )
    except KeyLineError as error:
        raise ControlError(f"cannot let the key in: {error}") from error


@key_group.command(name="allow")
@_FOLDER
@click.argument("name")
@click.argument("key")
@_rights
@click.option("--expires", metavar="TIME", help="Until when: 2027-01-01, or 2027-01-01T00:00:00Z.")
def key_allow(
    folder: Path | None, name: str, key: str, submit: bool, serve: bool, operate: bool, uids: str | None, groups: str | None,
    expires: str | None,
) -> None:  # fmt: skip
    """Lets in the public KEY, under a NAME for people."""
    grant = _grant(key, name, submit, serve, operate, uids, groups)
    try:
        grant = replace(grant, expires=authorized.parse_time(expires) if expires else None)
    except KeyLineError as error:
        raise ControlError(f"cannot let the key in: {error}") from error
    _edit(_folder(folder), lambda text: authorized.with_grant(text, grant), f"let {name} in")
    click.echo(grant.line())


@key_group.command(name="revoke")
@_FOLDER
@click.argument("name")
def key_revoke(folder: Path | None, name: str) -> None:
    """No longer lets in the key of this NAME (or this KEY). A distributor ends its connections within a second, and its jobs with them."""
    _edit(_folder(folder), lambda text: authorized.without(text, name), f"revoke {name}")
    click.echo(f"{name} is let in no more")


@key_group.command(name="list")
@_FOLDER
def key_list(folder: Path | None) -> None:
    """Lists who is let in, and what is wrong with the file."""
    place = _folder(folder)
    try:
        grants, problems = authorized.parse(authorized.read(place).text)
    except OSError as error:
        raise ControlError(f"cannot list keys: {error.strerror or error}; say --keys DIR") from error
    for grant in grants.values():
        click.echo(f"{grant.line()}{' # expired' if grant.has_expired(time.time()) else ''}")
    for problem in problems:
        print(f"dwrap: {place / authorized.FILE}: {problem}", file=sys.stderr)


@key_group.command(name="trust")
@_FOLDER
@click.argument("address")
@click.argument("key")
def key_trust(folder: Path | None, address: str, key: str) -> None:
    """Pins a distributor's public KEY to its ADDRESS; nothing else will be spoken to there. On this machine uid=N may stand for it."""
    try:
        value, endpoint = keys.check_pinned(key), parse_endpoint(address)
        if value.startswith("uid=") and not endpoint.is_local:
            raise KeyLineError("the kernel tells no uid of what listens on another machine; give its key (dwrapctl key show server)")
        where = endpoint.address
        keys.pin(_folder(folder), where, value)
    except (ValueError, keys.KeysError) as error:
        raise ControlError(f"cannot trust {address}: {error}") from error
    except OSError as error:
        raise ControlError(f"cannot write {_folder(folder) / keys.KNOWN}: {error.strerror or error}; say --keys DIR") from error
    click.echo(f"{where} {value}")


@click.command(name="invite")
@_FOLDER
@click.argument("name")
@click.option("--address", required=True, metavar="ADDRESS", help="Where the distributor is reached from there: tcp://HOST:PORT.")
@_rights
@click.option("--hours", default=24.0, show_default=True, type=click.FloatRange(0.01, 24 * 365), help="How long the token can be used.")
def invite(
    folder: Path | None, name: str, address: str, submit: bool, serve: bool, operate: bool, uids: str | None, groups: str | None,
    hours: float,
) -> None:  # fmt: skip
    """Prints a token with which somebody lets themselves in, once: `dwrapctl join` reads it. NAME is what their key will be called.

    Whoever has the token before it is used can use it: send it as you would a password.
    """
    place = _folder(folder)
    try:
        server = keys.read_pair(place, "server").public
        endpoint = parse_endpoint(address).address
    except (keys.KeysError, ValueError) as error:
        raise ControlError(f"cannot invite {name}: {error}") from error
    pair = keys.new_pair()
    wanted = _grant(pair.public, name, submit, serve, operate, uids, groups)
    invitation = replace(wanted, rights=wanted.rights | {"invite"}, expires=float(int(time.time() + hours * _HOUR)))
    _edit(place, lambda text: authorized.with_grant(text, invitation), f"invite {name}")
    print(f"dwrap: {invitation.line()}", file=sys.stderr)
    click.echo(keys.Invitation(endpoint, server, pair.secret).token())


@click.command(name="join")
@_FOLDER
@click.option("--agent", is_flag=True, help="The key is for an agent here. [default: for you, a client]")
def join(folder: Path | None, agent: bool) -> None:
    """Reads a token from `dwrapctl invite` on standard input, makes a key here, and is let in with it; pins the distributor's key."""
    place, kind = _folder(folder), "agent" if agent else "client"
    prompt = sys.stdin.isatty()
    try:
        invitation = keys.parse_token(click.prompt("token", hide_input=True) if prompt else sys.stdin.readline(8_192))
        keys.check_pin(place, invitation.address, invitation.server)  # before the invitation is used up
        pair = _own_pair(place, kind)
        dial = Dial(invitation.address, invitation.server, keys.Pair(keys.public_of(invitation.secret), invitation.secret))
        name = _exchange(dial, pair.public)
        keys.pin(place, invitation.address, invitation.server)
    except keys.KeysError as error:
        raise ControlError(f"cannot join: {error}") from error
    except OSError as error:
        raise ControlError(f"cannot join: cannot write to {place}: {error.strerror or error}; say --keys DIR") from error
    click.echo(f"joined {invitation.address} as {name}")


def _own_pair(place: Path, kind: str) -> keys.Pair:
    """Ours, made where there is none. One key may join several distributors."""
    if not (place / f"{kind}.key").exists():
        keys.write_pair(place, kind, keys.new_pair())
    return keys.read_pair(place, kind)


def _exchange(dial: Dial, public: str) -> str:
    try:
        answer = client.ask_one(dial, "join", [("key", public)])
    except client.NotLetIn as error:
        raise ControlError(f"cannot join {dial.address}: the invitation was used, withdrawn, or is too old; ask for another") from error
    return str(answer.get("joined", "?")) if isinstance(answer, dict) else "?"
