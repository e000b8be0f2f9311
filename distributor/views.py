"""Who needs to be told what others changed on a shared tree, and what: the part of the scheduler that begins where views do.

While no agent and no submitter has a network file system, nothing of this happens. Knows the journal, bursts, and how much one
submitter may tell. Does not know who may speak of which job, nor when: the scheduler does.
"""

from __future__ import annotations

from typing import Final

from dwrap.distributor.bursts import Bursts
from dwrap.distributor.job import Job
from dwrap.distributor.journal import Journal
from dwrap.distributor.placement import Agent
from dwrap.distributor.roster import Roster
from dwrap.protocol.manifest import Entry

MAX_TOLD: Final = 4_096  # changes that one submitter may tell for one job


class Views:
    """What has changed on the shared trees, and which jobs it matters to."""

    def __init__(self, roster: Roster) -> None:
        self.journal = Journal()
        self._roster = roster
        self._bursts = Bursts()

    def see(self, job: Job, now: float) -> None:
        """A job has views as soon as its submitter or any agent has a network file system."""
        if not job.views and (job.spec.views or self._roster.with_views):
            job.views = True
            job.burst = self._bursts.begin(job.whose_build, now)

    def settled(self, job: Job, now: float) -> None:
        """The job has come to its end."""
        if job.burst:
            self._bursts.end(job.whose_build, now)

    def wrote(self, agent: Agent, entries: list[Entry]) -> None:
        """An agent tells what its jobs changed."""
        self.journal.add(agent.peer, entries)

    def changed(self, job: Job, entries: list[Entry]) -> bool:
        """A submitter tells what changed on its side. False when it has told too much for this job."""
        job.told += len(entries)
        if job.told > MAX_TOLD:
            return False
        self.journal.add(None, [entry.as_seen() for entry in entries])  # a user's word must not be able to close an agent to others
        return True

    def due(self, job: Job, agent: Agent) -> tuple[bytes, bool]:
        """The entries that an agent is given with a job, and whether it is behind."""
        if not job.views:
            return b"", False
        agent.mark, entries, is_behind = self.journal.since(agent.mark, agent.peer)
        return entries, is_behind

    def nobody_can_tell(self) -> None:
        """What some host has changed it cannot tell any more: all are behind."""
        self.journal.forget_all_marks()
