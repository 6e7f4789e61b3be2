"""The ledger's database: SQLite in the search's folder, or PostgreSQL by an address."""

import logging
import os
import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import optuna
from optuna.storages import RDBStorage
from sqlalchemy import Column, Float, Integer, MetaData, String, Table, event
from sqlalchemy.engine import Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.orm import Session

from search.tracking_uri import redact
from trainables.errors import InputError, SpiketuneError

logger = logging.getLogger(__name__)

LOCK_TIMEOUT_S = 60.0
CHANGES_SUFFIX = "-changes"

_METADATA = MetaData()
# One row a search: who drives it, and how many transactions its ledger has seen.
LEASES = Table(
    "spiketune_leases",
    _METADATA,
    Column("study_id", Integer, primary_key=True, autoincrement=False),
    Column("token", String(64), nullable=False),
    Column("host", String(255), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("process", String(255), nullable=False),
    Column("since_s", Float(53), nullable=False),
    Column("beat", Integer, nullable=False),
    Column("beat_s", Float(53), nullable=False),
    Column("changes", Integer, nullable=False),
)


class LedgerError(SpiketuneError):
    """The ledger cannot be opened or does not say what it must."""


def sqlite_path(url: str) -> Path | None:
    """The file of a SQLite address; None for a server."""
    database = make_url(url).database
    return Path(database or "") if url.startswith("sqlite") else None


def shown(url: str) -> str:
    """A database's file or address as messages name it, without secrets."""
    return str(sqlite_path(url) or redact(url))


def driver_url(url: str) -> str:
    """The address with the driver that we install (`postgresql+psycopg`).

    Raises:
        InputError: it is no address of a database that can hold a ledger.
    """
    try:
        kind = make_url(url).get_backend_name()
    except (ArgumentError, ValueError):
        kind = ""
    if kind not in ("sqlite", "postgresql"):
        raise InputError(
            f"a ledger's address must begin with sqlite:/// or postgresql://, got {redact(url)!r}"
        )
    scheme, _, rest = url.partition("://")
    return f"postgresql+psycopg://{rest}" if scheme in ("postgresql", "postgres") else url


def open_storage(url: str, *, create: bool) -> RDBStorage:
    """Connect, making the tables where asked to.

    Raises:
        LedgerError: the database does not answer, or is of another Optuna version.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = driver_url(url)
    kwargs: dict[str, Any] = {"pool_pre_ping": True}
    if url.startswith("sqlite"):
        kwargs = {"connect_args": {"timeout": LOCK_TIMEOUT_S}}
    try:
        storage = RDBStorage(url, engine_kwargs=kwargs, skip_table_creation=not create)
        if url.startswith("sqlite"):
            event.listen(storage.engine, "connect", _pragmas)
            storage.engine.dispose()
        if create:
            _METADATA.create_all(storage.engine)
    except ImportError as error:
        raise InputError(
            "a ledger on PostgreSQL needs psycopg: install spiketune with its `postgres` extra"
        ) from error
    # Alembic, SQLAlchemy and Optuna each have errors of their own for a database that is not
    # what it must be.
    except (SQLAlchemyError, RuntimeError, ValueError, TypeError, AssertionError) as error:
        raise unusable(url, error) from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] in ("alembic", "optuna"):
            raise unusable(url, error) from error
        raise
    return storage


def close_storage(storage: RDBStorage) -> None:
    """Release every connection."""
    storage.remove_session()
    storage.engine.dispose()


def unusable(url: str, error: Exception) -> LedgerError:
    """The error for a database that cannot be read or written."""
    return LedgerError(f"{shown(url)}: the ledger cannot be used: {_first_line(error)}")


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """One consistent view of the database, whatever a driver writes meanwhile.

    Raises:
        LedgerError: it cannot be read.
    """
    try:
        with engine.connect() as connection:
            if engine.name == "sqlite":
                connection.exec_driver_sql("BEGIN")
            else:
                connection = connection.execution_options(isolation_level="REPEATABLE READ")
            yield connection
    except (SQLAlchemyError, sqlite3.Error) as error:
        raise unusable(engine.url.render_as_string(hide_password=True), error) from error


@contextmanager
def writing(engine: Engine) -> Iterator[Session]:
    """One transaction: all of it or nothing.

    Raises:
        LedgerError: it could not be written; what was there before is intact.
    """
    try:
        with Session(engine) as session, session.begin():
            yield session
    except (SQLAlchemyError, sqlite3.Error, optuna.exceptions.OptunaError) as error:
        where = shown(engine.url.render_as_string(hide_password=True))
        raise LedgerError(
            f"{where}: the ledger could not be written ({_first_line(error)}); what it held before "
            "is intact: mend that and resume the search"
        ) from error


def check_file(path: Path) -> None:
    """Verify a SQLite file's structure before anything writes to it.

    Raises:
        LedgerError: it is missing, cut short or damaged.
    """
    if not path.is_file():
        raise LedgerError(f"{path}: no such ledger")
    try:
        connection = sqlite3.connect(f"file:{quote(str(path))}?mode=rw", uri=True, timeout=60)
        try:
            problems = [row[0] for row in connection.execute("PRAGMA integrity_check(3)")]
            problems = [] if problems == ["ok"] else problems
            problems += [
                f"a row of {row[0]} belongs to nothing"
                for row in connection.execute("PRAGMA foreign_key_check").fetchmany(3)
            ]
            names = {row[0] for row in connection.execute("select name from sqlite_master")}
            missing = {"studies", "trials", LEASES.name} - names
            problems += [f"it has no table {name}" for name in sorted(missing)]
        finally:
            connection.close()
    except (sqlite3.Error, UnicodeDecodeError) as error:
        problems = [str(error)]
    if problems:
        raise LedgerError(
            f"{path}: the ledger is damaged: {_first_line('; '.join(map(str, problems)))}; "
            "restore the file from a copy (it is never overwritten)"
        )


def note_changes(path: Path | None, changes: int) -> None:
    """Remember beside a SQLite file how many transactions it has seen.

    Damage to the write-ahead log makes SQLite drop its newest transactions without a word; this
    number tells.
    """
    if path is None:
        return
    text = f"{changes:020d}"
    # Not flushed: a power cut leaves an older number, which only tells less.
    with suppress(OSError):
        stream = os.open(f"{path}{CHANGES_SUFFIX}", os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            os.pwrite(stream, f"{text} {zlib.crc32(text.encode()):08x}\n".encode(), 0)
        finally:
            os.close(stream)


def noted_changes(path: Path | None) -> int:
    """What `note_changes` wrote; 0 where that is missing or unreadable."""
    if path is None:
        return 0
    try:
        text, crc = Path(f"{path}{CHANGES_SUFFIX}").read_bytes().split()
        return int(text) if b"%08x" % zlib.crc32(text) == crc else 0
    except (OSError, ValueError):
        return 0


def _pragmas(connection: Any, _record: Any) -> None:
    # WAL lets `best` and `status` read while the driver writes; FULL survives a power cut.
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.close()


def _first_line(error: object) -> str:
    found = getattr(error, "orig", None) or getattr(error, "__cause__", None) or error
    return redact(str(found).strip().partition("\n")[0])
