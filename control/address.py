"""Which distributor is meant: -H, $DWRAP_HOST, client.conf, in that order, as the wrapper reads them.

Knows where an address may be configured; what one looks like is told in protocol/endpoint.py. Does not connect.

client.conf holds lines `KEY = VALUE`; `#` starts a comment. The key `distributor` is the default, and may be a comma list;
every other key is a name for the address that it is given. The user's file is read before the machine's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from dwrap.control.errors import ControlError
from dwrap.protocol.endpoint import parse_endpoint


def addresses(given: str | None, environment: Mapping[str, str], files: Sequence[Path] | None = None) -> list[str]:
    """The addresses to try, in order. Raises ControlError when none is configured, or one is malformed."""
    names = read_client_conf(default_files(environment) if files is None else files)
    written = given or environment.get("DWRAP_HOST") or names.get("distributor")
    if not written:
        raise ControlError("no distributor is configured: neither -H, DWRAP_HOST nor client.conf names one; set DWRAP_HOST=tcp://HOST:7776")
    return [normalise(names.get(word, word)) for word in (part.strip() for part in written.split(",")) if word]


def default_files(environment: Mapping[str, str]) -> list[Path]:
    """Where client.conf is looked for, the user's first."""
    home = environment.get("XDG_CONFIG_HOME") or os.path.join(environment.get("HOME", "/"), ".config")
    return [Path(home, "dwrap", "client.conf"), Path("/etc/dwrap/client.conf")]


def read_client_conf(files: Sequence[Path]) -> dict[str, str]:
    """The settings of all files; the first file that names a key decides. Files that cannot be read count as empty."""
    settings: dict[str, str] = {}
    for file in files:
        try:
            text = file.read_text("utf-8", "replace")
        except OSError:
            continue
        for line in text.splitlines():
            key, equals, value = line.partition("#")[0].partition("=")
            if equals and key.strip() and value.strip():
                settings.setdefault(key.strip(), value.strip())
    return settings


def normalise(address: str) -> str:
    """A written address as `tcp://host:port` or `ipc://path`. Raises ControlError."""
    try:
        return parse_endpoint(address).address
    except ValueError as error:
        raise ControlError(f"cannot use the address {address!r}: {error}") from error
