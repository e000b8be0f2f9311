"""The one error that dwrapctl shows to people. Knows nothing else."""

from __future__ import annotations


class ControlError(Exception):
    """Something a person has to do something about. The text reads `what happened: cause; remedy`, on one line."""
