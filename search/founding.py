"""Starts a search's ledger: it exists as a whole or not at all."""

import json
import os
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from optuna.storages._rdb import models
from optuna.study import StudyDirection
from sqlalchemy import insert
from sqlalchemy.engine import Engine
from sqlalchemy.exc import IntegrityError

from search import database
from search.database import LEASES, LedgerError
from search.loading import study_place
from search.results import ObjectiveLike
from search.seal import sealed
from trainables.errors import InputError

DIRECTIONS = {"max": StudyDirection.MAXIMIZE, "min": StudyDirection.MINIMIZE}
_METRIC_NAMES = "study:metric_names"  # where Optuna keeps them


def found(
    url: str, name: str, objectives: Sequence[ObjectiveLike], facts: Mapping[str, Any]
) -> None:
    """Write a new search into a database.

    A file is made under another name and linked into place when it is whole.

    Raises:
        InputError: a search of that name is there already.
        LedgerError: the database cannot be written.
    """
    path = database.sqlite_path(url)
    if path is None:
        _write(url, name, objectives, facts)
        return
    _sweep(path.parent, f".{path.name}.*.new*")
    partial = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        _write(f"sqlite:///{partial}", name, objectives, facts)
        _settle(partial)
        Path(f"{path}{database.CHANGES_SUFFIX}").unlink(missing_ok=True)
        os.link(partial, path)
    except FileExistsError as error:
        raise _taken(name) from error
    finally:
        _sweep(path.parent, f"{partial.name}*")
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _settle(path: Path) -> None:
    """Bring what lies in the write-ahead log into the file; a full disk keeps it from that.

    Raises:
        LedgerError: the file would be without its newest pages.
    """
    try:
        connection = sqlite3.connect(path)
        try:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise database.unusable(f"sqlite:///{path}", error) from error
    database.check_file(path)


def _sweep(folder: Path, pattern: str) -> None:
    for left in folder.glob(pattern):
        with suppress(OSError):
            left.unlink()


def _write(
    url: str, name: str, objectives: Sequence[ObjectiveLike], facts: Mapping[str, Any]
) -> None:
    storage = database.open_storage(url, create=True)
    try:
        _insert(storage.engine, name, objectives, facts)
    except LedgerError as error:
        if isinstance(error.__cause__, IntegrityError):
            raise _taken(name) from error
        raise
    finally:
        database.close_storage(storage)


def _insert(
    engine: Engine, name: str, objectives: Sequence[ObjectiveLike], facts: Mapping[str, Any]
) -> None:
    with database.writing(engine) as session:
        directions = [
            models.StudyDirectionModel(objective=index, direction=DIRECTIONS[o.mode])
            for index, o in enumerate(objectives)
        ]
        study = models.StudyModel(study_name=name, directions=directions)
        session.add(study)
        session.flush()
        for key, value in facts.items():
            text = json.dumps(sealed(study_place(name, key), value))
            session.add(
                models.StudyUserAttributeModel(study_id=study.study_id, key=key, value_json=text)
            )
        names = json.dumps([o.metric for o in objectives])
        session.add(
            models.StudySystemAttributeModel(
                study_id=study.study_id, key=_METRIC_NAMES, value_json=names
            )
        )
        nobody = {"token": "", "host": "", "pid": 0, "process": "", "since_s": 0.0}
        count = {"beat": 0, "beat_s": 0.0, "changes": 0}
        session.execute(insert(LEASES).values(study_id=study.study_id, **nobody, **count))


def _taken(name: str) -> InputError:
    return InputError(f"a search named {name!r} exists already: choose another --name")
