"""policy.py and the rule table that it reads: who may run what where, and the reason that is told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dwrap.distributor.events import ANY_UID, AgentSpec, JobSpec
from dwrap.distributor.policy import Pool, Verdict, is_under, judge, pool_of
from dwrap.protocol.rules import image_prefixes, parse_rules, rules


def pool(**changes: object) -> Pool:
    base: dict[str, object] = {"labels": frozenset(), "roots": ("/srv",), "serves": ANY_UID, "identity": "", "allow_root": False}
    return Pool(**{**base, **changes})  # type: ignore[arg-type]


def job(**changes: object) -> JobSpec:
    base: dict[str, object] = {"job": "j", "cwd": "/srv/a", "command": "cc", "build": "b"}
    return JobSpec(**{**base, **changes})  # type: ignore[arg-type]


BIG = frozenset({"big=1"})


@pytest.mark.parametrize(
    ("spec", "uid", "pools", "verb", "reason"),
    [
        (job(), 1000, [], "UNAVAILABLE", "dwrap-agent"),
        (job(), 1000, [pool()], "", ""),
        (job(), 1000, [pool(serves=1000)], "", ""),
        (job(), 1000, [pool(serves=1001)], "UNAVAILABLE", "uid 1000"),
        (job(), 0, [pool()], "UNAVAILABLE", "--allow-root"),
        (job(), 0, [pool(allow_root=True)], "", ""),
        (job(), None, [pool(allow_root=True)], "UNAVAILABLE", "without an identity"),
        (job(), None, [pool(serves=0, allow_root=True)], "UNAVAILABLE", "without an identity"),
        (job(), None, [pool(serves=1000)], "", ""),
        (job(labels=("big=1",)), 1000, [pool()], "REFUSED", "big=1"),
        (job(labels=("big=1",)), 1000, [pool(), pool(labels=BIG)], "", ""),
        (job(labels=("big=1",)), 1000, [pool(labels=BIG, serves=7)], "UNAVAILABLE", "uid 1000"),
        (job(identity="x86 d/12 #1"), 1000, [pool(identity="x86 d/13 #1")], "UNAVAILABLE", "an agent runs d 13, you run d 12"),
        (job(identity="x86 d/12 #1"), 1000, [pool()], "UNAVAILABLE", "does not say"),
        (job(identity="x86 d/12 #1", cwd="/tmp"), 1000, [pool(identity="x86 d/13 #1")], "HERE", "/tmp"),
        (job(identity="x d/12 #1"), 1, [pool(identity="x d/13 #1"), pool(roots=("/x",), identity="x d/12 #1")], "UNAVAILABLE", "d 13"),
        (job(identity="x86 d/12 #1", labels=("big=1",)), 1000, [pool(identity="arm d/12 #1", labels=BIG)], "REFUSED", "is arm, you are on"),
        (job(identity="x86 d/12 #1", agent="a1"), 1000, [pool(identity="arm d/12 #1")], "REFUSED", "DWRAP_ENVIRONMENT=any"),
        (job(cpu="Toy #1", labels=("big=1",)), 1000, [pool(cpu="Toy #2", labels=BIG)], "REFUSED", "has Toy #2"),
        (job(), 1000, [pool(identity="x86 d/13 #1")], "", ""),
        (job(cpu="Toy #1"), 1000, [pool(cpu="Toy #2")], "UNAVAILABLE", "has Toy #2"),
        (job(cpu="Toy #1"), 1000, [pool(cpu="Toy #2"), pool(cpu="Toy #1")], "", ""),
        (job(), 1000, [pool(cpu="Toy #2")], "", ""),
        (job(identity="debian 12"), 1000, [pool(identity="debian 12")], "", ""),
        (job(cwd="/tmp/x"), 1000, [pool()], "HERE", "/tmp/x"),
        (job(cwd="/tmp/x", remote=True), 1000, [pool()], "", ""),
        (job(cwd="/srvx"), 1000, [pool()], "HERE", "/srvx"),
        (job(cwd="/srv/../tmp"), 1000, [pool()], "HERE", "/srv/../tmp"),
        (job(cwd="/usr"), 1000, [pool()], "HERE", "/usr"),
        (job(paths=("/usr/include", "/srv/b", "/dev/null")), 1000, [pool()], "", ""),
        (job(paths=("/usr/include", "/home/u")), 1000, [pool()], "HERE", "/home/u"),
        (job(paths=("/home/u",), remote=True), 1000, [pool()], "", ""),
        (job(cwd="/home/u"), 1000, [pool(), pool(roots=("/home",))], "", ""),
        (job(cwd="/tmp/x"), 1000, [pool(), pool(serves=1)], "HERE", "/tmp/x"),
    ],
)
def test_judge(spec: JobSpec, uid: int | None, pools: list[Pool], verb: str, reason: str) -> None:
    verdict = judge(spec, uid, pools)
    assert verdict.verb == verb
    assert reason in verdict.reason
    assert bool(verdict.pools) == (verb == "")


def test_only_the_able_pools_are_named() -> None:
    able, other = pool(labels=BIG), pool()
    assert judge(job(labels=("big=1",)), 1, [able, other]) == Verdict((able,))


def test_where_it_is_allowed_another_environment_will_do_if_there_is_no_equal_one() -> None:
    same, near, far = pool(identity="x86 d/12 #1"), pool(identity="x86 d/13 #1"), pool(identity="arm d/12 #1")
    spec = job(identity=same.identity)
    assert judge(spec, 1, [far, near], strict=False) == Verdict((far, near))
    assert judge(spec, 1, [far, near, same], strict=False) == Verdict((same,))
    assert judge(job(identity=same.identity, cpu="Toy #1"), 1, [near], strict=False).verb == "UNAVAILABLE"
    names = {near: "agent n", far: "agent f"}
    assert judge(spec, 1, [far, near], names.__getitem__).reason == "no agent has your environment: agent n runs d 13, you run d 12"


@pytest.mark.parametrize(
    ("path", "roots", "answer"),
    [
        ("/srv", ("/srv",), True),
        ("/srv/", ("/srv",), True),
        ("//srv//a", ("/srv",), True),
        ("/srv/a/../../etc", ("/srv",), False),
        ("/srv/../srv/a", ("/srv",), True),
        ("/../../srv", ("/srv",), True),
        ("srv/a", ("/srv",), False),
        ("/srvs", ("/srv",), False),
        ("/anything", ("/",), True),
        ("", ("/",), False),
        ("/a", (), False),
    ],
)
def test_is_under(path: str, roots: tuple[str, ...], answer: bool) -> None:
    assert is_under(path, roots) is answer


@given(st.lists(st.sampled_from(["..", ".", "", "srv", "a", "b"]), max_size=8))
def test_is_under_agrees_with_walking_the_path(parts: list[str]) -> None:
    here: list[str] = []
    for part in parts:
        if part == "..":
            here = here[:-1]
        elif part not in (".", ""):
            here.append(part)
    assert is_under("/" + "/".join(parts), ("/srv",)) == (here[:1] == ["srv"])


def test_pools_do_not_depend_on_how_roots_are_written() -> None:
    one = AgentSpec("a", 1, ("/srv/", "/home//x"))
    other = AgentSpec("b", 4, ("/home/x", "/srv", "/srv"))
    assert pool_of(one) == pool_of(other)


def test_the_table_reads() -> None:
    assert "/usr" in image_prefixes()
    assert {rule.kind for rule in rules()} == {"NAMED", "ONLY", "NO_INPUT", "NATIVE", "IMAGE", "STAYS"}
    assert all(rule.why for rule in rules())


def test_a_line_that_is_no_rule_is_named() -> None:
    with pytest.raises(ValueError, match="line 2"):
        parse_rules('RULE(IMAGE, "/usr", "x")\nRULE(IMAGES, "/usr", "x")\n')
