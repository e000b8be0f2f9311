"""The distributor: takes jobs from submitters, picks agents for them, and stands between the two until a job has settled."""

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as _installed_version


def version() -> str:
    """The version of the installed dwrap; `unknown` when it is run without having been installed."""
    try:
        return _installed_version("dwrap")
    except PackageNotFoundError:
        return "unknown"
