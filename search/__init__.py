"""Deciding what to try, running it, remembering it, showing it."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from search.opened import Search

__all__ = ["open_search"]


def open_search(search: str | Path, runs: str | Path | None = None) -> "Search":
    """Open a finished or running search to look at; nothing is written, nobody is kept waiting.

    Args:
        search: its name, or the path of its folder.
        runs: folder that holds the searches, for a name: `SPIKETUNE_RUNS` or `runs` unless given.

    Raises:
        InputError: there is no such search.
        LedgerError: its ledger is missing or damaged.
    """
    # A search takes seconds to import, this package should not.
    from search.opened import Search, named_folder

    return Search(named_folder(search, runs))
