"""What peers that mean ill, or make no sense, can do to the scheduler: harm themselves. Who they are is what the kernel said of them."""

from __future__ import annotations

import itertools
import os
import random
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
from test_scheduler import USER, Desk, after_a_restart, attach, come_back

from dwrap.distributor import events as e
from dwrap.distributor import wire
from dwrap.distributor.events import JobState
from dwrap.distributor.past import Assigned, Past
from dwrap.distributor.scheduler import Scheduler
from dwrap.protocol.messages import decode_fields, encode_fields

OTHER = 1001
RUNS = 400
VERBS = {"HERE", "UNAVAILABLE", "REFUSED"}


@pytest.fixture
def desk() -> Desk:
    return Desk()


def evil(desk: Desk, peer: int = 66, name: str = "evil", **more: Any) -> None:
    """Another user's agent, which may serve nobody but that user."""
    desk.agent(peer, name, uid=OTHER, serves=OTHER, **more)


def test_nobody_vouches_for_an_agent_of_others(desk: Desk) -> None:
    desk.agent(1, "real", incarnation="i1")
    desk.run(50)
    desk.do(e.Disconnected(1))
    evil(desk, name="real", incarnation="i2", former=("i1",))
    assert desk.said(50) == []
    assert desk.state("j50") is JobState.MISSING


def test_nobody_keeps_others_jobs_waiting(desk: Desk) -> None:
    desk.agent(1, "real", incarnation="i1")
    desk.run(50)
    desk.do(e.Disconnected(1))
    desk.now += 12
    desk.do(e.Registered(66, OTHER, e.AgentSpec("real", 1, ("/srv",), OTHER, incarnation="i1")))
    desk.do(e.Disconnected(66))
    desk.agent(2)
    desk.wait(1, 2)
    assert desk.said(50)[-1:] == ["Offer"]


def test_nobody_has_the_result_of_others(desk: Desk) -> None:
    desk.agent(1, "real")
    desk.run(50)
    desk.finish(1, "j50")
    desk.do(e.Disconnected(50))
    evil(desk, kept=(("j50", 1, USER),))
    assert desk.said(66) == ["RenewLease", "AckResult"]
    attach(desk, 51, "j50")
    assert desk.one(e.ForwardAttach).peer == 1
    desk.do(e.Joined(66, "j50", 1))
    desk.finish(66, "j50", 1, e.Outcome(None, "lost", "", {}, True, ("/srv/source.c",)))
    assert desk.said(51) == []


def test_an_agent_that_serves_one_user_has_that_users_jobs_only() -> None:
    """After a restart nothing is known but what agents and submitters say."""
    desk = after_a_restart()
    evil(desk, running=(("x", 1, USER),))
    attach(desk, 50, "x")
    assert desk.one(e.Answer).verb == "REFUSED"
    desk.agent(1, "real", running=(("x", 1, USER),))
    assert e.Kill(66, "x", 1) in desk.last
    attach(desk, 50, "x")
    assert desk.one(e.ForwardAttach).peer == 1
    assert not desk.scheduler.agents[66].is_serving
    desk.finish(66, "x", 1, e.Outcome(None, "lost", "", {}, True, ("/srv/source.c",)))
    assert desk.scheduler.agents[66].is_serving
    desk.do(e.Joined(1, "x", 1))
    desk.finish(1, "x")
    assert desk.one(e.DeliverResult).agent == "real"


def test_an_agent_that_may_serve_anybody_is_believed_of_the_past_only(desk: Desk) -> None:
    desk.agent(1)
    desk.run(50)
    desk.agent(2, running=(("j50", 1, OTHER),))
    assert desk.said(50) == []
    desk.finish(1, "j50")
    assert desk.one(e.DeliverResult).peer == 50


def test_a_newer_attempt_of_others_jobs_is_not_believed() -> None:
    desk = after_a_restart()
    attach(desk, 50, "x", epoch=7)
    come_back(desk, 1, running=(("x", 1, USER),))
    evil(desk, kept=(("x", 999, USER),))
    assert not [action for action in desk.last if isinstance(action, e.Kill)]
    assert desk.state("x") is JobState.ASSIGNED


def test_who_was_first_to_claim_a_job_after_a_restart_need_not_be_its_submitter() -> None:
    desk = after_a_restart()
    desk.do(e.Attached(66, OTHER, e.JobSpec("x", "/srv", "cc", "b"), 1, 7, 1.0, ()))
    come_back(desk, 1, running=(("x", 1, USER),))
    assert desk.said(66) == ["Answer"]
    attach(desk, 50, "x", epoch=7)
    assert desk.one(e.ForwardAttach).peer == 1
    desk.do(e.Disconnected(66))
    desk.pass_time(2)
    assert desk.scheduler.jobs["x"].peer == 50


def test_a_job_of_the_past_is_described_once() -> None:
    desk = after_a_restart()
    attach(desk, 50, "x", epoch=7)
    desk.do(e.Attached(50, USER, e.JobSpec("x", "/elsewhere", "cc", "other"), 1, 7, 1.0, ()))
    assert (desk.scheduler.jobs["x"].spec.build, desk.scheduler.jobs["x"].spec.cwd) == ("b", "/srv")


def test_what_is_left_of_a_job_is_told_to_its_owner_only(desk: Desk) -> None:
    desk.agent(1)
    desk.run(50)
    desk.do(e.Disconnected(50))
    desk.pass_time(1)
    desk.finish(1, "j50", 1, e.Outcome(None, "lost", "", {}, True, ("/srv/o",)))
    attach(desk, 66, "j50", uid=OTHER)
    assert desk.one(e.Answer) == e.Answer(66, "j50", "REFUSED", "the job is another user's")
    attach(desk, 51, "j50")
    desk.go(51, "j50")
    assert desk.one(e.Assign).undo == ("/srv/o",)


def test_a_job_without_a_build_is_described_once(desk: Desk) -> None:
    desk.agent(1, views=True)
    desk.submit(50, build="")
    desk.go(50)
    desk.do(e.Attached(51, USER, e.JobSpec("j50", "/srv", "cc", "other", views=True), 1, 0, 1.0, ()))
    desk.do(e.Joined(1, "j50", 1))
    desk.finish(1, "j50")
    assert desk.one(e.DeliverResult).peer == 51
    assert desk.scheduler.jobs["j50"].spec.build == ""


@pytest.mark.parametrize("path", ["/srv/../etc/passwd", "srv/x", "/srv//x", "/srv/./x", "/", ""])
def test_a_name_that_seems_another_is_answered_and_never_removed(path: str) -> None:
    said = [("job", "x"), ("attempt", 1)]
    made = wire.made(1, decode_fields(encode_fields([*said, ("seq", 1), ("path", "/srv/o"), ("path", path), ("ask", 1)])))
    assert (made.paths, made.ask) == ((), True)
    assert made.beyond
    outcome = wire.finished(1, decode_fields(encode_fields([*said, ("status", 0), ("repeat", 1), ("made", path)])), b"").outcome
    assert (outcome.made, outcome.repeat, outcome.status) == ((), False, 0)


# ---- anything at all ----


KNOWN = {
    "j1": Assigned(1, "a1", "i1", USER),
    "j2": Assigned(2, None, "", USER),
    "j3": Assigned(1, "a2", "i2", OTHER, ("/s/x",), "it changed /s/y"),
}
PASTS = (Past(), Past(100.0, frozenset({2}), 113.0), Past(100.0, frozenset({1, 2}), 113.0, assigned=KNOWN))
JOBS = ("j1", "j2", "j3", "j4")


class Chaos:
    """Events of peers that know every name and make no sense, mostly about things that are there."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        secrets = itertools.count(1)
        self.scheduler = Scheduler(lambda: f"secret{next(secrets)}", past=self.dice.choice(PASTS))
        self.now = 100.0
        self.told: dict[str, int] = defaultdict(int)

    def run(self) -> None:
        for _ in range(self.dice.randint(20, 120)):
            self.now += self.dice.choice((0, 0, 0, 0.1, 0.5, 1, 3, 14))
            self.handle(self.event())
        for peer in list(self.scheduler.agents):  # all agents go, and nobody comes any more
            self.handle(e.Disconnected(peer))
        for _ in range(450):
            self.now += 1
            self.handle(e.Tick())
        waiting = [(job.id, job.state.value) for job in self.scheduler.jobs.values() if job.peer is not None]
        assert not waiting, "nobody will ever tell these how they have ended"

    def handle(self, event: e.Event) -> None:
        for action in self.scheduler.handle(event, self.now):
            if isinstance(action, e.Answer):
                assert action.verb in VERBS
            if type(action) in wire.MESSAGES:
                wire.MESSAGES[type(action)](action, 2)

    def event(self) -> e.Event:
        dice = self.dice
        peer, name, number, epoch = dice.randint(1, 6), dice.choice(JOBS), dice.randint(0, 3), dice.randint(0, 3)
        job = self.scheduler.jobs.get(name)
        holder = job.agent.peer if job is not None and job.agent is not None and dice.random() < 0.8 else peer
        attempt = job.attempt if job is not None and dice.random() < 0.8 else dice.randint(1, 3)
        makers: list[Callable[[], e.Event]] = [
            lambda: e.Registered(peer, dice.choice((0, 0, USER)), self.agent()),
            lambda: e.Registered(peer, dice.choice((0, 0, USER)), self.agent()),
            *[lambda: e.Heartbeat(peer, self.scheduler.agents[peer].token if peer in self.scheduler.agents else "x", e.Load())] * 3,
            lambda: e.Submitted(peer, dice.choice((USER, OTHER, None)), self.spec()),
            *[lambda: self.go(peer, name)] * 2,
            *[lambda: e.Attached(peer, dice.choice((USER, USER, OTHER, None)), self.spec(), number, epoch, 1.0, ())] * 2,
            lambda: e.Acknowledged(job.peer if job is not None and job.peer is not None else peer, name),
            *[lambda: e.Finished(holder, name, attempt, self.outcome(), b"r")] * 2,
            lambda: e.Rejected(holder, name, attempt, "no", dice.random() < 0.3),
            lambda: e.Made(holder, name, attempt, 1, ("/s/m",), dice.choice(("", "b")), True),
            lambda: e.Joined(holder, name, attempt),
            lambda: e.Disconnected(peer),
            lambda: e.Leaving(peer),
            lambda: e.DrainAsked("a1"),
            e.Tick,
        ]
        return dice.choice(makers)()

    def held(self) -> tuple[e.Held, ...]:
        dice = self.dice
        return tuple((dice.choice(JOBS), dice.randint(1, 3), dice.choice((USER, OTHER))) for _ in range(dice.randint(0, 3)))

    def agent(self) -> e.AgentSpec:
        dice = self.dice
        return e.AgentSpec(
            dice.choice(("a1", "a2", "a3")),
            dice.randint(1, 2),
            ("/srv",),
            dice.choice((e.ANY_UID, e.ANY_UID, USER)),
            incarnation=dice.choice(("i1", "i2", "")),
            former=dice.choice(((), ("i1",))),
            running=self.held(),
            kept=self.held(),
            views=dice.random() < 0.3,
            memory_bytes=dice.choice((0, 5)),
            leftover=int(dice.random() < 0.1),
        )

    def spec(self) -> e.JobSpec:
        dice = self.dice
        cwd = "/srv" if dice.random() < 0.9 else "/elsewhere"
        agent = dice.choice(("", "", "", "a1"))
        return e.JobSpec(dice.choice(JOBS), cwd, "cc", dice.choice(("", "b", "c")), agent=agent, views=dice.random() < 0.3)

    def outcome(self) -> e.Outcome:
        dice = self.dice
        if dice.random() < 0.5:
            return e.Outcome(0, repeat=dice.random() < 0.5)
        error = dice.choice(("lost", "infrastructure", "cwd", "not_found"))
        return e.Outcome(None, error, "", {}, dice.random() < 0.6, ("/s/y",), dice.random() < 0.2, dice.random() < 0.3)

    def go(self, peer: int, name: str) -> e.Event:
        offered = [job for job in self.scheduler.jobs.values() if job.state is JobState.OFFERED]
        job = self.dice.choice(offered) if offered else None
        if job is None or job.peer is None:
            return e.Committed(peer, name, "guessed", (b"go",))
        return e.Committed(job.peer, job.id, job.stamp, (b"go",))


def test_nothing_that_anybody_says_ends_the_scheduler_or_leaves_a_submitter_without_an_answer() -> None:
    first = int(os.environ.get("FIRST_SEED", "-1"))
    first = first if first >= 0 else random.SystemRandom().randrange(1 << 32)
    for seed in range(first, first + RUNS):
        print(f"seed {seed}")
        Chaos(seed).run()
