"""authorized_keys: who is let in, and as what. One key a line, kept by people and by `dwrapctl key`.

    # KEY (64 hexadecimal digits)  NAME  what it may do
    3f0c…a9  alice@desk  submit uid=1000
    77e1…02  farm        serve
    a410…5d  ci          submit uid=2000-2999 group=27,100 expires=2027-01-01T00:00:00Z

Rights are `submit` (jobs, and questions about them), `serve` (be an agent) and `operate` (drain agents); `invite` marks a key that
may only exchange itself for a new one with the other rights of its line, once. `uid=` says as whom a submitter's jobs run, or for
whom an agent may run jobs (without it: for anybody, and root where it was started with --allow-root).
`#` begins a comment, at the start of a line or after a blank.
Knows text and one file. Does not know connections, nor what a right opens.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

from dwrap.protocol.whole import LOCK_SECONDS, locked, replace_file

FILE: Final = "authorized_keys"
RIGHTS: Final = ("submit", "serve", "operate", "invite")
MAX_FILE_BYTES: Final = 4 * 1024 * 1024
MAX_GROUPS: Final = 64
MAX_ID: Final = 2**32 - 2  # the last one stands for "as before" in the kernel's calls
_KEY: Final = re.compile(r"[0-9a-f]{64}\Z")
_NAME: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z._@-]{0,63}\Z")
_COMMENT: Final = re.compile(r"(^|\s)#.*")
_TIME: Final = "%Y-%m-%dT%H:%M:%SZ"


class KeyLineError(ValueError):
    """A line or a word of it that cannot be meant. The text says why."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What one key may do. `uids`: ranges, both ends included. `expires`: seconds since 1970, or None."""

    key: str
    name: str
    rights: frozenset[str]
    uids: tuple[tuple[int, int], ...] = ()
    groups: tuple[int, ...] = ()
    expires: float | None = None

    def may(self, right: str) -> bool:
        """Whether it has this right; an invitation has none yet."""
        return right in self.rights and (right == "invite" or "invite" not in self.rights)

    def has_expired(self, now: float) -> bool:
        return self.expires is not None and now >= self.expires

    def allows(self, uid: int) -> bool:
        return any(low <= uid <= high for low, high in self.uids)

    @property
    def only_uid(self) -> int | None:
        """The one uid it stands for; None when there are several or none."""
        return self.uids[0][0] if len(self.uids) == 1 and self.uids[0][0] == self.uids[0][1] else None

    def line(self) -> str:
        """The line that says this."""
        words = [self.key, self.name, *(right for right in RIGHTS if right in self.rights)]
        words += [f"uid={','.join(str(low) if low == high else f'{low}-{high}' for low, high in self.uids)}"] if self.uids else []
        words += [f"group={','.join(map(str, self.groups))}"] if self.groups else []
        words += [f"expires={datetime.fromtimestamp(self.expires, UTC).strftime(_TIME)}"] if self.expires is not None else []
        return " ".join(words)


def check_key(text: str) -> str:
    """A public key as it is written everywhere. Raises KeyLineError."""
    key = text.lower()
    if not _KEY.match(key):
        raise KeyLineError(f"{text[:70]!r} is no key: it has not 64 hexadecimal digits")
    return key


def check_name(text: str) -> str:
    """A name for a key. Raises KeyLineError."""
    if not _NAME.match(text) or text in RIGHTS:
        raise KeyLineError(f"{text[:70]!r} is no name: letters, digits and . _ @ - are, 64 at most, and no right's name")
    return text


def parse_uids(text: str) -> tuple[tuple[int, int], ...]:
    """`1000`, `1000-1999`, or several with commas. Raises KeyLineError. 0 counts only by itself: no range may bring root in unseen."""
    ranges = []
    for word in text.split(","):
        low_text, dash, high_text = word.partition("-")
        low = _number(low_text)
        high = _number(high_text) if dash else low
        if low > high or (low == 0 and high > 0):
            raise KeyLineError(f"uid={word} is no range: it goes upwards, from 1 on; root is uid=0 alone")
        ranges.append((low, high))
    return tuple(ranges)


def parse_groups(text: str) -> tuple[int, ...]:
    """`27` or several with commas. Raises KeyLineError."""
    groups = tuple(map(_number, text.split(",")))
    if len(groups) > MAX_GROUPS:
        raise KeyLineError(f"group= has more than {MAX_GROUPS} numbers")
    return groups


def _number(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or len(text) > 10 or int(text) > MAX_ID:
        raise KeyLineError(f"{text[:20]!r} is no uid or gid: those are numbers from 0 to {MAX_ID}")
    return int(text)


def parse_time(text: str) -> float:
    """`2027-01-01T00:00:00Z`, or a date. Raises KeyLineError."""
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError) as error:
        raise KeyLineError(f"expires={text[:40]} is no time; write it as 2027-01-01T00:00:00Z") from error


def parse_line(line: str) -> Grant | None:
    """One line; None when it says nothing. Raises KeyLineError."""
    words = _COMMENT.sub("", line).split()
    if not words:
        return None
    if len(words) < 3:
        raise KeyLineError("it needs a key, a name and a right")
    key, name = check_key(words[0]), check_name(words[1])
    rights = {word for word in words[2:] if word in RIGHTS}
    options = _options([word for word in words[2:] if word not in RIGHTS])
    grant = Grant(
        key, name, frozenset(rights),
        uids=parse_uids(options["uid"]) if "uid" in options else (),
        groups=parse_groups(options["group"]) if "group" in options else (),
        expires=parse_time(options["expires"]) if "expires" in options else None,
    )  # fmt: skip
    return check_grant(grant)


def _options(words: list[str]) -> dict[str, str]:
    options: dict[str, str] = {}
    for word in words:
        option, equals, value = word.partition("=")
        if option not in ("uid", "group", "expires") or not equals or option in options:
            raise KeyLineError(f"{word[:40]!r} is not understood; known are {', '.join(RIGHTS)}, uid=, group=, expires=, each once")
        options[option] = value
    return options


def check_grant(grant: Grant) -> Grant:
    """The grant, if it makes sense. Raises KeyLineError."""
    if not grant.rights - {"invite"}:
        raise KeyLineError(f"{grant.name} has no right; write submit, serve or operate")
    if {"submit", "serve"} <= grant.rights:
        raise KeyLineError(f"{grant.name} has both submit and serve; a user's key cannot serve, an agent's cannot submit: make two keys")
    if "submit" in grant.rights and not grant.uids:
        raise KeyLineError(f"{grant.name} may submit, but as nobody; write uid=NUMBER")
    if "serve" in grant.rights and grant.uids and grant.only_uid is None:
        raise KeyLineError(f"{grant.name} may serve several uids; an agent serves one, or with no uid= anybody")
    return grant


def parse(text: str) -> tuple[dict[str, Grant], list[str]]:
    """The grants by key, and what is wrong with lines that therefore count for nothing. Of lines with one key or name the first counts."""
    grants: dict[str, Grant] = {}
    names: set[str] = set()
    problems: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            grant = parse_line(line)
            if grant is not None and (grant.key in grants or grant.name in names):
                raise KeyLineError(f"the key or the name {grant.name} is on an earlier line too")
        except KeyLineError as error:
            problems.append(f"line {number} counts for nothing: {error}")
            continue
        if grant is not None:
            grants[grant.key] = grant
            names.add(grant.name)
    return grants, problems


def with_grant(text: str, grant: Grant) -> str:
    """The file's text with one more line. Raises KeyLineError when its key or name is there already."""
    for other in parse(text)[0].values():
        if grant.key == other.key:
            raise KeyLineError(f"this key is let in already, as {other.name}; dwrapctl key revoke {other.name} ends that")
        if grant.name == other.name:
            raise KeyLineError(f"{other.name} is there already, with the key {other.key}; dwrapctl key revoke {other.name} removes it")
    return f"{text}{'' if not text or text.endswith(chr(10)) else chr(10)}{check_grant(grant).line()}\n"


def without(text: str, name: str) -> str:
    """The file's text without the line of this name or key. Raises KeyLineError when there is none."""
    kept = [line for line in text.splitlines(keepends=True) if name not in _COMMENT.sub("", line).split()[:2]]
    if len(kept) == len(text.splitlines()):
        raise KeyLineError(f"no key is called {name}; dwrapctl key list shows them")
    return "".join(kept)


class Reading(NamedTuple):
    """The file's text, and a stamp that is another one as soon as the file is another, or was written to while it was read."""

    text: str
    stamp: tuple[int, ...]


def look(directory: Path) -> tuple[int, ...]:
    """The stamp of the file, and of the directory's permissions, as they are now; empty when there is no file."""
    try:
        return _stamp(os.stat(directory / FILE), directory.stat())
    except OSError:
        return ()


def _stamp(found: os.stat_result, around: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns, around.st_mode, around.st_uid


def read(directory: Path, extra_flags: int = 0) -> Reading:
    """The file as it is; empty when there is none. Raises OSError; PermissionError when others than its owner (root, we, or whom the
    directory belongs to) may write to it.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | extra_flags  # a FIFO must not hold us up
    try:
        with open(os.open(directory / FILE, flags), "rb") as file:
            found, around = os.fstat(file.fileno()), directory.stat()
            if not stat.S_ISREG(found.st_mode) or found.st_mode & 0o022 or found.st_uid not in (0, os.geteuid(), around.st_uid):
                raise PermissionError(0, f"{directory / FILE} is not a file that only its owner may write to; chmod 600 it")
            if around.st_mode & 0o022:
                raise PermissionError(0, f"others may write to {directory}; chmod 700 it")
            content = file.read(MAX_FILE_BYTES + 1)
            stamp = _stamp(found, around)
            if _stamp(os.fstat(file.fileno()), around) != stamp:
                stamp = ()  # half of it may be what was written meanwhile: it has to be read again
    except FileNotFoundError:
        return Reading("", ())
    if len(content) > MAX_FILE_BYTES:
        raise OSError(0, f"{directory / FILE} is larger than {MAX_FILE_BYTES} bytes; remove lines")
    return Reading(content.decode("utf-8", "replace"), stamp)


def edit(directory: Path, change: Callable[[str], str], patience: float = LOCK_SECONDS) -> None:
    """Replaces the file's text by `change(text)`, whole or not at all, one editor at a time. Raises OSError, TimeoutError when another
    editor does not end within `patience` seconds, and what `change` raises.

    The new file belongs to whom the directory does: root may keep the keys of a distributor that has its own user. So what a link there
    leads to, which root may read and that user not, must not come into it.
    """
    with locked(directory, patience):
        replace_file(directory / FILE, change(read(directory, os.O_NOFOLLOW).text))
