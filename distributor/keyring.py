"""Who is let in by a key, as authorized_keys says now: answers ZAP's questions, notices changes, exchanges invitations.

A peer of the plain mechanism may claim any property in its handshake, "User-Id" too; so what ZAP tells libzmq to note of a peer begins
with a secret of this process. Knows the keys directory and ZAP (RFC 27). Does not know connections.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from dwrap.protocol import authorized, keys
from dwrap.protocol.authorized import Grant, KeyLineError

_VERSION: Final = b"1.0"
_QUESTION_FRAMES: Final = 6  # and the credentials
_SECRET_BYTES: Final = 16
_MOST_TOLD: Final = 8  # refused keys are logged at most so often a minute, for anybody can make more of them
_MINUTE: Final = 60.0
_EDIT_SECONDS: Final = 0.2  # everybody waits meanwhile

log = logging.getLogger("dwrap.distributor")


class Keyring:
    """The distributor's own pair, and the grants."""

    def __init__(self, folder: Path, pair: keys.Pair) -> None:
        """Raises OSError when authorized_keys cannot be read."""
        self.pair = pair
        self._folder = folder
        self._mark = os.urandom(_SECRET_BYTES).hex() + ":"
        self._stamp: tuple[int, ...] = ()
        self._grants: dict[str, Grant] = {}
        self._next_expiry: float | None = None
        self._told: list[float] = []
        self._has_changed = True
        self._trouble = ""
        self._take(authorized.read(folder))
        self._has_changed = False

    # ---- who is let in ----

    def grant(self, key: str) -> Grant | None:
        """What a key may do now; None when it is not let in."""
        found = self._grants.get(key)
        return None if found is None or found.has_expired(time.time()) else found

    def of_user_id(self, user_id: str) -> str | None:
        """The key that `answer` vouched for; None when it did not."""
        return user_id.removeprefix(self._mark) if user_id.startswith(self._mark) else None

    def answer(self, request: Sequence[bytes]) -> list[bytes]:
        """ZAP's answer to ZAP's question."""
        if len(request) < _QUESTION_FRAMES:
            return [_VERSION, b"", b"500", b"not understood", b"", b""]
        version, request_id, domain, address, _, mechanism, *credentials = request
        if version != _VERSION or domain != keys.ZAP_DOMAIN.encode() or mechanism != b"CURVE" or len(credentials) != 1:
            return [_VERSION, request_id, b"500", b"not understood", b"", b""]
        key = credentials[0].hex()
        if self.grant(key) is None:
            self._look()  # it may have been let in a moment ago
        if self.grant(key) is None:
            self._tell_refused(key, address.decode("ascii", "replace"))
            return [_VERSION, request_id, b"400", b"this key is not let in", b"", b""]
        return [_VERSION, request_id, b"200", b"OK", (self._mark + key).encode(), b""]

    def _tell_refused(self, key: str, address: str) -> None:
        now = time.monotonic()
        self._told = [at for at in self._told if now - at < _MINUTE]
        if len(self._told) < _MOST_TOLD:
            self._told.append(now)
            log.warning("a key from %s is not let in: %s", json.dumps(address), key)

    # ---- changes ----

    def refresh(self, now: float) -> bool:
        """Looks at the file again, and at the clock. Returns whether any grant may have changed or ended since the last time."""
        self._look()
        has_changed, self._has_changed = self._has_changed, False
        if self._next_expiry is not None and now >= self._next_expiry:
            self._next_expiry = self._first_expiry(now)
            return True
        return has_changed

    def _look(self) -> None:
        try:
            if self._trouble or not self._stamp or authorized.look(self._folder) != self._stamp:
                self._take(authorized.read(self._folder))
                self._trouble = ""
        except OSError as error:
            self._lock_out(str(error.strerror or error))

    def _lock_out(self, trouble: str) -> None:
        """A list of keys that cannot be trusted lets nobody in; it is tried again at each look."""
        if trouble != self._trouble:
            log.error("no key is let in: cannot use %s: %s", self._folder / authorized.FILE, trouble)
        self._trouble = trouble
        self._has_changed |= bool(self._grants)
        self._grants = {}

    def _take(self, reading: authorized.Reading) -> None:
        if reading.stamp and reading.stamp == self._stamp and not self._trouble:
            return
        grants, problems = authorized.parse(reading.text)
        is_news = grants != self._grants or reading.stamp != self._stamp
        self._has_changed |= grants != self._grants
        self._stamp, self._grants = reading.stamp, grants
        self._next_expiry = self._first_expiry(0.0)
        if is_news:
            for problem in problems:
                log.warning("%s: %s", self._folder / authorized.FILE, problem)
            log.info("%d keys are let in", len(self._grants))

    def _first_expiry(self, after: float) -> float | None:
        return min((grant.expires for grant in self._grants.values() if grant.expires is not None and grant.expires > after), default=None)

    # ---- invitations ----

    def exchange(self, invitation: Grant, key: str) -> Grant:
        """Lets in a key with the invitation's rights, in its place. Raises KeyLineError, OSError."""
        fresh = replace(invitation, key=authorized.check_key(key), rights=invitation.rights - {"invite"}, expires=None)

        def change(text: str) -> str:
            if invitation not in authorized.parse(text)[0].values():
                raise KeyLineError("the invitation has been used or withdrawn")
            return authorized.with_grant(authorized.without(text, invitation.key), fresh)

        authorized.edit(self._folder, change, _EDIT_SECONDS)
        self._look()
        return fresh
