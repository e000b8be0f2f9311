"""watch.py: who makes the distributor grow; by tables of what connections did between looks."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dwrap.distributor.descriptors import Sample
from dwrap.distributor.watch import GROWTH_BYTES, MAX_MESSAGE_BYTES, MAX_OWED_BYTES, STRIKES, Watch

MB = 1024 * 1024
FD = 9


@dataclass
class Did:
    messages: int = 0
    told_bytes: int = 0


Look = tuple[Did | None, Sample]


def ends(looks: list[Look]) -> list[int]:
    """At which look the connection is ended."""
    watch = Watch()
    return [number for number, (did, sample) in enumerate(looks, 1) if watch.look(0, {FD: did}, {FD: sample})]


def test_it_looks_when_the_process_has_grown() -> None:
    watch = Watch()
    assert not watch.is_due(100 * MB)
    assert not watch.is_due(100 * MB + GROWTH_BYTES - 1)
    assert watch.is_due(100 * MB + GROWTH_BYTES)
    watch.look(200 * MB, {}, {})
    assert not watch.is_due(200 * MB + GROWTH_BYTES - 1)
    assert not watch.is_due(90 * MB)
    assert watch.is_due(90 * MB + GROWTH_BYTES)


@pytest.mark.parametrize("did", [None, Did(5)])
def test_a_message_without_end_is_ended(did: Did | None) -> None:
    first = [(did, Sample(1_000, 0, True))]
    assert ends([*first, *[(did, Sample(1_000 + look * MB, 0, True)) for look in range(1, 6)]])[0] == 1 + STRIKES


def test_one_that_is_larger_than_any_is_ended_at_once() -> None:
    assert ends([(Did(5), Sample(0, 0, True)), (Did(6), Sample(10, 0, True)), (Did(6), Sample(11 + MAX_MESSAGE_BYTES, 0, True))]) == [3]


def test_on_a_unix_socket_what_waits_to_be_read_stands_for_what_came() -> None:
    assert ends([(Did(5), Sample(None, 5, True))] * 6)[0] == STRIKES + 1
    assert ends([(Did(5), Sample(None, 0, True))] * 9) == []
    assert ends([(Did(number), Sample(None, 5, True)) for number in range(9)]) == []


@pytest.mark.parametrize(
    "looks",
    [
        [(Did(number), Sample(number * 30 * MB, 9, True)) for number in range(9)],  # it sends much, and completes messages
        [(Did(5), Sample(1_000 + number * 9, 0, True)) for number in range(99)],  # it waits for its turn, with a PING now and then
        [(Did(1 + number // STRIKES), Sample(number * MB, 0, True)) for number in range(99)],  # its messages take their time
        [(None, Sample(200, 0, True))] * 9,
        [(Did(9, number * 100 * MB), Sample(9, 0, True)) for number in range(9)],  # it reads all it is told
        [(Did(9, 2 * MB), Sample(9, 0, False))] * 9,  # it has stopped reading, and asks for no more
        [(Did(9 + number, number * 1_000), Sample(9, 0, False)) for number in range(99)],
    ],
    ids=["busy", "waiting", "slow", "new", "hungry", "stopped", "modest"],
)
def test_those_who_mean_well_stay(looks: list[Look]) -> None:
    assert ends(looks) == []


def test_one_that_asks_and_does_not_read_is_ended() -> None:
    assert ends([(Did(number, number * 2 * MB), Sample(number, 0, False)) for number in range(9)])[0] == STRIKES + 1
    assert ends([(Did(1, 0), Sample(9, 0, True)), (Did(2, MAX_OWED_BYTES + 1), Sample(9, 0, False))]) == [2]


def test_another_connection_with_that_descriptor_begins_anew() -> None:
    watch = Watch()
    for look in range(STRIKES):
        assert not watch.look(0, {FD: None}, {FD: Sample(look * MB, 0, True)})
    watch.forget(FD)
    assert not watch.look(0, {FD: None}, {FD: Sample(MB, 0, True)})


@given(st.lists(st.tuples(st.integers(0, 30 * MB), st.integers(0, 90 * MB)), max_size=20))
def test_whoever_completes_a_message_and_reads_before_each_look_stays(steps: list[tuple[int, int]]) -> None:
    watch, did, received = Watch(), Did(), 0
    for sent, told in steps:
        did.messages += 1
        did.told_bytes += told
        received += sent
        assert watch.look(0, {FD: did}, {FD: Sample(received, 1, True)}) == []
