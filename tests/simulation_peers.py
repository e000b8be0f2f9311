"""The simulation's models of what is not under test in it: connections, runners, wrappers, machines. See simulation.py.

Each does what its original does as far as others can see it: a `Runner` as agent/main.c, a `Wrapper` as wrapper/relay.c, a `Host` as
agent/link.py around a real Session. Knows no invariants beyond those of its own.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from dwrap.agent import events as a
from dwrap.agent.registration import Registration
from dwrap.agent.session import Session
from dwrap.distributor import events as e
from dwrap.distributor import wire
from dwrap.protocol import messages
from dwrap.protocol.messages import INITIAL_OUTPUT_CREDIT_BYTES as CREDIT
from dwrap.protocol.messages import Fields

if TYPE_CHECKING:
    from simulation import World

UID: Final = 1000
PATIENCE: Final = 30.0
ORPHAN: Final = 300.0
Message = tuple[str, Fields, Sequence[bytes]]


class Violation(AssertionError):
    """An invariant that did not hold."""


class Plan:
    """What one command does, whenever it is run: the same each time, unless it is fickle."""

    def __init__(self, chance: random.Random, name: str) -> None:
        kind = chance.random()
        self.is_fickle = kind < 0.03
        self.runs_program = 0.03 <= kind < 0.07
        self.changes = 0.07 <= kind < 0.2
        self.may_fail = False  # something has happened that nobody can make good
        self.status = 0 if chance.random() < 0.8 else 256
        slow = chance.choice((0.3, 1, 1, 4))
        self.steps: list[tuple[float, str, Any]] = []
        for number in range(chance.randint(1, 4)):
            what = chance.choice(("print", "print", "make"))
            value: Any = f"/srv/{name}/{number}" if what == "make" else (chance.choice((1, 2)), chance.choice((10, 3_000, 70_000)))
            self.steps.append((chance.expovariate(1.0) * slow / 2, what, value))
        if self.runs_program:
            self.steps.insert(0, (0.01, "beyond", "it ran a program of the tree"))
        if self.changes:
            self.steps.append((chance.expovariate(1.0) * slow / 2, "change", "it changed a file"))
            self.steps.append((chance.expovariate(1.0) * slow / 2, "print", (1, 10)))
        self.steps.append((chance.expovariate(1.0) * slow / 2, "end", None))
        self.totals = {stream: sum(step[2][1] for step in self.steps if step[1] == "print" and step[2][0] == stream) for stream in (1, 2)}

    def printed(self, stream: int, start: int, size: int, attempt: int) -> bytes:
        """A piece of what it prints."""
        if self.is_fickle:
            return bytes([97 + attempt % 26]) * size
        return bytes([65 + stream]) * size if start else b"<" + bytes([65 + stream]) * (size - 1)


class Link:
    """One connection: in each direction messages keep their order. When it is torn some of what is under way still arrives."""

    def __init__(self, world: World, end: Wrapper | Host) -> None:
        self.world, self.end = world, end
        self.peer = next(world.serials)
        self.epoch = world.epoch
        self.is_torn = False
        self._free_at = [world.now, world.now]
        self._lost_after = [float("inf"), float("inf")]
        self._stalled_until = [0.0, 0.0]
        world.links[self.peer] = self

    def up(self, make: Callable[[], e.Event | None]) -> None:
        """From the model to the distributor."""
        self._carry(0, lambda: self.world.arrive(self, make))

    def down(self, make: Callable[[], Any]) -> None:
        """From the distributor to the model."""
        self._carry(1, lambda: self.end.hear(self, make()))

    def _carry(self, way: int, arrive: Callable[[], None]) -> None:
        world = self.world
        at = max(self._free_at[way], world.now + world.delay(), self._stalled_until[way])
        self._free_at[way] = at
        if not self.is_torn:
            world.at(at, lambda: arrive() if at <= self._lost_after[way] else None)

    def stall(self) -> None:
        """Nothing passes for a while, one way or both."""
        until = self.world.now + self.world.random.choice((1, 6, 20)) * self.world.random.uniform(0.3, 1.2)
        for way in self.world.random.choice(((0,), (1,), (0, 1))):
            self._stalled_until[way] = until
        self.world.after(self.world.random.uniform(8, 12), lambda: self.tear(late=True) if self.world.now < until else None)

    def tear(self, late: bool) -> None:
        """`late`: each end learns of it in its own time, as when packets are dropped; else at once."""
        if self.is_torn:
            return
        world = self.world
        self.is_torn = True
        for way in (0, 1):
            self._lost_after[way] = world.now + world.delay() * world.random.random()
        far = world.random.uniform(0.5, 10) if late else 0.0
        near = world.random.uniform(0.5, 10) if late and world.chance(0.5) else 0.0
        world.at(max(self._lost_after[0], world.now + far) + 0.0001, self._ended)
        world.at(max(self._lost_after[1], world.now + near) + 0.0001, lambda: self.end.cut(self))

    def _ended(self) -> None:
        self.world.links.pop(self.peer, None)
        self.world.arrive(self, lambda: e.Disconnected(self.peer))


class Wrapper:
    """One honest submitter of one command."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.plan = world.stories[name].plan
        self._tries = itertools.count()
        self.link: Link | None = None
        self.is_over = False
        self.frozen_until = 0.0
        self._submit()
        if world.chance(0.05):
            world.after(world.random.expovariate(0.5), self.die)
        if world.chance(0.05):
            world.after(world.random.expovariate(0.5), self._freeze)

    def _submit(self) -> None:
        self.job = f"{self.name}.{next(self._tries)}"
        self.attempt, self.is_committed = 0, False
        self.go_at = self.heard_at = self.world.now
        self.have = [0, 0]  # of the present attempt
        self.limits = [CREDIT, CREDIT]
        self.printed = [bytearray(), bytearray()]
        if not self.world.is_up:
            return self.world.after(0.2, self._connect)
        self.link = link = Link(self.world, self)
        event = e.Submitted(link.peer, UID, self.spec())
        link.up(lambda: event)
        self.submitted(link)

    def submitted(self, link: Link) -> None:
        """SUBMIT has been sent."""

    def spec(self) -> e.JobSpec:
        return e.JobSpec(self.job, "/srv", "cc", "build")

    def die(self) -> None:
        if not self.is_over:
            self.end("gone")

    def end(self, how: str) -> None:
        self.is_over = True
        self.world.ended(self.name, how)
        if self.link is not None:
            link = self.link
            self.world.after(0.2, lambda: link.tear(late=False))

    def _freeze(self) -> None:
        self.frozen_until = self.world.now + self.world.random.choice((0.7, 3, 15))

    # ---- what it hears ----

    def hear(self, link: Link, said: Any) -> None:
        if self.world.now < self.frozen_until:
            return self.world.at(self.frozen_until, lambda: self.hear(link, said))
        if link is not self.link or self.is_over:
            return
        self.heard_at = self.world.now
        if isinstance(said, e.Offer):
            self._offered(link, said)
        elif isinstance(said, e.Resume):
            self._attach(link)
        elif isinstance(said, e.DeliverResult):
            self._result(link, messages.decode_fields(said.payload))
        elif isinstance(said, e.TellFailed):
            self._failed(said.safe, said.undo, said.reason)
        elif isinstance(said, e.Answer):
            self._failed(said.verb != "REFUSED", (), said.reason)
        elif isinstance(said, tuple) and said[0] == "OUTPUT":
            self._output(link, said)

    def _offered(self, link: Link, offer: e.Offer) -> None:
        self.attempt, self.epoch = offer.attempt, self.world.offered_in[self.job]
        self.is_committed = True
        self.go_at = self.world.now
        self.have = [0, 0]
        self.limits = [CREDIT, CREDIT]
        event = e.Committed(link.peer, self.job, offer.stamp, (b"", b"cc\0", b"", b""))
        link.up(lambda: event)

    def _credit(self, link: Link, stream: int) -> None:
        limit = self.have[stream - 1] + CREDIT  # while it repeats what was printed, no more than has been repeated
        if limit > self.limits[stream - 1]:
            self.limits[stream - 1] = limit
            frames = messages.encode("CREDIT", [("job", self.job), ("stream", ("", "stdout", "stderr")[stream]), ("limit", limit)])
            job = self.job
            link.up(lambda: self.world.pass_credit(link.peer, job, frames))

    def _output(self, link: Link, said: Message) -> None:
        _, fields, bodies = said
        if fields.number("attempt") != self.attempt:
            return
        stream, offset, data = (1 if fields.text("stream") == "stdout" else 2), fields.number("offset"), bodies[0]
        have, printed = self.have[stream - 1], self.printed[stream - 1]
        if offset > have:
            self.world.violated(self.job, f"misses bytes {have} to {offset} of stream {stream}")
        data = data[have - offset :]
        self.have[stream - 1] += len(data)
        known = printed[have : have + len(data)]
        if data[: len(known)] != known:
            return self.end("125")  # it prints something else than before
        printed += data[len(known) :]
        self._credit(link, stream)

    def _result(self, link: Link, fields: Fields) -> None:
        totals = [fields.number("stdout_bytes", 0), fields.number("stderr_bytes", 0)]
        if fields.text("error"):
            self.end("125")
        elif totals != [len(self.printed[0]), len(self.printed[1])] or self.have != totals:
            if not self.plan.is_fickle:
                self.world.violated(self.job, f"ends with {totals} bytes printed, but has {self.have}, {list(map(len, self.printed))}")
            self.end("125")
        else:
            if fields.number("status") != self.plan.status or totals != [self.plan.totals[1], self.plan.totals[2]]:
                self.world.violated(self.job, f"ends with status {fields.number('status')} and {totals} bytes, not its own")
            self.end(f"status {self.attempt}")
        if not self.world.chance(0.1):
            event = e.Acknowledged(link.peer, self.job)
            link.up(lambda: event)

    def _failed(self, safe: bool, undo: tuple[str, ...], reason: str) -> None:
        if not safe or any(self.printed):
            # It cannot be run here when something of it was printed; nor when agent and distributor were lost together.
            self.plan.may_fail |= safe or ("know" in reason and self.world.epoch > 1)
            return self.end("125")
        for path in reversed(undo):
            self.world.files.pop(path, None)
        self.end("here")

    # ---- the connection ----

    def cut(self, link: Link) -> None:
        if self.world.now < self.frozen_until:
            return self.world.at(self.frozen_until, lambda: self.cut(link))
        if link is self.link and not self.is_over:
            self.link = None
            self.world.after(self.world.random.uniform(0.0, 0.3), self._connect)

    def _connect(self) -> None:
        world = self.world
        if self.is_over or self.link is not None:
            return
        if not self.is_committed:
            return self._submit()
        if world.now - self.heard_at > PATIENCE:
            self.plan.may_fail = True  # nobody was there for longer than it waits
            return self.end("125")
        if not world.is_up:
            return world.after(0.2, self._connect)
        self.link = Link(world, self)
        self._attach(self.link)

    def _attach(self, link: Link) -> None:
        offsets = tuple(zip(("stdout", "stderr", "stdout_limit", "stderr_limit"), (*self.have, *self.limits), strict=True))
        event = e.Attached(link.peer, UID, self.spec(), self.attempt, self.epoch, self.world.now - self.go_at, offsets)
        link.up(lambda: event)


class Runner:
    """One attempt, and the tree of its command."""

    def __init__(self, host: Host, start: a.Start) -> None:
        self.host, self.world, self.key = host, host.world, start.key
        self.story = self.world.story_of(self.key[0])
        self.plan = self.story.plan
        self.incarnation = host.incarnation
        self.daemon: Session | None = host.session
        self.uid = start.fields.number("uid")
        self.steps = list(self.plan.steps)
        self.sent, self.limits = [0, 0], [CREDIT, CREDIT]
        self.made: list[str] = []
        self.beyond = ""
        self.seq = self.noted = 0
        self.lacks_credit = False
        self.asked: Callable[[], None] | None = None  # what waits for NOTED
        self.named: list[str] = []
        self.is_ended = self.is_dying = self.is_fenced = False
        self.lost = ""
        self.slow = self.world.random.choice((1, 1, 1, 3))
        for path in reversed([raw.decode() for raw in start.fields.all("undo")]):
            self.world.files.pop(path, None)
        self.world.starts(self)
        self._next()
        self._watch_lease()

    @property
    def can_act(self) -> bool:
        """Whether its command may still do something: not while its machine is suspended, nor once its lease has ended it."""
        return not self.is_ended and not self.is_fenced and self.world.now >= self.host.suspended_until

    # ---- the command ----

    def _later(self, seconds: float, what: Callable[[], None]) -> None:
        """On this machine's clock, which stands still while it is suspended."""

        def run() -> None:
            if self.is_ended:
                return
            if self.world.now < self.host.suspended_until:
                return self.world.at(self.host.suspended_until + 0.001, run)
            what()

        self.world.after(seconds, run)

    def _next(self) -> None:
        self._later(self.steps[0][0] * self.slow, self._step)

    def _step(self) -> None:
        if self.is_dying:
            return
        _, what, value = self.steps[0]
        if what == "end":
            return self._end({"status": self.plan.status})
        if what == "print":
            return self._print(*value)
        if what == "make" and value not in self.made:
            return self._announce([("path", value)], lambda: self._make(value))
        if what in ("change", "beyond") and not self.beyond:
            return self._announce([("beyond", value)], lambda: self._go_beyond(value))
        if what == "change":
            self.story.changed += 1
        elif what == "beyond":
            self.story.changed += 1  # who knows what it does
        self._done()

    def _go_beyond(self, why: str) -> None:
        self.beyond = why  # not before it was noted
        self._step()

    def _done(self) -> None:
        del self.steps[0]
        self._next()

    def _make(self, path: str) -> None:
        self.made.append(path)
        owner = self.world.files.get(path)
        if owner is not None:
            self.world.violated(self.key[0], f"finds {path} of attempt {owner[1]}")
        self.world.files[path] = self.key[0].partition(".")[0], self.key[1]
        self._done()

    def _print(self, stream: int, size: int) -> None:
        """As far as the credit goes; the rest stays in the step. Where nobody listens any more it is dropped."""
        sent, limit = self.sent[stream - 1], self.limits[stream - 1]
        piece = min(size, limit - sent, 32_000) if self.daemon is not None else size
        if piece > 0:
            self.sent[stream - 1] += piece
            self._say(a.Kind.OUTPUT, stream, sent, self.plan.printed(stream, sent, piece, self.key[1]))
        self.steps[0] = (0.0, "print", (stream, size - piece))
        if piece == size:
            self._done()
        elif piece > 0:
            self._next()
        else:
            self.lacks_credit = True

    def _announce(self, fields: list[tuple[str, str]], then: Callable[[], None]) -> None:
        self.seq += 1
        self.named += [name for kind, name in fields if kind == "path"]
        self._say(a.Kind.MADE, 1, self.seq, messages.encode_fields(fields))
        if self.daemon is not None:
            self.asked = then
        else:  # one that is let finish
            then()

    # ---- the agent ----

    def _say(self, kind: a.Kind, stream: int, number: int, payload: bytes) -> None:
        if self.daemon is not None:
            self.host.feed(self.daemon, a.RunnerSaid(self.key, kind, stream, number, payload))

    def told(self, tell: a.Tell) -> None:
        """A packet from the agent."""
        if self.is_ended:
            return
        if tell.kind is a.Kind.CREDIT:
            self.limits[tell.stream - 1] = max(self.limits[tell.stream - 1], tell.number)
            if self.lacks_credit:
                self._go_on()
        elif tell.kind is a.Kind.NOTED and tell.number >= self.seq and self.asked is not None:
            self._go_on()
        elif tell.kind is a.Kind.KILL:
            self._kill("it was ended")

    def _go_on(self) -> None:
        what, self.asked, self.lacks_credit = self.asked or self._step, None, False
        self._later(0.0, what)

    def agent_died(self) -> None:
        self.daemon = None
        if self.beyond:
            if self.asked is not None or self.lacks_credit:  # nobody answers any more
                self._go_on()
        else:
            self.is_fenced = True  # its lease may be over before it is seen to have ended
            self._kill("the agent died")

    def _watch_lease(self) -> None:
        self.world.at(max(self.host.lease, self.world.now), self._look_at_lease)

    def _look_at_lease(self) -> None:
        if self.is_ended:
            return
        world = self.world
        if world.now < self.host.suspended_until:
            return world.at(self.host.suspended_until, self._look_at_lease)
        lease = self.host.lease_of.get(self.incarnation, 0.0)
        end = lease + (ORPHAN if self.beyond else 0)
        if world.now < end:
            return world.at(end, self._look_at_lease)
        self.is_fenced = True
        self._kill("the agent's lease was over")

    def _kill(self, lost: str) -> None:
        if self.is_dying:
            return
        self.is_dying, self.lost, self.asked, self.lacks_credit = True, lost, None, False
        # The lease kills before anyone else may start: 3 s are for that. Whoever else ends it waits for its end.
        self._later(self.world.random.choice((0.01, 0.6)), lambda: self._end({"error": "lost", "reason": lost}))

    def _end(self, outcome: dict[str, Any]) -> None:
        self.is_ended = True
        self.story.live.discard(self)
        pairs = [*outcome.items(), ("stdout_bytes", self.sent[0]), ("stderr_bytes", self.sent[1]), ("outputs", "coherent")]
        if not self.beyond:
            pairs += [("repeat", 1), *(("made", name) for name in self.named)]
        fields = messages.encode_fields(pairs)
        self.host.records[self.key] = self.incarnation, self.uid, fields, self.written()
        self._say(a.Kind.ENDED, 0, 0, fields)
        self.host.forget(self)

    def written(self) -> bytes:
        """It has ended: the entries that its agent, or the next one, tells."""
        return b""

    def vanish(self) -> None:
        """The machine has lost its power."""
        self.is_ended = True
        self.story.live.discard(self)


class Host:
    """A machine with an agent, which is started again whenever it has ended."""

    runner_kind: type[Runner] = Runner
    mounted = a.Mounted(views=False)

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.slots = world.random.randint(1, 3)
        self.session: Session | None = None
        self.link: Link | None = None
        self.lives = 0
        self.incarnation = ""
        self.lease_of: dict[str, float] = {}
        self.frozen_until = self.suspended_until = 0.0
        self.runners: dict[tuple[str, int], Runner] = {}
        self.records: dict[tuple[str, int], tuple[str, int, bytes, bytes]] = {}
        self.before: list[str] = []  # incarnations whose ends have not been seen
        self._held: list[tuple[Session, a.Event]] = []
        self._looked: tuple[Any, ...] = ()
        self.start()

    @property
    def lease(self) -> float:
        return self.lease_of.get(self.incarnation, 0.0)

    @property
    def is_busy(self) -> bool:
        return bool(self.runners or self.session is None or self.session.kept or self.before)

    # ---- the daemon ----

    def start(self) -> None:
        if self.session is not None or self.world.now < self.suspended_until:
            return
        self.lives += 1
        self.incarnation = f"{self.name}-{self.lives}"
        self.session = Session(Registration(self.name, self.slots, ("/",), str(UID), incarnation=self.incarnation, mounted=self.mounted))
        self._looked = ()
        self._look(self.session)
        self.connect()
        self.tick(self.session)

    def _look(self, session: Session) -> None:
        """At incarnations before this one, as agent/former.py does."""
        live = [runner for runner in self.runners.values() if runner.incarnation != self.incarnation]
        gone = [name for name in self.before if all(runner.incarnation != name for runner in live)]
        results = [(key, uid, fields, written) for key, (name, uid, fields, written) in self.records.items() if name in gone]
        self.before = [name for name in self.before if name not in gone]
        news = a.News(tuple(gone), tuple(results), len(live))
        if self._looked != (news.former, news.leftover) and (gone or live or self._looked):
            self.feed(session, news)
        self._looked = ((), news.leftover)

    def connect(self) -> None:
        session = self.session
        if session is None or (self.link is not None and not self.link.is_torn):
            return
        if not self.world.is_up or self.world.now < max(self.frozen_until, self.suspended_until):
            return self.world.after(self.world.random.uniform(0.1, 1.0), self.connect)
        self.link = Link(self.world, self)
        self.feed(session, a.Connected())

    def tick(self, session: Session) -> None:
        if session is self.session:
            if self.before or (self._looked and self._looked[1]):
                self._look(session)
            self.feed(session, a.Tick())
            self.world.after(1.0, lambda: self.tick(session))

    def hear(self, link: Link, said: Message) -> None:
        if link is self.link and self.session is not None:
            self.feed(self.session, a.Received(said[0], said[1], tuple(said[2])))

    def cut(self, link: Link) -> None:
        if link is self.link and self.session is not None:
            self.link = None
            self.feed(self.session, a.Disconnected())
            self.world.after(self.world.random.uniform(0.1, 2), self.connect)

    def feed(self, session: Session, event: a.Event) -> None:
        """Into the session, or, while its process stands still, later."""
        if session is not self.session:
            return
        until = max(self.frozen_until, self.suspended_until)
        if self.world.now < until:
            if not isinstance(event, a.Tick):
                self._held.append((session, event))
                self.world.at(until + 0.001, self._thaw)
            return
        if self._held:
            self._thaw()
        for action in session.handle(event, self.world.now):
            self._carry_out(session, action)

    def _thaw(self) -> None:
        if self.world.now >= max(self.frozen_until, self.suspended_until):
            held, self._held = self._held, []
            for session, event in held:
                self.feed(session, event)

    def _carry_out(self, session: Session, action: a.Action) -> None:
        match action:
            case a.Send():
                self._send(action.frames)
            case a.Tell():
                runner = self.runners.get(action.key)
                if runner is not None and runner.daemon is session:
                    runner.told(action)
            case a.Start():
                self._start(session, action)
            case a.Lease():
                self.lease_of[self.incarnation] = action.until
            case a.Forget():
                self.records.pop(action.key, None)
            case a.Quit():
                self.die()

    def _start(self, session: Session, start: a.Start) -> None:
        if self.world.chance(0.04):
            fault = int(self.world.random.random() < 0.5)
            return self.feed(session, a.RunnerSaid(start.key, a.Kind.REJECTED, 0, fault, b"the disk is full"))
        unknown = messages.encode_fields([("error", "lost"), ("reason", "its runner was killed too")])
        self.records[start.key] = self.incarnation, UID, unknown, b""
        runner = self.runner_kind(self, start)
        self.runners[start.key] = runner
        if sum(one.incarnation == self.incarnation for one in self.runners.values()) > self.slots:
            raise Violation(f"seed {self.world.seed}: {self.name} runs {len(self.runners)} jobs in {self.slots} slots")

    def forget(self, runner: Runner) -> None:
        self.runners.pop(runner.key, None)

    def _send(self, frames: tuple[bytes, ...]) -> None:
        link = self.link
        if link is None:
            return
        verb, fields, bodies = messages.parse(frames)
        peer, world = link.peer, self.world
        make: dict[str, Callable[[], e.Event | None]] = {
            "HEARTBEAT": lambda: wire.heartbeat(peer, fields),
            "REGISTER": lambda: wire.register(peer, UID, fields),
            "LEAVING": lambda: e.Leaving(peer),
            "REJECT": lambda: wire.rejected(peer, fields),
            "MADE": lambda: wire.made(peer, fields),
            "RESULT": lambda: wire.finished(peer, fields, frames[1]),
            "MANIFEST": lambda: wire.manifest(peer, fields, bodies, frames),
            "OUTPUT": lambda: world.pass_on(peer, frames, fields),
            "CREDIT": lambda: world.pass_on(peer, frames, fields),
        }
        link.up(make[verb])

    # ---- faults ----

    def die(self) -> None:
        """The agent's process ends, by kill -9 perhaps."""
        if self.session is None:
            return
        self.session = None
        self._held.clear()
        self.before.append(self.incarnation)
        self.frozen_until = 0.0
        if self.link is not None:
            self.link.tear(late=False)
            self.link = None
        for runner in list(self.runners.values()):
            if runner.daemon is not None:
                self.world.after(0.001, runner.agent_died)
        self.world.after(self.world.random.choice((0.1, 1, 20)) * self.world.random.uniform(0.3, 1), self.start)

    def lose_power(self) -> None:
        """Everything dies at once, and what was in /tmp is gone."""
        late = self.world.chance(0.5)
        if self.link is not None:
            self.link.tear(late=late)
            self.link = None
        for runner in list(self.runners.values()):
            runner.vanish()
        self.runners.clear()
        self.records.clear()
        self.die()
        self.before.clear()

    def freeze(self) -> None:
        until = self.world.now + self.world.random.choice((1, 8, 25)) * self.world.random.uniform(0.3, 1.2)
        self.frozen_until = max(self.frozen_until, until)

    def suspend(self) -> None:
        until = self.world.now + self.world.random.choice((1, 8, 25)) * self.world.random.uniform(0.3, 1.2)
        self.suspended_until = max(self.suspended_until, until)
        self.world.at(self.suspended_until + 0.002, self.start)

    def drain(self) -> None:
        if self.session is not None:
            self.feed(self.session, a.DrainAsked())

    def stop(self) -> None:
        if self.session is not None:
            self.feed(self.session, a.StopAsked())

    def operator_drains(self) -> None:
        if self.world.is_up:
            self.world.arrive(Link(self.world, self), lambda: e.DrainAsked(self.name))

    def faults(self) -> list[Callable[[], None]]:
        return [self.die, self.die, self.lose_power, self.freeze, self.suspend, self.drain, self.stop, self.operator_drains]
