"""Whom a job may run as here: this machine's own user database against what a submitter claims.

Knows users and groups. Does not know how a process takes an identity on, nor who proved which uid: that is the distributor's word.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

CACHE_SECONDS: Final = 10.0


class Refusal(Exception):
    """The job may not run here as asked. The text is fit for REJECT's `reason`."""


class Shortage(Exception):
    """This machine cannot even look. The text is fit for REJECT's `reason`."""


@dataclass(frozen=True, slots=True)
class Account:
    """What the database says of a uid: its primary group and all its groups."""

    gid: int
    groups: frozenset[int]


@dataclass(frozen=True, slots=True)
class Identity:
    """What a job's processes get. `become` is false when they keep the agent's own."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    become: bool


def look_up(uid: int) -> Account | None:
    """The account of a uid in this machine's database, or None. Raises Shortage: without descriptors the C library finds nobody."""
    try:
        for fd in os.pipe():
            os.close(fd)
    except OSError as error:
        raise Shortage(f"the agent could not look up uid {uid}: {error.strerror}") from error
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return None
    return Account(entry.pw_gid, frozenset(os.getgrouplist(entry.pw_name, entry.pw_gid)))


class Accounts:
    """Decides identities; remembers the database's answers for a short while."""

    def __init__(self, own_uid: int, allow_root: bool, database: Callable[[int], Account | None] = look_up) -> None:
        self._own_uid = own_uid
        self._allow_root = allow_root
        self._database = database
        self._cache: dict[int, tuple[float, Account | None]] = {}

    def identity(self, uid: int, claimed_gid: int | None, claimed_groups: Sequence[int], now: float) -> Identity:
        """The identity for a job of `uid`: the claimed groups that the database gives too. Raises Refusal, Shortage."""
        if uid == 0 and not self._allow_root:
            raise Refusal("root's jobs do not run here; the agent was started without --allow-root")
        if self._own_uid != 0:
            if uid != self._own_uid:
                raise Refusal(f"the agent runs as uid {self._own_uid} and cannot run jobs of uid {uid}")
            return Identity(uid, os.getegid(), tuple(os.getgroups()), become=False)
        account = self._account(uid, now)
        if account is None:
            raise Refusal(f"uid {uid} is unknown on this agent; add the user to its database")
        gid = account.gid if claimed_gid is None else claimed_gid
        if gid != account.gid and gid not in account.groups:
            raise Refusal(f"uid {uid} does not belong to group {gid} on this agent")
        return Identity(uid, gid, tuple(sorted(account.groups.intersection(claimed_groups))), become=True)

    def _account(self, uid: int, now: float) -> Account | None:
        known = self._cache.get(uid)
        if known is None or now - known[0] >= CACHE_SECONDS:
            known = (now, self._database(uid))
            self._cache[uid] = known
        return known[1]
