"""watch.py: who makes the distributor grow; by tables of what connections did between looks."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dwrap.distributor.descriptors import Sample
from dwrap.distributor.watch import (
    ALERT_BYTES,
    ALERT_LOOK_SECONDS,
    ALERT_SECONDS,
    GROWTH_BYTES,
    LOOK_SECONDS,
    MAX_BEGUN_BYTES,
    MAX_MESSAGE_BYTES,
    MAX_OWED_BYTES,
    STALL_SECONDS,
    STRIKES,
    Watch,
)

MB = 1024 * 1024
FD = 9


@dataclass
class Did:
    messages: int = 0
    told_bytes: int = 0
    heard_bytes: int = 1 << 40  # all of it, unless a test says otherwise


Look = tuple[Did | None, Sample]


def ends(looks: list[Look], grows: bool = True, seconds: float = 0.1) -> list[int]:
    """At which look the connection is ended."""
    watch = Watch()
    watch.is_due(0, 0.0)
    size = GROWTH_BYTES if grows else 0
    return [number for number, (did, sample) in enumerate(looks, 1) if watch.look(number * size, number * seconds, {FD: did}, {FD: sample})]


def test_it_looks_when_the_process_has_grown_and_every_few_seconds() -> None:
    watch = Watch()
    assert not watch.is_due(100 * MB, 0.0)
    assert not watch.is_due(100 * MB + GROWTH_BYTES - 1, 0.0)
    assert watch.is_due(100 * MB + GROWTH_BYTES, 0.0)
    assert watch.is_due(100 * MB, LOOK_SECONDS)
    watch.look(200 * MB, LOOK_SECONDS, {}, {})
    assert not watch.is_due(200 * MB + GROWTH_BYTES - 1, LOOK_SECONDS)
    assert not watch.is_due(90 * MB, LOOK_SECONDS)
    assert watch.is_due(90 * MB + GROWTH_BYTES, LOOK_SECONDS)


@pytest.mark.parametrize("did", [None, Did(5)])
def test_a_message_without_end_is_ended(did: Did | None) -> None:
    first = [(did, Sample(1_000, False, True))]
    assert ends([*first, *[(did, Sample(1_000 + look * MB, False, True)) for look in range(1, 6)]])[0] == 1 + STRIKES


def test_one_that_is_larger_than_any_is_ended_at_once() -> None:
    assert ends(
        [(Did(5), Sample(0, False, True)), (Did(6), Sample(10, False, True)), (Did(6), Sample(1_000 + MAX_MESSAGE_BYTES, False, True))]
    ) == [3]


def test_on_a_unix_socket_what_waits_to_be_read_stands_for_what_came() -> None:
    assert ends([(Did(5), Sample(None, True, True))] * 6)[0] == STRIKES + 1
    assert ends([(Did(5), Sample(None, False, True))] * 9) == []
    assert ends([(Did(number), Sample(None, True, True)) for number in range(9)]) == []


@pytest.mark.parametrize(
    "looks",
    [
        [(Did(number), Sample(number * 30 * MB, True, True)) for number in range(9)],  # it sends much, and completes messages
        [(Did(5), Sample(1_000 + number * 9, False, True)) for number in range(99)],  # it waits for its turn, with a PING now and then
        [(Did(1 + number // STRIKES), Sample(number * MB, False, True)) for number in range(99)],  # its messages take their time
        [(None, Sample(200, False, True))] * 9,
        [(Did(9, number * 100 * MB), Sample(9, False, True)) for number in range(9)],  # it reads all it is told
        [(Did(9, 2 * MB), Sample(9, False, False))] * 9,  # it has stopped reading, and asks for no more
        [(Did(9 + number, number * 1_000), Sample(9, False, False)) for number in range(99)],
    ],
    ids=["busy", "waiting", "slow", "new", "hungry", "stopped", "modest"],
)
def test_those_who_mean_well_stay(looks: list[Look]) -> None:
    assert ends(looks) == []


def test_one_that_asks_and_does_not_read_is_ended() -> None:
    assert ends([(Did(number, number * 2 * MB), Sample(number, False, False)) for number in range(9)])[0] == STRIKES + 1
    assert ends([(Did(1, 0), Sample(9, False, True)), (Did(2, MAX_OWED_BYTES + 1), Sample(9, False, False))]) == [2]


def test_on_a_unix_socket_one_that_sends_little_by_little_is_ended_as_well() -> None:
    """The process has grown since it last completed a message, though by little from look to look; it is seen to send now and then."""
    watch = Watch()
    watch.is_due(0, 0.0)
    ended = []
    for look in range(100):
        sample = Sample(None, look % 10 == 5, True)
        ended += watch.look(look * 2 * MB, look * 0.1, {FD: Did(1)}, {FD: sample})
    assert ended
    assert not any(watch.look(look * 2 * MB, look * 0.1, {8: Did(look)}, {8: Sample(None, True, True)}) for look in range(200))


def test_while_a_unix_socket_may_be_to_blame_it_looks_more_often_for_a_while() -> None:
    watch, found = Watch(), {FD: Sample(None, False, True)}
    watch.is_due(100 * MB, 0.0)
    watch.look(100 * MB, 0.0, {FD: None}, found)
    now, looks = 0.0, 0
    while now < 2 * ALERT_SECONDS:
        now += ALERT_LOOK_SECONDS
        if watch.is_due(100 * MB + ALERT_BYTES, now):
            watch.look(100 * MB + ALERT_BYTES, now, {FD: None}, found)
            looks += 1
    often = ALERT_SECONDS / ALERT_LOOK_SECONDS
    assert often * 0.9 < looks < often * 1.1 + ALERT_SECONDS / LOOK_SECONDS
    watch.look(100 * MB, now, {FD: None}, {FD: Sample(7, False, True)})
    assert not watch.is_due(100 * MB + GROWTH_BYTES - 1, now + ALERT_LOOK_SECONDS), "all are counted"


def test_another_connection_with_that_descriptor_begins_anew() -> None:
    watch = Watch()
    for look in range(STRIKES):
        assert not watch.look(look * GROWTH_BYTES, look, {FD: None}, {FD: Sample(look * MB, False, True)})
    watch.forget(FD)
    assert not watch.look(9 * GROWTH_BYTES, 9.0, {FD: None}, {FD: Sample(MB, False, True)})


@given(st.lists(st.tuples(st.integers(0, 30 * MB), st.integers(0, 90 * MB)), max_size=20))
def test_whoever_completes_a_message_and_reads_before_each_look_stays(steps: list[tuple[int, int]]) -> None:
    watch, did, received = Watch(), Did(), 0
    for sent, told in steps:
        did.messages += 1
        did.told_bytes += told
        received += sent
        assert watch.look(did.messages * GROWTH_BYTES, did.messages, {FD: did}, {FD: Sample(received, True, True)}) == []


def test_one_that_began_a_long_message_and_stops_is_ended_in_time_and_one_that_began_a_short_one_is_not() -> None:
    begun = [(Did(5), Sample(0, False, True)), *[(Did(5), Sample(20 * MB, False, True))] * 99]
    found = ends(begun, grows=False, seconds=LOOK_SECONDS)
    assert STALL_SECONDS < (found[0] - 1) * LOOK_SECONDS <= STALL_SECONDS + LOOK_SECONDS
    assert ends([(Did(5), Sample(0, False, True)), *[(Did(5), Sample(9_000, False, True))] * 99], grows=False, seconds=LOOK_SECONDS) == []


def test_growth_that_is_not_there_is_nobodys_fault() -> None:
    """A slow line: a message that takes its time, looked at every few seconds while nothing grows."""
    assert ends([(Did(5), Sample(number * 100_000, False, True)) for number in range(10)], grows=False, seconds=LOOK_SECONDS) == []


def test_many_who_begin_together_are_ended_before_their_sum_is_too_much() -> None:
    watch, many, each = Watch(), 300, MAX_BEGUN_BYTES // 250
    counts = {fd: Did(1) for fd in range(many)}
    watch.look(0, 0.0, counts, {fd: Sample(0, False, True) for fd in counts})
    assert watch.look(0, 1.0, counts, {fd: Sample(each * (fd < 240), False, True) for fd in counts}) == []
    ended = watch.look(0, 2.0, counts, {fd: Sample(each * (fd < 280), False, True) for fd in counts})
    assert {fd for fd, _ in ended} == set(range(280))


def test_the_minute_of_a_long_message_begins_with_it() -> None:
    """It waited for its turn for ten minutes, and then commits with a large environment over a slow line."""
    waiting = [(Did(1, heard_bytes=500), Sample(700 + 9 * 5 * look, False, True)) for look in range(120)]
    sending = [(Did(1, heard_bytes=500), Sample(700 + 9 * 600 + 500_000 * look, False, True)) for look in range(1, 11)]
    assert (
        ends([*waiting, *sending, (Did(2, heard_bytes=5_100_000), Sample(5_106_000, False, True))], grows=False, seconds=LOOK_SECONDS) == []
    )


def test_thousands_that_wait_and_ping_are_no_crowd_however_long() -> None:
    watch, counts = Watch(), {fd: Did(1, heard_bytes=500) for fd in range(2_000)}
    for hours in range(30):
        found = {fd: Sample(700 + 42 * 3_600 * hours, False, True) for fd in counts}
        assert watch.look(0, 3_600.0 * hours, counts, found) == []


def test_a_busy_submitter_on_a_unix_socket_stays() -> None:
    looks = [(Did(look, heard_bytes=look * 1_000), Sample(None, True, True)) for look in range(5_000)]
    assert ends(looks, grows=False, seconds=LOOK_SECONDS) == []


def test_what_was_begun_just_after_a_message_counts_as_begun() -> None:
    """The message and the beginning of the next one come between two looks."""
    looks = [(Did(1, heard_bytes=1_000), Sample(21 * MB, False, True))] * 20
    assert STALL_SECONDS < (ends(looks, grows=False, seconds=LOOK_SECONDS)[0] - 1) * LOOK_SECONDS <= STALL_SECONDS + LOOK_SECONDS


def test_a_day_of_pings_is_no_message() -> None:
    day = 86_400
    watch, did = Watch(), Did(1, heard_bytes=1_000)
    for seconds in range(0, day, 600):
        did.messages += seconds == 0 or seconds == 43_200
        assert watch.look(0, float(seconds), {FD: did}, {FD: Sample(1_000 + 9 * seconds, False, True)}) == []
