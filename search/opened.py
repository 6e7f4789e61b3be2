"""A search as a Python object, for notebooks and scripts: `open_search`."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import ValidationError

from search.folder import SearchFolder, find_folder
from search.following import read
from search.records import TrialRecord
from search.results import best, is_over, pareto, rank
from search.stored import fetched_best, stored_folder
from spaces.schema import SearchSpec
from trainables.config import TrialConfig
from trainables.errors import CheckpointError, InputError
from trainables.files import BEST
from trainables.remote import StoredFolder

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from trainables.served import Network

State = Literal["running", "finished", "interrupted"]
_TOP = 10


@dataclass(frozen=True)
class FoundTrial:
    """A trial of a search.

    Attributes:
        number: its number.
        state: `running`, `paused`, `finished`, `stopped` or `failed`.
        params: what the search chose, under the YAML's names.
        metrics: of its last epoch.
        config: everything it depends on.
    """

    number: int
    state: str
    params: Mapping[str, Any]
    metrics: Mapping[str, float]
    config: TrialConfig = field(repr=False)
    _fetch: Callable[[], Path | None] = field(repr=False, compare=False)

    @property
    def checkpoint(self) -> Path | None:
        """Of its best epoch by validation accuracy; None where that is not kept.

        Raises:
            CheckpointError: it lies in a store that does not answer.
        """
        return self._fetch()


class Search:
    """What a search has found so far.

    It is read when opened and by `refresh`; a driver that runs the search is not disturbed.

    Args:
        folder: where it lies.

    Attributes:
        spec: what was searched.
    """

    def __init__(self, folder: SearchFolder) -> None:
        """Read the ledger."""
        self._folder = folder
        self.refresh()

    def refresh(self) -> Self:
        """Read the ledger again.

        Raises:
            InputError: the search is gone.
            LedgerError: its ledger is missing or damaged.
        """
        self._reading = read(self._folder)
        self._records = self._reading.records
        self._is_running = self._reading.is_driven  # when that was read
        self.spec: SearchSpec = self._reading.spec
        return self

    @property
    def name(self) -> str:
        """The search's name."""
        return self._folder.name

    @property
    def path(self) -> Path:
        """The search's folder."""
        return self._folder.path

    @property
    def is_running(self) -> bool:
        """Whether a driver runs it, as far as that can be seen from here."""
        return self._is_running

    @property
    def state(self) -> State:
        """`running`; `finished`: the budget or the space is used up; `interrupted`: neither."""
        if self._is_running:
            return "running"
        over = is_over(self.spec, self._records, self._reading.used_s)
        return "finished" if over else "interrupted"

    @property
    def trials(self) -> "pd.DataFrame":
        """A row a trial, by number: how it ended, metrics of its last epoch, parameters, times."""
        from search.frames import trials_frame

        return trials_frame(self.spec, self._records)

    @property
    def epochs(self) -> "pd.DataFrame":
        """A row an epoch of a trial: every metric."""
        from search.frames import epochs_frame

        return epochs_frame(self.spec, self._records)

    @property
    def best(self) -> FoundTrial | None:
        """The trial that is best by the first objective; None without any result."""
        record = best(self._records, self.spec.objectives)
        return None if record is None else self._found(record)

    @property
    def pareto(self) -> list[FoundTrial]:
        """Trials that no other one beats, best first objective first."""
        return [self._found(r) for r in pareto(self._records, self.spec.objectives)]

    @property
    def figures(self) -> "dict[str, go.Figure]":
        """The report's plots by name."""
        from search.figures import figures

        drawers = figures(self.spec, self._records)
        return {name: draw() for name, draw in drawers.items()}

    def figure(self, name: str) -> "go.Figure":
        """One of the report's plots: `front`, `curves`, `best`, `parallel`, ...

        Raises:
            InputError: there is none of that name; lists those there are.
        """
        from search.figures import figures

        drawers = figures(self.spec, self._records)
        if name not in drawers:
            listed = ", ".join(drawers) or "none, as no trial has a result yet"
            raise InputError(f"a figure of {self.name} must be one of {listed}, but got {name!r}")
        return drawers[name]()

    def config(self, trial: "int | FoundTrial") -> TrialConfig:
        """Everything a trial depends on.

        Raises:
            InputError: there is no such trial, or its configuration does not fit this version.
        """
        return self._config(self._record(trial))

    def load_network(
        self, trial: "int | FoundTrial | None" = None, device: str = "cpu"
    ) -> "Network":
        """A trial's network in evaluation mode with the weights of its best epoch.

        Args:
            trial: the best one unless given.
            device: as torch names it.

        Raises:
            InputError: there is no such trial.
            CheckpointError: its checkpoint is not there, or damaged.
        """
        from trainables.served import load_network

        if trial is None:
            trial = self.best
            if trial is None:
                raise InputError(f"no trial of {self.name} has a result yet")
        record = self._record(trial)
        path = self._checkpoint(record)
        if path is None:
            raise CheckpointError(
                f"{self._place(record)}: no such checkpoint; trial {record.number} is "
                f"{record.state}, and only finished trials and the Pareto set keep theirs: "
                f"`spiketune train --from {self.name}:{record.number}{self._folder.runs_option}` "
                "trains it again"
            )
        return load_network(path, device)

    def __repr__(self) -> str:
        """Name, state and how far it is."""
        return f"<Search {self.name!r}: {self.state}, {len(self._records)} trials>"

    def _repr_html_(self) -> str:
        """A line on what to pick, and the leaderboard."""
        from search.report_data import plain_headline

        objectives = self.spec.objectives
        text = plain_headline(self._records, objectives)
        ranked = [record.number for record in rank(self._records, objectives)[:_TOP]]
        columns = ["state", "epochs", *(o.metric for o in objectives), *self.spec.space]
        table = self.trials.loc[ranked, columns]
        counted = f"{self.state}, {len(self._records)} trials"
        return f"<p><b>{escape(self.name)}</b> ({counted}). {escape(text)}</p>" + table.to_html(
            na_rep="–", float_format="{:.6g}".format
        )

    def _record(self, trial: "int | FoundTrial") -> TrialRecord:
        number = trial.number if isinstance(trial, FoundTrial) else trial
        found = next((record for record in self._records if record.number == number), None)
        if found is None:
            have = f"0 to {len(self._records) - 1}" if self._records else "none"
            raise InputError(f"{self.name} must have trial {number}, but it has {have}")
        return found

    def _config(self, record: TrialRecord) -> TrialConfig:
        if not record.config:
            raise InputError(
                f"trial {record.number} of {self.name} has no configuration: it is "
                f"{record.state} ({record.reason})"
            )
        try:
            return TrialConfig.model_validate(record.config)
        except ValidationError as error:
            raise InputError(
                f"the configuration of trial {record.number} of {self.name} must fit this version "
                f"of spiketune, but: {error}"
            ) from error

    def _checkpoint(self, record: TrialRecord) -> Path | None:
        store = self._store
        if store is not None:
            return fetched_best(store, self._folder, record.number)
        path = self._folder.trial(record.number) / BEST
        return path if path.is_file() else None

    def _place(self, record: TrialRecord) -> str:
        store = self._store
        folder = self._folder.trial(record.number) if store is None else store.below(record.name)
        return f"{folder}/{BEST}"

    @property
    def _store(self) -> StoredFolder | None:
        return stored_folder(self.spec, self.name, self._reading.search_id)

    def _found(self, record: TrialRecord) -> FoundTrial:
        return FoundTrial(
            number=record.number,
            state=record.state,
            params=dict(record.params),
            metrics=dict(record.last),
            config=self._config(record),
            _fetch=partial(self._checkpoint, record),
        )


def named_folder(search: str | Path, runs: str | Path | None = None) -> SearchFolder:
    """A search's folder; arguments as of `open_search`.

    Raises:
        InputError: it is no name or path of a search, or a path with `runs`.
    """
    if runs is not None and os.sep in str(search):
        raise InputError(f"runs must not be given with the path of a search, but got {search!s}")
    return find_folder(search, Path(runs or os.environ.get("SPIKETUNE_RUNS") or "runs"))
