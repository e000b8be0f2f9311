"""The table of connections, where descriptors are used again and messages of different peers overtake each other."""

from __future__ import annotations

from dwrap.distributor.connections import Connections
from dwrap.distributor.identity import Who
from dwrap.protocol.peer import Identity

NOBODY = Who(Identity(None, why="a test"))
FD = 7


def rid(number: int) -> bytes:
    """A routing id as ZeroMQ gives them out."""
    return b"\0" + (number % (1 << 32)).to_bytes(4)


def test_the_last_word_of_an_ended_connection_does_not_displace_the_next_one() -> None:
    links = Connections()
    links.opened(FD)
    links.bind(FD, rid(1), NOBODY)
    links.opened(FD)  # the first has ended, and its descriptor was used again
    second, _ = links.bind(FD, rid(2), NOBODY)
    assert links.is_overtaken(FD, rid(1))
    assert links.by_rid[rid(2)] is second


def test_a_last_word_that_comes_first_gives_way() -> None:
    links = Connections()
    links.opened(FD)
    straggler, _ = links.bind(FD, rid(1), NOBODY)
    assert not links.is_overtaken(FD, rid(2))
    _, mistaken = links.bind(FD, rid(2), NOBODY)
    assert mistaken is straggler


def test_the_numbers_wrap() -> None:
    links = Connections()
    links.opened(FD)
    links.bind(FD, rid(-1), NOBODY)
    assert not links.is_overtaken(FD, rid(0))
    links.bind(FD, rid(0), NOBODY)
    assert links.is_overtaken(FD, rid(-1))


def test_a_chosen_routing_id_never_displaces_a_connection() -> None:
    links = Connections()
    links.opened(FD)
    links.bind(FD, rid(5), NOBODY)
    assert links.is_overtaken(FD, b"chosen")
