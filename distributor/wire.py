"""Messages to events, and actions to messages: the distributor's side of PROTOCOL.md.

Pure. Knows which fields each verb has. Does not know connections (a caller says who sent it) or what happens next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from dwrap.distributor import events as e
from dwrap.distributor.events import Fact, Peer
from dwrap.distributor.job import MAX_MADE
from dwrap.distributor.policy import AGENT_LABEL
from dwrap.distributor.roster import LEASE_SECONDS
from dwrap.protocol.manifest import MAX_PIECE_BYTES, MAX_SEEN_BYTES, parse
from dwrap.protocol.messages import VERSION, Fields, FieldsIn, ProtocolError, check_whole, encode, encode_fields, is_name, one_line

LEASE_MS: Final = round(LEASE_SECONDS * 1_000)
MAX_PRIORITY: Final = 8
MAX_SLOTS: Final = 4_096
MAX_ATTEMPT: Final = 1_000_000
MAX_PATHS: Final = 1_024  # with what is to be removed they have to fit into ASSIGN
MAX_PATHS_BYTES: Final = 96 * 1024
MAX_PATH_BYTES: Final = 4_095
MAX_TEXT: Final = 256
MAX_PACKAGES: Final = 64 * 1024
MAX_LINES: Final = 64  # of one kind in REGISTER
_NUMBERS: Final = (
    "stdin_taken",
    "stdout_bytes",
    "stderr_bytes",
    "run_ms",
    "flush_ms",
    "user_ms",
    "system_ms",
    "max_rss_bytes",
    "outputs_count",
    "revalidate_ms",
    "stale",
    "reran",
    "escaped",
)
_TEXTS: Final = ("outputs_why", "escaped_path", "groups_dropped")
_ERRORS: Final = frozenset({"not_found", "not_executable", "cwd", "infrastructure", "lost"})
_OFFSETS: Final = ("stdout", "stderr", "stdout_limit", "stderr_limit")


def job_spec(fields: Fields, groups: tuple[int, ...] = ()) -> e.JobSpec:
    """What SUBMIT asks for, and the groups that its sender's key gives. Raises ProtocolError."""
    _check_version(fields)
    cwd = fields.text("cwd")
    if not cwd.startswith("/") or len(fields.need("cwd")) > MAX_PATH_BYTES:
        raise ProtocolError(f"field cwd is not an absolute path of at most {MAX_PATH_BYTES} bytes")
    priority = fields.signed("priority")
    if abs(priority) > MAX_PRIORITY:
        raise ProtocolError("field priority is not between -8 and 8")
    labels = fields.texts("label")
    if len(labels) > MAX_LINES or any(len(label) > MAX_TEXT for label in labels):
        raise ProtocolError(f"field label is given more than {MAX_LINES} times, or is longer than {MAX_TEXT} characters")
    agent = _one_agent(labels) if labels else ""
    paths = fields.texts("path")
    if len(paths) > MAX_PATHS or sum(map(len, fields.all("path"))) > MAX_PATHS_BYTES:
        raise ProtocolError(f"field path is given more than {MAX_PATHS} times, or is too long")
    return e.JobSpec(
        job=fields.name("job"),
        cwd=cwd,
        command=fields.need("command").decode("utf-8", "surrogateescape")[:MAX_TEXT],
        build=fields.need("build").decode("utf-8", "surrogateescape")[:MAX_TEXT],
        host=fields.text("host")[:MAX_TEXT],
        pid=fields.number("pid", 0),
        paths=paths,
        labels=tuple(label for label in labels if not label.startswith(AGENT_LABEL)) if agent else labels,
        priority=priority,
        remote=fields.flag("remote"),
        identity=fields.text("identity")[:MAX_TEXT],
        cpu=fields.text("cpu")[:MAX_TEXT],
        agent=agent,
        views=fields.flag("views"),
        groups=groups,
    )


def _one_agent(labels: tuple[str, ...]) -> str:
    """The agent that these labels ask for, or an empty string. Raises ProtocolError when they ask for two."""
    names = {label.removeprefix(AGENT_LABEL) for label in labels if label.startswith(AGENT_LABEL)}
    if len(names) > 1 or "" in names:
        raise ProtocolError("a job may ask for one agent, with the label agent=NAME")
    return names.pop() if names else ""


def submit(peer: Peer, uid: int | None, groups: tuple[int, ...], fields: Fields) -> e.Event:
    """SUBMIT. Raises ProtocolError."""
    spec = job_spec(fields, groups)
    return e.Explained(peer, uid, spec) if fields.flag("explain") else e.Submitted(peer, uid, spec)


def go(peer: Peer, fields: Fields, bodies: Sequence[bytes], raw_fields: bytes) -> e.Committed:
    """GO. Raises ProtocolError."""
    if not 2 <= len(bodies) <= 3 or not bodies[0] or bodies[0][-1]:
        raise ProtocolError("GO needs two bodies, argv (one string at least) and env, or a third of entries")
    check_whole(fields, bodies[0], bodies[1])
    seen = bodies[2] if len(bodies) == 3 else b""
    if len(seen) > MAX_SEEN_BYTES or (seen and seen[-1]):
        raise ProtocolError("the entries in GO are too many or malformed")
    return e.Committed(peer, fields.name("job"), fields.name("stamp"), (raw_fields, bodies[0], bodies[1], seen))


def manifest(peer: Peer, fields: Fields, bodies: Sequence[bytes], frames: Sequence[bytes]) -> e.ManifestTold:
    """MANIFEST. Raises ProtocolError."""
    if len(bodies) != 1 or len(bodies[0]) > MAX_PIECE_BYTES:
        raise ProtocolError("MANIFEST needs one body of at most 32 KiB")
    job = "" if fields.flag("offer") else fields.name("job")
    return e.ManifestTold(peer, job, fields.number("attempt", 0), parse(bodies[0]), frames)


def register(peer: Peer, uid: int | None, fields: Fields, owner: str = "") -> e.Registered:
    """REGISTER. Raises ProtocolError."""
    _check_version(fields)
    slots = fields.number("slots")
    if not 1 <= slots <= MAX_SLOTS:
        raise ProtocolError(f"field slots is not between 1 and {MAX_SLOTS}")
    roots = fields.texts("root")
    if not roots or not all(root.startswith("/") for root in roots):
        raise ProtocolError("field root is missing or is not an absolute path")
    serves = fields.need("serves")
    labels = frozenset(fields.texts("label"))
    if any(label.startswith(AGENT_LABEL) for label in labels):
        raise ProtocolError("the label agent= is given by the agent's name and cannot be claimed")
    spec = e.AgentSpec(
        name=fields.name("name"),
        slots=slots,
        roots=roots,
        serves=e.ANY_UID if serves == b"any" else fields.number("serves"),
        labels=labels,
        identity=fields.text("identity")[:MAX_TEXT],
        cpu=fields.text("cpu")[:MAX_TEXT],
        packages=fields.text("packages")[:MAX_PACKAGES],
        allow_root=fields.flag("allow_root"),
        host=fields.text("host")[:MAX_TEXT],
        cpus=fields.number("cpus", 0),
        memory_bytes=fields.number("memory_bytes", 0),
        tree=fields.text("tree")[:MAX_TEXT],
        incarnation=fields.name("incarnation") if fields.get("incarnation") else "",
        former=fields.texts("former"),
        leftover=fields.number("leftover", 0),
        running=tuple(_held(value) for value in fields.texts("running")),
        kept=tuple(_held(value) for value in fields.texts("kept")),
        draining=fields.flag("draining"),
        views=fields.flag("views"),
        mounts=_lines(fields, "mount"),
        flaws=_lines(fields, "flaw"),
    )
    return e.Registered(peer, uid, spec, owner)


def heartbeat(peer: Peer, fields: Fields) -> e.Heartbeat:
    """HEARTBEAT. Raises ProtocolError."""
    load = e.Load(
        foreign_cpus=fields.number("foreign", 0) / 1_000,
        memory_available_bytes=fields.number("memory_available_bytes", 0),
        psi_cpu=fields.number("psi_cpu", 0) / 100,
        psi_memory=fields.number("psi_memory", 0) / 100,
        psi_io=fields.number("psi_io", 0) / 100,
    )
    return e.Heartbeat(peer, fields.name("token"), load)


def rejected(peer: Peer, fields: Fields) -> e.Rejected:
    """REJECT. Raises ProtocolError."""
    reason = one_line(fields.text("reason"))
    return e.Rejected(peer, fields.name("job"), fields.number("attempt"), reason, fields.flag("fault"))


def made(peer: Peer, fields: Fields) -> e.Made:
    """MADE. Raises ProtocolError."""
    who = fields.name("job"), fields.number("attempt"), fields.number("seq")
    paths = _paths(fields, "path")
    beyond = one_line(fields.text("beyond")) or ("" if paths is not None else "it made a name that cannot be removed for certain")
    return e.Made(peer, *who, paths or (), beyond, fields.flag("ask"))


def attach(peer: Peer, uid: int | None, groups: tuple[int, ...], fields: Fields) -> e.Attached:
    """ATTACH of a submitter. Raises ProtocolError."""
    offsets = tuple((name, fields.number(name)) for name in _OFFSETS)
    attempt, epoch, since = fields.number("attempt"), fields.number("epoch"), fields.number("go_ms") / 1_000
    if attempt > MAX_ATTEMPT:
        raise ProtocolError(f"field attempt is larger than {MAX_ATTEMPT}")
    return e.Attached(peer, uid, job_spec(fields, groups), attempt, epoch, since, offsets)


def _paths(fields: Fields, key: str) -> tuple[str, ...] | None:
    """Names that are to be removed before another attempt; None when they cannot all be: the command waits for an answer all the same."""
    paths = fields.texts(key)
    return paths if len(paths) <= MAX_MADE and all(map(_is_plain, paths)) else None


def _is_plain(path: str) -> bool:
    """Whether it names what it seems to name, wherever it is removed."""
    first, *rest = path.split("/")
    return first == "" and bool(rest) and not {"", ".", ".."}.intersection(rest)


def finished(peer: Peer, fields: Fields, raw_fields: bytes) -> e.Finished:
    """RESULT. Raises ProtocolError."""
    error = fields.text("error")
    if error and error not in _ERRORS:
        raise ProtocolError("field error is not a known one")
    given = fields.get
    facts: dict[str, Fact] = {name: fields.number(name) for name in _NUMBERS if given(name) is not None}
    facts["tree"] = fields.text("tree")[:MAX_TEXT]
    facts["outputs"] = fields.text("outputs")[:MAX_TEXT]
    facts.update({name: one_line(fields.text(name)) for name in _TEXTS if given(name) is not None})
    status = None if error else fields.number("status")
    paths = _paths(fields, "made")
    flags = fields.flag("repeat") and paths is not None, paths or (), fields.flag("memory"), fields.flag("fault")
    outcome = e.Outcome(status, error, one_line(fields.text("reason")), facts, *flags)
    return e.Finished(peer, fields.name("job"), fields.number("attempt"), outcome, raw_fields)


def refused(reason: str, job: str = "") -> list[bytes]:
    """REFUSED, to anyone."""
    pairs: FieldsIn = [("job", job), ("reason", one_line(reason))] if job else [("reason", one_line(reason))]
    return encode("REFUSED", pairs)


def prove(job: str, stamp: str) -> list[bytes]:
    """PROVE, to a submitter."""
    return encode("PROVE", [("job", job), ("stamp", stamp)])


def _check_version(fields: Fields) -> None:
    if fields.number("version") < VERSION:
        raise ProtocolError(f"this distributor speaks version {VERSION} of the protocol")


def _lines(fields: Fields, key: str) -> tuple[str, ...]:
    return tuple(map(one_line, fields.texts(key)[:MAX_LINES]))


def _held(text: str) -> e.Held:
    job, *numbers = text.split(":")
    are_numbers = len(numbers) == 2 and all(number.isascii() and number.isdecimal() and len(number) <= 10 for number in numbers)
    if not are_numbers or not is_name(job.encode("utf-8", "surrogateescape")) or int(numbers[0]) > MAX_ATTEMPT:
        raise ProtocolError("field running or kept is not of the form JOB:ATTEMPT:UID")
    return job, int(numbers[0]), int(numbers[1])


def _assign(action: e.Assign, epoch: int) -> list[bytes]:
    spec = action.spec
    pairs: list[tuple[str, str | int]] = [("job", spec.job), ("attempt", action.attempt), ("epoch", epoch), ("uid", action.uid)]
    pairs += [("cwd", spec.cwd), ("build", spec.build), *(("group", group) for group in spec.groups)]
    if spec.paths:
        pairs += [("path", path) for path in spec.paths]
    if action.views:
        pairs += [("views", 1), ("burst", action.burst)]
    if action.behind:
        pairs.append(("behind", 1))
    if action.memory_retry:
        pairs.append(("memory_retry", 1))
    if action.undo:
        pairs += [("undo", path) for path in action.undo]
    payload = action.payload if len(action.payload) > 3 else (*action.payload, b"")
    return encode("ASSIGN", pairs, *payload, action.journal)


def _offer(action: e.Offer, epoch: int) -> list[bytes]:
    views = b"views=1\0" if action.views else b""
    pairs = b"job=%b\0stamp=%b\0attempt=%d\0epoch=%d\0%b"
    return [b"OFFER", pairs % (action.job.encode(), action.stamp.encode(), action.attempt, epoch, views)]


def _result(action: e.DeliverResult, _: int) -> list[bytes]:
    return [b"RESULT", action.payload, encode_fields([("agent", action.agent), ("queued_ms", action.queued_ms)])]


#: For each action that sends a message: what makes the message, without the routing id, from the action and our epoch.
MESSAGES: Final[dict[type, Callable[[Any, int], list[bytes]]]] = {
    e.Answer: lambda a, _: encode(a.verb, [("job", a.job), ("reason", one_line(a.reason))]),
    e.TellExplained: lambda a, _: encode(
        "EXPLAINED", [("job", a.job), ("where", a.where), ("agent", a.agent), ("reason", one_line(a.reason))]
    ),
    e.TellQueued: lambda a, _: encode("QUEUED", [("job", a.job), ("ahead", a.ahead)]),
    e.Offer: _offer,
    e.ForwardManifest: lambda a, _: list(a.frames),
    e.Assign: _assign,
    e.DeliverResult: _result,
    e.TellFailed: lambda a, _: encode(
        "FAILED", [("job", a.job), ("reason", one_line(a.reason)), ("safe", int(a.safe)), *(("undo", path) for path in a.undo)]
    ),
    e.TellMissing: lambda a, _: encode("MISSING", [("job", a.job)]),
    e.Resume: lambda a, _: encode("RESUME", [("job", a.job)]),
    e.ForwardAttach: lambda a, _: encode("ATTACH", [("job", a.job), ("attempt", a.attempt), *a.offsets]),
    e.Noted: lambda a, _: encode("NOTED", [("job", a.job), ("attempt", a.attempt), ("seq", a.seq)]),
    e.Welcome: lambda a, epoch: encode("WELCOME", [("epoch", epoch), ("token", a.token), ("lease_ms", LEASE_MS)]),
    e.RenewLease: lambda _, epoch: encode("LEASE", [("epoch", epoch), ("lease_ms", LEASE_MS)]),
    e.RefuseAgent: lambda a, _: encode("REFUSED", [("reason", one_line(a.reason)), ("again", int(a.may_change))]),
    e.Drain: lambda _, __: encode("DRAIN"),
    e.Kill: lambda a, _: encode("KILL", [("job", a.job), ("attempt", a.attempt)]),
    e.AckResult: lambda a, _: [b"ACK", b"job=%b\0attempt=%d\0" % (a.job.encode(), a.attempt)],
}
