"""Whom a job may run as here: this machine's own user database, and what the submitter's key gives, against what a submitter claims.

Knows users and groups. Does not know how a process takes an identity on, nor who proved which uid: that is the distributor's word.
Uid 0 and gid 0 are the operator's to give, by `--allow-root`; no claim, no entry of the database and no key gives them otherwise.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final

CACHE_SECONDS: Final = 10.0
MAX_ID: Final = 2**32 - 2  # above it is what the kernel takes for "as before"


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
    dropped: tuple[int, ...] = ()  # groups that were claimed and that it does not get


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

    def identity(
        self, uid: int, claimed_gid: int | None, claimed_groups: Sequence[int], now: float, given: Sequence[int] = ()
    ) -> Identity:
        """The identity for a job of `uid`: the claimed groups that the database gives too, or the submitter's key (`given`).
        Raises Refusal, Shortage.
        """
        if uid > MAX_ID:
            raise Refusal(f"{uid} is no user's id; the highest is {MAX_ID}")
        if uid == 0 and not self._allow_root:
            raise Refusal("root's jobs do not run here; the agent was started without --allow-root")
        if self._own_uid != 0:
            return self._own(uid, claimed_gid, claimed_groups)
        account = self._account(uid, now)
        gid = self._primary(uid, claimed_gid, account, given)
        allowed = self._permitted({*given, *(account.groups if account else ())})
        claimed = set(claimed_groups)
        return Identity(uid, gid, tuple(sorted(claimed & allowed)), become=True, dropped=tuple(sorted(claimed - allowed - {gid})))

    def _own(self, uid: int, claimed_gid: int | None, claimed_groups: Sequence[int]) -> Identity:
        """Without rights nothing can be taken on or laid down: what the agent was started with is its operator's doing, group 0 too."""
        if uid != self._own_uid:
            raise Refusal(f"the agent runs as uid {self._own_uid} and cannot run jobs of uid {uid}")
        gid, groups = os.getegid(), tuple(os.getgroups())
        claimed = {*claimed_groups, *(() if claimed_gid is None else (claimed_gid,))}
        return Identity(uid, gid, groups, become=False, dropped=tuple(sorted(claimed - {gid, *groups})))

    def _primary(self, uid: int, claimed: int | None, account: Account | None, given: Sequence[int]) -> int:
        """The primary group. Raises Refusal."""
        has = {*given, *((account.gid, *account.groups) if account else ())}
        gid = claimed
        if gid is None and has:
            gid = account.gid if account else given[0]
        if account is None and gid not in has:
            raise Refusal(
                f"uid {uid} is unknown on this agent; add the user to its database, "
                f"or give the key group={'GID' if gid is None else gid} in the distributor's authorized_keys"
            )
        if gid is None or gid not in has:
            raise Refusal(f"uid {uid} does not belong to group {gid} on this agent, and its key does not give it that group")
        if not self._permitted((gid,)):
            raise Refusal(f"uid {uid} may not have group {gid} here; the agent was started without --allow-root")
        return gid

    def _permitted(self, groups: Collection[int]) -> set[int]:
        return {group for group in groups if group <= MAX_ID and (group != 0 or self._allow_root)}

    def _account(self, uid: int, now: float) -> Account | None:
        known = self._cache.get(uid)
        if known is None or now - known[0] >= CACHE_SECONDS:
            known = (now, self._database(uid))
            self._cache[uid] = known
        return known[1]
