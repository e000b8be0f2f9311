"""scheduler.py by itself: events in, actions out, on a clock that the test moves."""

from __future__ import annotations

import itertools
import unittest.mock
from typing import Any, TypeVar

import pytest

from dwrap.distributor import events as e
from dwrap.distributor import policy, roster, waiting
from dwrap.distributor.events import JobState
from dwrap.distributor.jobs import NO_AGENT_SECONDS
from dwrap.distributor.past import Assigned, Past
from dwrap.distributor.scheduler import Scheduler
from dwrap.distributor.views import MAX_TOLD
from dwrap.protocol import manifest

A = TypeVar("A")
OK = e.Outcome(0)
USER = 1000


class Desk:
    """A scheduler, its clock, and what it did last."""

    def __init__(self) -> None:
        secrets = itertools.count(1)
        self.now = 100.0
        self.scheduler = Scheduler(lambda: f"secret{next(secrets)}")
        self.last: list[e.Action] = []

    def do(self, event: e.Event) -> list[e.Action]:
        self.last = self.scheduler.handle(event, self.now)
        return self.last

    def pass_time(self, seconds: float) -> list[e.Action]:
        self.now += seconds
        return self.do(e.Tick())

    def wait(self, seconds: int, *agents: int) -> list[e.Action]:
        """Passes time, in which these agents are heard."""
        self.last = []
        for _ in range(seconds):
            self.now += 1
            for peer in agents:
                self.last = [*self.last, *self.scheduler.handle(e.Heartbeat(peer, self.scheduler.agents[peer].token, e.Load()), self.now)]
        return self.last

    def one(self, kind: type[A]) -> A:
        """The one action of this kind that the last event caused."""
        found = [action for action in self.last if isinstance(action, kind)]
        assert len(found) == 1, self.last
        return found[0]

    def said(self, peer: int) -> list[str]:
        """The names of the actions that the last event caused towards a peer."""
        return [type(action).__name__ for action in self.last if getattr(action, "peer", None) == peer]

    def agent(self, peer: int, name: str = "", slots: int = 1, uid: int | None = 0, load: e.Load | None = None, **more: Any) -> None:
        self.do(e.Registered(peer, uid, e.AgentSpec(**{"name": name or f"a{peer}", "slots": slots, "roots": ("/srv",), **more})))
        self.do(e.Heartbeat(peer, self.one(e.Welcome).token, load or e.Load()))

    def beat(self, peer: int, load: e.Load | None = None) -> None:
        self.do(e.Heartbeat(peer, self.scheduler.agents[peer].token, load or e.Load()))

    def submit(self, peer: int, job: str = "", uid: int | None = USER, **more: Any) -> list[e.Action]:
        spec = e.JobSpec(**{"job": job or f"j{peer}", "cwd": "/srv", "command": "cc", "build": "b", **more})
        return self.do(e.Submitted(peer, uid, spec))

    def go(self, peer: int, job: str = "") -> list[e.Action]:
        name = job or f"j{peer}"
        return self.do(e.Committed(peer, name, self.scheduler.jobs[name].stamp, (b"go",)))

    def run(self, peer: int, **more: Any) -> e.Assign:
        self.submit(peer, **more)
        self.go(peer)
        return self.one(e.Assign)

    def finish(self, agent: int, job: str, attempt: int = 1, outcome: e.Outcome = OK) -> list[e.Action]:
        return self.do(e.Finished(agent, job, attempt, outcome, b"result"))

    def state(self, job: str) -> JobState:
        return self.scheduler.jobs[job].state


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_the_life_of_a_job(desk: Desk) -> None:
    desk.agent(1)
    desk.submit(50)
    offer = desk.one(e.Offer)
    assert desk.said(50) == ["Offer"]
    desk.now += 0.25
    desk.do(e.Committed(50, "j50", offer.stamp, (b"fields", b"argv", b"env")))
    assign = desk.one(e.Assign)
    assert (assign.peer, assign.attempt, assign.uid, assign.payload) == (1, 1, USER, (b"fields", b"argv", b"env"))
    desk.finish(1, "j50")
    result = desk.one(e.DeliverResult)
    assert (result.peer, result.payload, result.agent, result.queued_ms) == (50, b"result", "a1", 250)
    assert desk.said(1) == []
    desk.do(e.Acknowledged(50, "j50"))
    assert desk.one(e.AckResult) == e.AckResult(1, "j50", 1)
    assert not desk.scheduler.jobs


def test_every_transition_emits_one_record(desk: Desk) -> None:
    desk.agent(1)
    story = [action for action in desk.submit(50) if isinstance(action, e.Record)]
    story += [action for action in desk.go(50) if isinstance(action, e.Record)]
    story += [action for action in desk.finish(1, "j50") if isinstance(action, e.Record)]
    told = [(record.what, record.facts["state"]) for record in story]
    assert told == [("submitted", "queued"), ("offered", "offered"), ("assigned", "assigned"), ("done", "settled")]


def test_no_slot_no_offer_and_the_next_in_line_gets_the_slot(desk: Desk) -> None:
    desk.agent(1)
    desk.run(50)
    desk.submit(51)
    assert desk.one(e.TellQueued).ahead == 0
    desk.submit(52)
    assert desk.one(e.TellQueued).ahead == 1
    desk.finish(1, "j50")
    assert desk.one(e.Offer).job == "j51"


# ---- the commit point ----


def test_an_unanswered_offer_is_taken_back_and_its_slot_goes_on(desk: Desk) -> None:
    desk.agent(1)
    desk.submit(50)
    desk.submit(51)
    assert desk.scheduler.next_deadline() == desk.now + 2
    desk.pass_time(1.99)
    assert desk.state("j50") is JobState.OFFERED
    desk.pass_time(0.01)
    assert desk.state("j50") is JobState.QUEUED
    assert desk.one(e.Offer).job == "j51"


def test_a_late_go_is_void_and_earns_a_new_offer(desk: Desk) -> None:
    desk.agent(1)
    desk.submit(50)
    late = desk.one(e.Offer).stamp
    desk.now += 2.0
    desk.do(e.Committed(50, "j50", late, ()))
    fresh = desk.one(e.Offer).stamp
    assert fresh != late
    assert not [action for action in desk.last if isinstance(action, e.Assign)]
    desk.do(e.Committed(50, "j50", late, ()))
    assert desk.one(e.Unexpected).what == "go"
    desk.go(50)
    assert desk.one(e.Assign).attempt == 1


def test_a_stopped_submitter_is_asked_less_and_less_often(desk: Desk) -> None:
    desk.agent(1)
    desk.submit(50)
    offered = []
    for _ in range(1_000):
        desk.beat(1)
        desk.pass_time(0.25)
        offered += [desk.now for action in desk.last if isinstance(action, e.Offer)]
    gaps = [after - before for before, after in itertools.pairwise(offered)]
    assert gaps[:4] == [6.0, 10.0, 18.0, 34.0]
    assert max(gaps) == 34.0


def test_go_from_another_connection_or_twice_is_dropped(desk: Desk) -> None:
    desk.agent(1)
    desk.submit(50)
    stamp = desk.one(e.Offer).stamp
    desk.do(e.Committed(51, "j50", stamp, ()))
    assert desk.one(e.Unexpected).what == "go"
    desk.do(e.Committed(50, "j50", stamp, ()))
    desk.do(e.Committed(50, "j50", stamp, ()))
    assert desk.one(e.Unexpected).what == "go"


def test_a_job_id_that_lives_is_refused(desk: Desk) -> None:
    desk.submit(50, job="same")
    desk.submit(51, job="same")
    assert desk.one(e.Answer).verb == "REFUSED"
    assert desk.one(e.Answer).peer == 51
    assert desk.scheduler.jobs["same"].peer == 50


# ---- nobody can take it ----


@pytest.mark.parametrize(
    ("agent", "job", "verb", "reason"),
    [
        (None, {}, "UNAVAILABLE", "no agent is connected"),
        ({"serves": 7, "uid": 7}, {}, "UNAVAILABLE", "uid 1000"),
        ({}, {"labels": ("big=1",)}, "REFUSED", "big=1"),
        ({}, {"uid": 0}, "UNAVAILABLE", "--allow-root"),
    ],
)
def test_no_agent_for_ten_seconds(desk: Desk, agent: dict[str, Any] | None, job: dict[str, Any], verb: str, reason: str) -> None:
    if agent is not None:
        desk.agent(1, **agent)
    desk.submit(50, **job)
    assert desk.said(50) == ["TellQueued"]
    desk.now += 5
    if agent is not None:
        desk.beat(1)
    desk.pass_time(4.9)
    assert desk.state("j50") is JobState.QUEUED
    desk.pass_time(0.1)
    assert desk.one(e.Answer).verb == verb
    assert reason in desk.one(e.Answer).reason
    assert not desk.scheduler.jobs


def test_an_agent_that_comes_in_time_gets_the_job(desk: Desk) -> None:
    desk.submit(50)
    desk.now += 9
    desk.agent(1)
    assert desk.one(e.Offer).job == "j50"


def test_an_agent_gets_nothing_before_its_token_is_back(desk: Desk) -> None:
    desk.do(e.Registered(1, 0, e.AgentSpec("a1", 1, ("/srv",))))
    desk.submit(50)
    assert desk.said(50) == ["TellQueued"]
    desk.do(e.Heartbeat(1, "wrong", e.Load()))
    assert desk.one(e.Unexpected).what == "heartbeat"
    desk.beat(1)
    assert desk.one(e.Offer).job == "j50"


def test_the_root_rule_answers_at_once(desk: Desk) -> None:
    desk.agent(1)
    desk.submit(50, cwd="/tmp/x")
    assert desk.one(e.Answer) == e.Answer(50, "j50", "HERE", "the working directory /tmp/x is under no shared root")


def test_a_job_waits_for_the_one_pool_that_sees_its_files(desk: Desk) -> None:
    desk.agent(1)
    desk.agent(2, roots=("/home",))
    desk.run(50, cwd="/home/u")
    desk.submit(51, cwd="/home/u")
    assert desk.said(51) == ["TellQueued"]
    desk.submit(52)
    assert desk.one(e.Offer).job == "j52"


def test_a_job_without_an_identity_runs_as_its_agents_user(desk: Desk) -> None:
    desk.agent(1, serves=7, uid=7)
    assert desk.run(50, uid=None).uid == 7


def test_explain_runs_nothing(desk: Desk) -> None:
    def explain(**more: Any) -> e.TellExplained:
        desk.do(e.Explained(50, USER, e.JobSpec(**{"job": "j", "cwd": "/srv", "command": "cc", "build": "b", **more})))
        return desk.one(e.TellExplained)

    assert explain().where == "nowhere"
    desk.agent(1)
    assert (explain().where, explain().agent) == ("agent", "a1")
    assert explain(cwd="/tmp").where == "here"
    desk.run(51)
    assert explain().where == "queue"
    assert list(desk.scheduler.jobs) == ["j51"]


# ---- endings ----


@pytest.mark.parametrize("state", ["queued", "offered", "assigned", "settled"])
def test_the_submitter_goes_away(desk: Desk, state: str) -> None:
    if state != "queued":
        desk.agent(1)
    desk.submit(50)
    if state in ("assigned", "settled"):
        desk.go(50)
    if state == "settled":
        desk.finish(1, "j50")
    desk.do(e.Disconnected(50))
    if state == "assigned":
        assert desk.said(1) == [], "its submitter may claim it"
        desk.pass_time(1.0)
        assert desk.one(e.Kill) == e.Kill(1, "j50", 1)
        desk.submit(51)
        assert desk.said(51) == ["TellQueued"], "the slot is taken until the tree is gone"
        desk.finish(1, "j50", outcome=e.Outcome(None, "lost", "it was ended"))
        assert desk.said(1) == ["AckResult"]
        assert desk.said(51) == ["Offer"]
    elif state == "settled":
        desk.pass_time(1.0)
        assert desk.said(1) == [], "its submitter may come for its result a little longer"
        assert "AckResult" in [type(action).__name__ for action in desk.wait(60, 1)]
    assert "j50" not in desk.scheduler.jobs


def test_a_lost_agent_leaves_its_jobs_missing_until_its_lease_is_over(desk: Desk) -> None:
    desk.agent(1, slots=2)
    desk.run(50)
    desk.submit(51)
    desk.do(e.Disconnected(1))
    assert desk.state("j50") is JobState.MISSING
    assert desk.said(50) == ["TellMissing"]
    assert desk.state("j51") is JobState.QUEUED
    desk.agent(2)
    assert desk.one(e.Offer).job == "j51"
    desk.do(e.Disconnected(51))
    desk.pass_time(12.9)
    assert desk.state("j50") is JobState.MISSING
    desk.beat(2)
    desk.pass_time(0.1)
    assert desk.one(e.Offer).job == "j50"
    assert desk.go(50)
    assert desk.one(e.Assign).attempt == 2


def test_a_silent_agent_is_given_up_after_lease_and_grace(desk: Desk) -> None:
    desk.agent(1)
    desk.run(50)
    desk.now += 5
    desk.beat(1)
    desk.pass_time(12.9)
    assert 1 in desk.scheduler.agents
    desk.pass_time(0.1)
    assert desk.one(e.Disconnect).peer == 1
    assert desk.state("j50") is JobState.QUEUED
    desk.do(e.Heartbeat(1, "secret1", e.Load()))
    assert desk.one(e.Unexpected).what == "heartbeat"


def test_rejected_jobs_go_elsewhere(desk: Desk) -> None:
    desk.agent(1)
    desk.agent(2)
    first = desk.run(50)
    desk.do(e.Rejected(first.peer, "j50", 1, "no such user"))
    desk.go(50)
    second = desk.one(e.Assign)
    assert (second.peer, second.attempt) == (3 - first.peer, 2)
    desk.do(e.Rejected(second.peer, "j50", 2, "no such user"))
    failed = desk.one(e.TellFailed)
    assert failed.safe is True
    assert "a1" in failed.reason
    assert failed.reason.endswith("did not take it: no such user")
    assert "a2" in failed.reason


def test_a_job_is_rejected_three_times_at_most(desk: Desk) -> None:
    for peer in range(1, 6):
        desk.agent(peer)
    desk.run(50)
    for attempt in (1, 2, 3):
        holder = desk.scheduler.jobs["j50"].agent
        assert holder is not None
        desk.do(e.Rejected(holder.peer, "j50", attempt, "disk full"))
        if attempt < 3:
            desk.go(50)
    assert desk.one(e.TellFailed).safe is True
    assert "disk full" in desk.one(e.TellFailed).reason


def test_after_go_no_answer_but_failed_ends_a_job(desk: Desk) -> None:
    desk.agent(1)
    desk.run(50)
    desk.do(e.Rejected(1, "j50", 1, "draining"))
    assert desk.one(e.TellFailed).safe is True
    desk.agent(2, roots=("/other",))
    desk.run(51)
    desk.agent(3)
    desk.do(e.Disconnected(3))
    assert desk.state("j51") is JobState.ASSIGNED


@pytest.mark.parametrize(("error", "safe"), [("infrastructure", False), ("cwd", True)])
def test_errors_of_the_agents_own_are_no_results(desk: Desk, error: str, safe: bool) -> None:
    desk.agent(1)
    desk.run(50)
    desk.finish(1, "j50", outcome=e.Outcome(None, error, "I/O error"))
    failed = desk.one(e.TellFailed)
    assert (failed.safe, "I/O error" in failed.reason) == (safe, True)
    assert desk.said(1) == ["AckResult"]


def test_a_command_that_is_not_found_is_a_result(desk: Desk) -> None:
    desk.agent(1)
    desk.run(50)
    desk.finish(1, "j50", outcome=e.Outcome(None, "not_found", "cc"))
    assert desk.one(e.DeliverResult).job == "j50"


def test_results_of_stale_attempts_are_acknowledged_and_dropped(desk: Desk) -> None:
    desk.agent(1)
    desk.agent(2)
    holder = desk.run(50).peer
    for peer, job, attempt in ((3 - holder, "j50", 1), (holder, "j50", 2), (holder, "unknown", 1)):
        desk.finish(peer, job, attempt)
        assert [type(action) for action in desk.last] == [e.AckResult]
    desk.finish(99, "j50")
    assert desk.one(e.Unexpected).what == "result"
    assert desk.state("j50") is JobState.ASSIGNED


def test_a_repeated_result_is_acknowledged_and_a_lost_acknowledgement_forgotten(desk: Desk) -> None:
    desk.agent(1)
    desk.run(50)
    desk.finish(1, "j50")
    desk.finish(1, "j50")
    assert (desk.said(1), desk.said(50)) == ([], ["DeliverResult"]), "its agent keeps it until the submitter has it"
    for _ in range(6):
        desk.now += 10
        desk.beat(1)
    assert not desk.scheduler.jobs


# ---- agents come and go ----


def test_names_are_unique_among_the_living(desk: Desk) -> None:
    desk.agent(1, "twin")
    desk.do(e.Registered(2, 0, e.AgentSpec("twin", 1, ("/srv",), host="h")))
    assert ("--name" in desk.one(e.RefuseAgent).reason, desk.one(e.RefuseAgent).may_change) == (True, True)
    desk.now += 3
    desk.do(e.Registered(3, USER, e.AgentSpec("twin", 1, ("/srv",), USER)))
    assert desk.one(e.RefuseAgent).peer == 3
    desk.do(e.Registered(4, 0, e.AgentSpec("twin", 1, ("/srv",))))
    assert desk.one(e.Disconnect).peer == 1
    assert desk.one(e.Welcome).peer == 4


@pytest.mark.parametrize(
    ("uid", "serves", "welcome"), [(0, e.ANY_UID, True), (0, 5, True), (5, 5, True), (5, e.ANY_UID, False), (5, 6, False)]
)
def test_whom_an_agent_may_serve(desk: Desk, uid: int, serves: int, welcome: bool) -> None:
    desk.do(e.Registered(1, uid, e.AgentSpec("a", 1, ("/srv",), serves)))
    assert desk.said(1) == (["Welcome"] if welcome else ["RefuseAgent"])
    if not welcome:
        assert not desk.one(e.RefuseAgent).may_change


@pytest.mark.parametrize("by", ["itself", "operator"])
def test_a_draining_agent_finishes_and_gets_no_more(desk: Desk, by: str) -> None:
    desk.agent(1, slots=4)
    desk.run(50)
    desk.do(e.Leaving(1) if by == "itself" else e.DrainAsked("a1"))
    assert desk.said(1) == ([] if by == "itself" else ["Drain"])
    desk.submit(51)
    assert desk.said(51) == ["TellQueued"]
    desk.finish(1, "j50")
    assert desk.one(e.DeliverResult).job == "j50"
    desk.now += 9
    desk.agent(2)
    assert desk.one(e.Offer).job == "j51"


def test_registering_again_replaces_what_was_said(desk: Desk) -> None:
    desk.agent(1, slots=1)
    desk.run(50)
    desk.do(e.Registered(1, 0, e.AgentSpec("other", 2, ("/home",), running=(("j50", 1, USER), ("ghost", 3, USER)))))
    assert desk.one(e.Kill) == e.Kill(1, "ghost", 3)
    desk.submit(51, cwd="/home")
    assert desk.said(51) == ["TellQueued"], "it runs what was given up: it is in quarantine"
    desk.finish(1, "ghost", 3, e.Outcome(None, "lost", "it was ended"))
    assert desk.one(e.Offer).job == "j51"
    desk.finish(1, "j50")
    assert desk.one(e.DeliverResult).agent == "other"


def test_an_agent_that_comes_back_too_late_is_told_to_end_what_was_given_up(desk: Desk) -> None:
    desk.agent(1)
    desk.run(50)
    desk.do(e.Disconnected(1))
    desk.pass_time(13)
    desk.agent(2, "a1", running=(("j50", 1, USER),))
    assert desk.one(e.Kill) == e.Kill(2, "j50", 1)
    assert desk.state("j50") is JobState.QUEUED
    desk.finish(2, "j50", 1)
    assert desk.said(2) == ["AckResult"]
    assert desk.one(e.Offer).job == "j50"


# ---- connections are torn, agents come back ----


OFFSETS = (("stdout", 3), ("stderr", 0), ("stdout_limit", 65_539), ("stderr_limit", 65_536))


def attach(desk: Desk, peer: int, job: str, attempt: int = 1, uid: int = USER, epoch: int = 0, since: float = 1.0) -> list[e.Action]:
    spec = e.JobSpec(job=job, cwd="/srv", command="cc", build="b")
    return desk.do(e.Attached(peer, uid, spec, attempt, epoch, since, OFFSETS))


def come_back(desk: Desk, peer: int, incarnation: str = "i1", **more: Any) -> None:
    desk.agent(peer, "a1", incarnation=incarnation, **more)


def test_a_submitter_claims_its_job_on_another_connection(desk: Desk) -> None:
    desk.agent(1)
    desk.run(50)
    desk.do(e.Disconnected(50))
    desk.now += 0.9
    attach(desk, 51, "j50")
    assert desk.one(e.ForwardAttach) == e.ForwardAttach(1, "j50", 1, OFFSETS)
    assert desk.scheduler.told_by(1, "j50", 1) is None, "what comes before the answer has gaps"
    desk.finish(1, "j50")
    assert desk.said(51) == [], "the result too"
    desk.do(e.Joined(1, "j50", 1))
    assert desk.scheduler.told_by(1, "j50", 1) is not None
    desk.pass_time(5)
    desk.finish(1, "j50")
    assert desk.one(e.DeliverResult).peer == 51


def test_a_job_is_nobody_elses_to_claim(desk: Desk) -> None:
    desk.agent(1)
    desk.run(50)
    attach(desk, 51, "j50", uid=USER + 1)
    assert desk.one(e.Answer).verb == "REFUSED"
    desk.finish(1, "j50")
    assert desk.one(e.DeliverResult).peer == 50


def test_a_welcome_renews_the_lease_of_what_is_missing(desk: Desk) -> None:
    desk.agent(1, incarnation="i1")
    desk.agent(2)
    desk.submit(50, agent="a1")
    desk.go(50)
    desk.do(e.Disconnected(1))
    desk.wait(9, 2)
    desk.do(e.Registered(3, 0, e.AgentSpec("a1", 1, ("/srv",), incarnation="i1", running=(("j50", 1, USER),))))
    desk.do(e.Disconnected(3))
    desk.wait(12, 2)
    assert desk.state("j50") is JobState.MISSING, "its runner may live that long"
    desk.wait(1, 2)
    assert desk.state("j50") is JobState.QUEUED


def test_what_has_gone_beyond_is_not_run_again_because_its_result_is_no_more(desk: Desk) -> None:
    desk.agent(1, incarnation="i1")
    desk.run(50)
    desk.do(e.Made(1, "j50", 1, 1, (), "it changed /srv/f", True))
    desk.do(e.Disconnected(1))
    come_back(desk, 2)
    assert desk.one(e.TellFailed).safe is False


def test_an_agent_that_rejects_what_was_given_up_is_out_of_quarantine(desk: Desk) -> None:
    desk.agent(1, running=(("ghost", 1, USER),))
    assert not desk.scheduler.agents[1].is_serving
    desk.do(e.Rejected(1, "ghost", 1, "it was ended before it began"))
    assert desk.scheduler.agents[1].is_serving


def test_an_agent_of_another_user_does_not_get_the_job(desk: Desk) -> None:
    desk.agent(1, "a1", incarnation="i1")
    desk.run(50)
    desk.do(e.Disconnected(1))
    desk.agent(2, "a1", uid=USER + 1, serves=USER + 1, incarnation="i2", running=(("j50", 1, USER + 1),))
    assert desk.state("j50") is JobState.MISSING


def test_an_agent_that_comes_back_in_time_goes_on(desk: Desk) -> None:
    desk.agent(1, incarnation="i1", slots=2)
    desk.run(50)
    desk.run(51)
    desk.do(e.Disconnected(1))
    come_back(desk, 2, slots=2, running=(("j50", 1, USER),), kept=(("j51", 1, USER),))
    assert {action.job for action in desk.last if isinstance(action, e.Resume)} == {"j50", "j51"}
    assert len(desk.scheduler.agents[2].jobs) == 1, "what has ended holds no slot"
    for peer, job in ((50, "j50"), (51, "j51")):
        attach(desk, peer, job)
        desk.do(e.Joined(2, job, 1))
        desk.finish(2, job)
        assert desk.one(e.DeliverResult).peer == peer


@pytest.mark.parametrize(
    ("incarnation", "former", "started"),
    [("i1", (), False), ("i2", ("i1",), False), ("i2", (), True), ("i2", ("i0",), True), ("", (), True)],
)
def test_what_nobody_names_was_never_started_if_somebody_can_tell(
    desk: Desk, incarnation: str, former: tuple[str, ...], started: bool
) -> None:
    desk.agent(1, incarnation="i1")
    desk.run(50)
    desk.do(e.Disconnected(1))
    come_back(desk, 2, incarnation, former=former)
    assert desk.said(50) == ([] if started else ["TellQueued", "Offer"])


@pytest.mark.parametrize(("told", "verb"), [(("/srv/o",), "again"), ((), "again"), (None, "failed")])
def test_what_an_attempt_did_decides_whether_there_is_another(desk: Desk, told: tuple[str, ...] | None, verb: str) -> None:
    desk.agent(1)
    desk.agent(2)
    holder = desk.run(50).peer
    desk.do(e.Made(holder, "j50", 1, 1, told or (), "it changed /srv/f" if told is None else "", True))
    assert desk.one(e.Noted) == e.Noted(holder, "j50", 1, 1)
    desk.do(e.Disconnected(holder))
    desk.wait(13, 3 - holder)
    if verb == "failed":
        assert desk.said(50) == []
        desk.wait(297, 3 - holder)
        failed = desk.one(e.TellFailed)
        assert (failed.safe, failed.undo, "it changed /srv/f" in failed.reason) == (False, (), True)
    else:
        desk.go(50)
        assert (desk.one(e.Assign).attempt, desk.one(e.Assign).undo) == (2, told)


def test_a_job_is_lost_five_times_at_most_and_what_is_left_of_it_is_told(desk: Desk) -> None:
    desk.agent(1)
    desk.run(50)
    for attempt in range(1, 7):
        assert desk.state("j50") is JobState.ASSIGNED
        desk.finish(1, "j50", attempt, e.Outcome(None, "lost", "it was stopped", repeat=True, made=("/srv/o",)))
        if attempt < 6:
            desk.go(50)
    assert (desk.one(e.TellFailed).safe, desk.one(e.TellFailed).undo) == (True, ("/srv/o",))


def test_more_than_can_be_removed_is_run_once(desk: Desk) -> None:
    desk.agent(1)
    desk.run(50)
    for seq in range(9):
        desk.do(e.Made(1, "j50", 1, seq, tuple(f"/srv/{seq}/{number}" for number in range(30)), "", True))
    desk.finish(1, "j50", 1, e.Outcome(None, "lost", "it was stopped", repeat=True))
    assert desk.one(e.TellFailed).safe is False


def test_a_submitter_that_is_back_after_its_job_was_ended_has_it_run_again(desk: Desk) -> None:
    desk.agent(1)
    desk.run(50)
    desk.do(e.Disconnected(50))
    desk.pass_time(1.0)
    assert desk.one(e.Kill).job == "j50"
    attach(desk, 51, "j50")
    desk.do(e.Joined(1, "j50", 1))
    desk.finish(1, "j50", 1, e.Outcome(None, "lost", "it was ended", repeat=True, made=("/srv/o",)))
    assert desk.one(e.Offer).attempt == 2
    desk.do(e.Disconnected(51))
    desk.pass_time(1.0)
    assert not desk.scheduler.jobs
    attach(desk, 52, "j50", attempt=2)
    assert desk.one(e.Offer).attempt == 3
    desk.go(52, "j50")
    assert desk.one(e.Assign).undo == ("/srv/o",)


def test_a_result_that_is_lost_on_its_way_is_fetched_again(desk: Desk) -> None:
    desk.agent(1)
    desk.run(50)
    desk.finish(1, "j50")
    desk.do(e.Disconnected(50))
    attach(desk, 51, "j50")
    assert desk.one(e.ForwardAttach).peer == 1
    desk.do(e.Joined(1, "j50", 1))
    desk.finish(1, "j50")
    assert (desk.one(e.DeliverResult).peer, desk.said(1)) == (51, [])
    desk.do(e.Acknowledged(51, "j50"))
    assert desk.said(1) == ["AckResult"]


@pytest.mark.parametrize("repeat", [True, False])
def test_a_result_whose_agent_dies_before_it_was_fetched_again(desk: Desk, repeat: bool) -> None:
    desk.agent(1)
    desk.agent(2)
    holder = desk.run(50).peer
    desk.finish(holder, "j50", 1, e.Outcome(0, repeat=repeat, made=("/srv/o",)))
    attach(desk, 51, "j50")
    desk.do(e.Disconnected(holder))
    desk.wait(13, 3 - holder)
    if repeat:
        desk.go(51, "j50")
        assert (desk.one(e.Assign).attempt, desk.one(e.Assign).undo) == (2, ("/srv/o",))
    else:
        assert (desk.one(e.TellFailed).peer, desk.one(e.TellFailed).safe) == (51, False)


def test_a_result_whose_output_its_agent_has_lost_is_none(desk: Desk) -> None:
    desk.agent(1)
    desk.run(50)
    desk.finish(1, "j50")
    desk.do(e.Disconnected(50))
    attach(desk, 51, "j50")
    desk.do(e.Joined(1, "j50", 1))
    desk.finish(1, "j50", 1, e.Outcome(None, "lost", "its output was lost with the agent", repeat=True))
    desk.go(51, "j50")
    assert desk.one(e.Assign).attempt == 2


def test_a_result_waits_for_a_submitter_that_is_cut_off(desk: Desk) -> None:
    desk.agent(1)
    desk.run(50)
    desk.finish(1, "j50")
    desk.do(e.Disconnected(50))
    desk.wait(40, 1)
    attach(desk, 51, "j50")
    assert desk.one(e.ForwardAttach).peer == 1


@pytest.mark.parametrize("repeat", [True, False])
def test_a_result_that_nobody_has_fetched_in_a_minute_is_gone(desk: Desk, repeat: bool) -> None:
    desk.agent(1)
    desk.run(50)
    desk.finish(1, "j50", 1, e.Outcome(0, repeat=repeat, made=("/srv/o",)))
    desk.do(e.Disconnected(50))
    desk.wait(61, 1)
    assert not desk.scheduler.jobs
    attach(desk, 51, "j50", attempt=1)
    if repeat:
        desk.go(51, "j50")
        assert (desk.one(e.Assign).attempt, desk.one(e.Assign).undo) == (2, ("/srv/o",))
    else:
        assert (desk.one(e.TellFailed).peer, desk.one(e.TellFailed).safe) == (51, False)


# ---- another epoch ----


def after_a_restart(*assigned: tuple[str, Assigned], epochs: tuple[int, ...] = (0, 1)) -> Desk:
    """A desk whose distributor began at 100 and knows these from before."""
    desk = Desk()
    past = Past(100.0, frozenset(epochs), 113.0, assigned=dict(assigned))
    past.ended_before({"over": None, "undone": ("/srv/o",)})
    desk.scheduler = Scheduler(lambda: f"again{desk.now}{len(desk.scheduler.jobs)}", past=past)
    return desk


OLD = ("j50", Assigned(3, "a1", "i1", USER))


def test_a_restarted_distributor_finds_its_jobs_again() -> None:
    desk = after_a_restart(OLD)
    come_back(desk, 1, running=(("j50", 3, USER),))
    attach(desk, 50, "j50", 3)
    assert desk.one(e.ForwardAttach).peer == 1
    desk.do(e.Joined(1, "j50", 3))
    desk.finish(1, "j50", 3)
    assert desk.one(e.DeliverResult).peer == 50


@pytest.mark.parametrize(("lost_at", "seconds"), [(90.0, 4), (110.0, 10), (None, 13)])
def test_a_restart_does_not_restart_clocks(lost_at: float | None, seconds: int) -> None:
    desk = after_a_restart(("j50", Assigned(3, "a1", "i1", USER, lost_at=lost_at)))
    attach(desk, 50, "j50", 3)
    desk.agent(2)
    desk.wait(seconds - 1, 2)
    assert desk.said(50) == []
    desk.wait(1, 2)
    assert desk.said(50) == ["TellQueued", "Offer"]


def test_a_job_of_the_past_that_no_submitter_claims_is_ended() -> None:
    desk = after_a_restart(OLD)
    come_back(desk, 1, running=(("j50", 3, USER),))
    desk.now += 12.9
    desk.beat(1)
    assert desk.said(1) == ["RenewLease"]
    desk.pass_time(0.1)
    assert desk.one(e.Kill) == e.Kill(1, "j50", 3)
    desk.finish(1, "j50", 3)
    assert not desk.scheduler.jobs


@pytest.mark.parametrize(
    ("known", "back", "again"),
    [
        (Assigned(3, "a1", "i1", USER, ("/srv/o",)), False, True),
        (Assigned(3, "a1", "i1", USER, beyond="it changed /srv/f"), False, False),
        (Assigned(3, "a1", "i1", USER, beyond="it changed /srv/f", lost_at=413.0), False, False),
        (Assigned(3, "a1", "i1", USER), True, True),
        (Assigned(3, None, "", USER, ("/srv/o",)), True, True),
    ],
)
def test_what_was_written_down_decides_after_a_restart(known: Assigned, back: bool, again: bool) -> None:
    desk = after_a_restart(("j50", known))
    attach(desk, 50, "j50", 3)
    desk.agent(2)
    if back:
        come_back(desk, 1)
    if not back:
        desk.wait(12 if again else 312, 2)
        assert "TellFailed" not in desk.said(50), "its agent may still be back"
        desk.wait(1, 2)
    if again:
        desk.go(50)
        assert (desk.one(e.Assign).attempt, desk.one(e.Assign).undo) == (4, known.made)
    else:
        assert desk.one(e.TellFailed).safe is False


@pytest.mark.parametrize(
    ("job", "epoch", "answer"),
    [("new", 0, "Offer"), ("new", 7, "later"), ("over", 0, "TellFailed"), ("undone", 0, "Offer")],
)
def test_a_job_that_is_not_known_runs_only_if_it_was_never_assigned(job: str, epoch: int, answer: str) -> None:
    desk = after_a_restart()
    desk.agent(1)
    attach(desk, 50, job, 1, epoch=epoch)
    if answer == "later":
        assert desk.said(50) == ["TellMissing"]
        desk.now += 13
        desk.beat(1)
        assert (desk.one(e.TellFailed).safe, desk.said(50)) == (False, ["TellFailed"])
        attach(desk, 51, job, 1, epoch=epoch)
        assert desk.said(51) == ["TellFailed"]
    else:
        assert desk.said(50) == [answer]


# ---- memory, faults ----


def test_a_job_killed_for_want_of_memory_goes_where_there_is_more_then_alone(desk: Desk) -> None:
    desk.agent(1, memory_bytes=8, slots=2)
    desk.agent(2, memory_bytes=16, slots=2)
    desk.agent(3, memory_bytes=4, slots=2)
    desk.run(40, agent="a2")
    assert desk.run(50, labels=()).memory_retry
    starved = e.Outcome(None, "lost", "it was killed for want of memory", repeat=True, memory=True)
    first = desk.scheduler.jobs["j50"].agent
    assert first is not None
    desk.finish(first.peer, "j50", 1, starved)
    desk.go(50)
    assert desk.one(e.Assign).peer == (2 if first.peer != 3 else desk.one(e.Assign).peer)
    while desk.one(e.Assign).peer != 2:
        desk.finish(desk.one(e.Assign).peer, "j50", desk.one(e.Assign).attempt, starved)
        desk.go(50)
    attempt = desk.one(e.Assign).attempt
    desk.finish(2, "j50", attempt, starved)
    assert desk.said(50) == ["TellQueued"], "it waits until the largest has nothing else"
    desk.submit(60, agent="a2")
    assert desk.said(60) == ["TellQueued"], "which is kept free for it"
    desk.finish(2, "j40")
    desk.go(50)
    assert (desk.one(e.Assign).peer, desk.one(e.Assign).memory_retry) == (2, False)
    desk.finish(2, "j50", attempt + 1, e.Outcome(9))
    assert desk.said(60) == ["Offer"]


def test_an_agent_that_fails_by_itself_is_suspended_for_a_while(desk: Desk) -> None:
    desk.agent(1)
    for job in (50, 51, 52):
        desk.agent(job + 50)
        desk.submit(job, agent="a1")
        desk.go(job)
        desk.do(e.Rejected(1, f"j{job}", 1, "no room in /tmp", fault=True))
    assert desk.scheduler.agents[1].suspended == "no room in /tmp"
    desk.do(e.Disconnected(1))
    desk.agent(2, "a1")
    assert not desk.scheduler.agents[2].is_serving, "coming back does not help"
    for _ in range(61):
        desk.now += 1
        desk.beat(2)
    assert desk.scheduler.agents[2].is_serving


@pytest.mark.parametrize("outcome", [e.Outcome(256), e.Outcome(None, "not_found", "cc"), e.Outcome(None, "lost", "stopped", repeat=True)])
def test_what_a_command_does_counts_against_no_agent(desk: Desk, outcome: e.Outcome) -> None:
    desk.agent(1)
    for job in range(50, 60):
        desk.run(job)
        desk.finish(1, f"j{job}", 1, outcome)
        desk.do(e.Disconnected(job))
    assert desk.scheduler.agents[1].suspended == ""


# ---- views of shared trees ----


def told(*texts: str) -> list[manifest.Entry]:
    return [manifest.make(text[:1].encode(), text[2:].encode()) for text in texts]


def wrote(desk: Desk, agent: int, job: str, *texts: str) -> list[e.Action]:
    return desk.do(e.ManifestTold(agent, job, 1, told(*texts), [b"MANIFEST"]))


def test_without_a_network_file_system_nothing_of_it_happens(desk: Desk) -> None:
    desk.agent(1)
    desk.submit(50)
    assert not desk.one(e.Offer).views
    desk.go(50)
    assign = desk.one(e.Assign)
    assert (assign.views, assign.journal, assign.behind, assign.burst) == (False, b"", False, 0)


@pytest.mark.parametrize("who", ["an agent", "another agent", "the submitter"])
def test_whoever_has_a_network_file_system_everyone_takes_part(desk: Desk, who: str) -> None:
    desk.agent(1, views=who == "an agent")
    if who == "another agent":
        desk.agent(2, views=True, roots=("/elsewhere",))
    desk.submit(50, views=who == "the submitter")
    assert desk.one(e.Offer).views
    desk.go(50)
    assert desk.one(e.Assign).views


def test_views_end_with_the_last_agent_that_has_them(desk: Desk) -> None:
    desk.agent(1)
    desk.agent(2, views=True)
    desk.do(e.Registered(2, 0, e.AgentSpec("a2", 1, ("/srv",))))
    desk.submit(50)
    assert not desk.one(e.Offer).views
    desk.agent(3, views=True)
    desk.do(e.Disconnected(3))
    desk.submit(51)
    assert not desk.one(e.Offer).views


def test_an_agent_is_told_what_others_changed_since_its_last_job(desk: Desk) -> None:
    desk.agent(1, views=True)
    desk.agent(2, views=True)
    first = desk.run(50)
    second = desk.run(51)
    assert (first.behind, second.behind) == (True, True), "nobody knows what they lack"
    wrote(desk, first.peer, "j50", "D /srv", "F /srv/a.o")
    assert desk.one(e.ForwardManifest) == e.ForwardManifest(50, [b"MANIFEST"])
    desk.finish(first.peer, "j50")
    desk.finish(second.peer, "j51")
    later = {assign.peer: assign for assign in (desk.run(52), desk.run(53))}
    assert later[second.peer].journal == manifest.join(told("D /srv", "F /srv/a.o"))
    assert (later[first.peer].journal, later[second.peer].behind) == (b"", False)


def test_what_a_submitter_tells_before_go_reaches_its_agent(desk: Desk) -> None:
    desk.agent(1, views=True)
    desk.submit(50)
    desk.do(e.ManifestTold(50, "j50", 0, told("D /srv/include"), []))
    desk.go(50)
    assert desk.one(e.Assign).journal == manifest.join(told("d /srv/include"))  # a user's word, which binds nobody
    desk.do(e.ManifestTold(50, "j50", 0, told("D /srv/late"), []))
    assert desk.one(e.Unexpected).what == "manifest"


def test_a_submitter_tells_no_more_than_a_job_may(desk: Desk) -> None:
    desk.submit(50, views=True)
    for _ in range(MAX_TOLD // 1_000):
        assert not desk.do(e.ManifestTold(50, "j50", 0, told("D /srv") * 1_000, []))
    desk.do(e.ManifestTold(50, "j50", 0, told("D /srv") * 1_000, []))
    assert desk.one(e.Unexpected).what == "manifest"
    desk.do(e.ManifestTold(51, "j50", 0, told("D /srv"), []))
    assert desk.one(e.Unexpected).what == "manifest", "somebody else's job"


def test_manifests_count_whoever_still_waits_for_them(desk: Desk) -> None:
    desk.agent(1, views=True)
    desk.agent(2, views=True)
    abandoned = desk.run(50)
    other = 3 - abandoned.peer
    desk.run(51)
    desk.finish(other, "j51")
    desk.do(e.Disconnected(50))
    wrote(desk, abandoned.peer, "j50", "F /srv/a")
    assert not [action for action in desk.last if isinstance(action, e.ForwardManifest)]
    wrote(desk, abandoned.peer, "long-gone", "F /srv/b")
    desk.do(e.ManifestTold(abandoned.peer, "", 0, told("F /srv/c"), []))
    assert desk.run(52).journal == manifest.join(told("F /srv/c", "F /srv/b", "F /srv/a"))


def test_an_agent_is_believed_only_once_its_token_is_back(desk: Desk) -> None:
    desk.do(e.Registered(9, 0, e.AgentSpec("a9", 1, ("/srv",), views=True)))
    wrote(desk, 9, "j", "F /srv/a")
    assert desk.one(e.Unexpected).what == "manifest"
    assert len(desk.scheduler.views.journal) == 0


@pytest.mark.parametrize("how", ["lost with a job", "a job whose runner died"])
def test_what_nobody_can_tell_leaves_everyone_behind(desk: Desk, how: str) -> None:
    desk.agent(1, views=True)
    desk.agent(2, views=True)
    for job in (50, 51):
        desk.finish(desk.run(job).peer, f"j{job}")
    unlucky = desk.run(52).peer
    if how == "lost with a job":
        desk.do(e.Disconnected(unlucky))
        desk.wait(13, 3 - unlucky)
        desk.do(e.Disconnected(52))
    else:
        desk.finish(unlucky, "j52", outcome=e.Outcome(None, "infrastructure", "the runner of the job died"))
    desk.do(e.DrainAsked(f"a{unlucky}"))
    assign = desk.run(53)
    assert (assign.peer, assign.behind) == (3 - unlucky, True)
    desk.finish(assign.peer, "j53")
    assert not desk.run(54).behind


def test_a_disk_that_is_full_leaves_nobody_behind(desk: Desk) -> None:
    desk.agent(1, views=True)
    desk.run(50)
    desk.finish(1, "j50", outcome=e.Outcome(None, "infrastructure", "/srv/a: no space", {"outputs": "exact"}))
    assert not desk.run(51).behind


def test_an_agent_that_is_lost_without_a_job_leaves_nobody_behind(desk: Desk) -> None:
    desk.agent(1, views=True)
    desk.finish(1, desk.run(50).spec.job)
    desk.agent(2, views=True)
    desk.do(e.Disconnected(2))
    assert not desk.run(51).behind


def test_bursts_are_numbered(desk: Desk) -> None:
    desk.agent(1, views=True, slots=9)
    assert (desk.run(50).burst, desk.run(51, build="c").burst, desk.run(52).burst) == (1, 2, 1)
    for job in ("j50", "j51", "j52"):
        desk.finish(1, job)
    desk.now += 0.5
    assert desk.run(53).burst == 1
    desk.finish(1, "j53")
    desk.now += 1
    assert desk.run(54).burst == 3


# ---- one agent by name ----


def test_a_job_may_ask_for_one_agent(desk: Desk) -> None:
    for peer in (1, 2, 3):
        desk.agent(peer)
    for job in (50, 51):
        desk.submit(job, agent="a2")
    assert [job.agent and job.agent.name for job in desk.scheduler.jobs.values()] == ["a2", None]
    desk.go(50)
    desk.finish(2, "j50")
    assert desk.one(e.Offer).job == "j51"


def test_an_agent_that_was_asked_for_is_waited_for(desk: Desk) -> None:
    desk.agent(1)
    desk.submit(50, agent="a2")
    desk.agent(2)
    assert desk.one(e.Offer).job == "j50"
    desk.submit(51, agent="a9")
    desk.pass_time(10)
    assert (desk.one(e.Answer).verb, "agent=a9" in desk.one(e.Answer).reason) == ("REFUSED", True)


def test_an_agent_that_was_asked_for_and_leaves_is_waited_for_again(desk: Desk) -> None:
    desk.agent(1)
    desk.agent(2)
    desk.submit(50, agent="a2")
    desk.submit(51, agent="a2")
    desk.do(e.Disconnected(2))
    assert (desk.state("j50"), desk.state("j51")) == (JobState.QUEUED, JobState.QUEUED)
    desk.agent(3, "a2")
    assert desk.one(e.Offer).job == "j50"


def test_an_agent_that_was_asked_for_and_refuses_is_the_end(desk: Desk) -> None:
    desk.agent(1)
    desk.agent(2)
    desk.run(50, agent="a2")
    desk.do(e.Rejected(2, "j50", 1, "no"))
    failed = desk.one(e.TellFailed)
    assert (failed.safe, "a2" in failed.reason) == (True, True)


def test_an_agent_that_was_asked_for_by_someone_it_does_not_serve(desk: Desk) -> None:
    desk.agent(1, serves=2000, uid=2000)
    desk.submit(50, agent="a1")
    desk.pass_time(10)
    assert "serves" in desk.one(e.Answer).reason
    desk.do(e.Explained(60, USER, e.JobSpec("j60", "/srv", "cc", "b", agent="a1")))
    assert desk.one(e.TellExplained).where == "nowhere"


def test_a_job_for_one_agent_that_loses_it_twice_waits_for_it_a_second_time(desk: Desk) -> None:
    desk.submit(50, agent="a1")  # homeless
    desk.now += 1
    desk.agent(1)
    assert desk.state("j50") is JobState.OFFERED
    desk.do(e.Disconnected(1))  # homeless again
    desk.now += NO_AGENT_SECONDS - 0.5
    desk.do(e.Tick())
    assert desk.state("j50") is JobState.QUEUED, "its second wait has only begun"
    desk.now += 0.6
    desk.do(e.Tick())
    assert "j50" not in desk.scheduler.jobs
    assert desk.one(e.Answer).verb == "REFUSED"


def test_agents_of_other_environments_cost_a_job_nothing(desk: Desk) -> None:
    """Two hundred servers in the middle of an upgrade are two hundred pools, while thousands of jobs come each second."""
    for peer in range(1, 101):
        desk.agent(peer, identity=f"x86 d/12 #{peer}")
    with unittest.mock.patch.object(policy, "why_unlike", wraps=policy.why_unlike) as looked:
        desk.submit(500, identity="x86 d/12 #7")
    desk.go(500)
    assert desk.one(e.Assign).peer == 7
    assert looked.call_count == 1


def test_what_nobody_could_take_for_ten_seconds_is_answered_at_once(desk: Desk) -> None:
    desk.agent(1, identity="x86 d/13 #2")
    desk.submit(50, identity="x86 d/12 #1")
    desk.wait(6, 1)
    desk.submit(51, identity="x86 d/12 #1")
    assert desk.wait(3, 1) == [action for action in desk.last if not isinstance(action, e.Answer)]
    answered = {action.peer for action in desk.wait(1, 1) if isinstance(action, e.Answer)}
    assert answered == {50, 51}, "both waited until there was none for 10 s"
    desk.submit(52, identity="x86 d/12 #1")
    assert desk.one(e.Answer).reason == "no agent has your environment: agent a1 runs d 13, you run d 12 (for 10 s)"
    desk.submit(53, identity="x86 d/11 #1")
    assert desk.state("j53") is JobState.QUEUED, "for another one it has not been tried yet"
    desk.agent(2, identity="x86 d/12 #1")
    desk.submit(54, identity="x86 d/12 #1")
    assert desk.one(e.Offer).peer == 54
    desk.do(e.Disconnected(2))
    desk.submit(55, identity="x86 d/12 #1")
    assert desk.state("j55") is JobState.QUEUED, "there was one a moment ago"


def test_agents_that_come_and_go_elsewhere_make_nobody_wait_again(desk: Desk) -> None:
    """While two hundred servers are upgraded, each of them is of several kinds for moments."""
    desk.agent(1, identity="x86 d/13 #2")
    desk.submit(50, identity="x86 d/12 #1")
    desk.wait(11, 1)
    desk.agent(2, identity="x86 d/13 #3")
    desk.submit(51, identity="x86 d/12 #1")
    assert desk.one(e.Answer).verb == "UNAVAILABLE"
    desk.do(e.Disconnected(2))
    desk.submit(52, identity="x86 d/12 #1")
    assert desk.one(e.Answer).verb == "UNAVAILABLE"
    desk.agent(3, identity="x86 d/12 #1")
    desk.do(e.Disconnected(3))
    desk.submit(53, identity="x86 d/12 #1")
    assert desk.state("j53") is JobState.QUEUED, "there was one a moment ago, of which no job made use"
    assert [action.peer for action in desk.wait(10, 1) if isinstance(action, e.Answer)] == [53], "there is none any more"


def test_an_agent_that_comes_and_goes_in_a_pool_that_stays_is_waited_for_each_time(desk: Desk) -> None:
    desk.agent(1)
    desk.submit(50, agent="a2")
    assert "REFUSED" in [action.verb for action in desk.wait(11, 1) if isinstance(action, e.Answer)]
    desk.agent(2)
    desk.wait(600, 1, 2)
    desk.do(e.Disconnected(2))
    desk.submit(51, agent="a2")
    assert desk.state("j51") is JobState.QUEUED


def test_an_agent_that_changes_between_offer_and_go_does_not_get_the_job(desk: Desk) -> None:
    desk.agent(1, identity="x86 d/12 #1")
    desk.submit(50, identity="x86 d/12 #1")
    desk.agent(1, identity="x86 d/13 #2")
    desk.do(e.Committed(50, "j50", "secret2", (b"go",)))
    assert not [action for action in desk.last if isinstance(action, e.Assign)]
    assert desk.state("j50") is JobState.QUEUED
    desk.agent(1, identity="x86 d/12 #1")
    desk.go(50)
    assert desk.one(e.Assign).attempt == 1


def test_an_agent_that_is_upgraded_keeps_its_jobs_and_gets_none_of_the_old_kind(desk: Desk) -> None:
    desk.agent(1, identity="x86 d/12 #1")
    desk.agent(2, identity="x86 d/12 #1")
    desk.submit(50, identity="x86 d/12 #1")
    desk.go(50)
    peer = desk.one(e.Assign).peer
    desk.agent(peer, identity="x86 d/13 #2", running=(("j50", 1, USER),))
    desk.submit(51, identity="x86 d/12 #1")
    desk.go(51)
    assert desk.one(e.Assign).peer == 3 - peer
    desk.finish(peer, "j50")
    desk.submit(52, identity="x86 d/13 #2")
    desk.go(52)
    assert desk.one(e.Assign).peer == peer


def test_a_list_that_many_agents_have_is_kept_once(desk: Desk) -> None:
    for peer in range(1, 5):
        desk.agent(peer, identity="x86 d/12 #1", packages="".join(["a 1\n", "b 2"]))
    desk.agent(4, identity="x86 d/12 #1", packages="".join(["a 1\n", "b 2"]))
    desk.agent(5, identity="x86 d/12 #1", packages="another")
    assert len({id(agent.spec.packages) for agent in desk.scheduler.agents.values()}) == 2


def test_nobody_elses_jobs_are_charged_to_a_build_by_its_name(desk: Desk) -> None:
    """Names of builds are shown to everybody. A job of the least weight in alice's would have put her off until others had had 256."""
    alice, mallory, carol = 1001, 1002, 1003
    desk.agent(1)
    desk.submit(50, uid=mallory, build="alice's", priority=-8)
    desk.submit(51, uid=alice, build="alice's")
    for peer in range(52, 60):
        desk.submit(peer, uid=carol, build="carol's")
    desk.go(50)
    turns = []
    for _ in range(3):
        desk.finish(1, turns[-1].job if turns else "j50")
        turns.append(desk.one(e.Offer))
        desk.go(turns[-1].peer)
    assert "j51" in [offer.job for offer in turns]


def test_an_agent_that_says_again_and_again_what_it_is_does_not_have_all_jobs_judged_each_time(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 20,000 jobs that wait, 300 such messages had the distributor stand still for 14 s; agents are given up after 13."""
    jobs = 3_000
    judged: list[int] = []
    desk.agent(1)
    desk.agent(2, labels=frozenset({"x=0"}))
    for peer in range(100, 100 + jobs):
        desk.submit(peer)
    desk.submit(50, labels=("x=100",), build="other", priority=8)

    def judge(*args: Any) -> policy.Verdict:
        judged.append(1)
        return policy.judge(*args)

    monkeypatch.setattr(waiting, "judge", judge)
    for number in range(1, 101):
        desk.do(e.Registered(2, 0, e.AgentSpec("a2", 1, ("/srv",), labels=frozenset({f"x={number}"}))))
        desk.now += 0.001
    assert len(judged) < 3 * jobs
    for _ in range(40):
        desk.pass_time(0.05)
    assert desk.state("j50") is JobState.OFFERED, "the last change is looked at as well"


def test_a_job_whose_time_is_over_while_that_waits_goes_to_the_agent_that_has_just_come(desk: Desk) -> None:
    desk.agent(1)
    for peer in range(100, 3_100):
        desk.submit(peer)
    desk.submit(50, labels=("y",))
    desk.wait(int(NO_AGENT_SECONDS) - 1, 1)
    desk.now += 0.95
    desk.agent(2, labels=frozenset({"x"}))
    desk.agent(3, slots=4_000, labels=frozenset({"y"}))
    assert not any(isinstance(action, e.Offer) for action in desk.last), "else this test shows nothing"
    desk.pass_time(0.06)
    assert desk.state("j50") is JobState.OFFERED


def test_one_may_have_so_many_kinds_of_agents(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each job is held against each kind."""
    monkeypatch.setattr(roster, "MAX_KINDS_OF_ONE", 3)

    def register(peer: int, kind: int, owner: str = "uid 7") -> bool:
        desk.do(e.Registered(peer, 7, e.AgentSpec(f"a{peer}", 1, ("/srv",), 7, frozenset({f"x={kind}"})), owner))
        return not any(isinstance(action, e.RefuseAgent) for action in desk.last)

    assert [register(peer, peer) for peer in range(1, 6)] == [True, True, True, False, False]
    assert register(6, 2), "one more of a kind"
    assert register(7, 7, owner="uid 8")
    desk.do(e.Disconnected(2))
    assert not register(8, 8), "there is another of that kind"
    desk.do(e.Disconnected(6))
    assert register(8, 8)
    assert not register(8, 9)
    desk.do(e.Disconnected(8))
    assert register(9, 9)
