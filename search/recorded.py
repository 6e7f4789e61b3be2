"""Opens a search that was started before: finds its ledger, checks it, mends what can be mended."""

import logging
import os
import time
from collections.abc import Mapping
from typing import Any

import yaml
from pydantic import ValidationError

from search.database import LedgerError
from search.folder import SearchFolder, all_searches
from search.study import Ledger
from search.tracking_uri import environment_value, redact
from search.versions import check_versions
from spaces.schema import SearchSpec
from trainables.config import flatten
from trainables.errors import InputError
from trainables.files import write_atomically

logger = logging.getLogger(__name__)

LEDGER_VARIABLE = "SPIKETUNE_LEDGER_URL"
EMBEDDED = "study.db"
_SHOWN = 5


def ledger_place(spec: SearchSpec) -> str:
    """Where a new search's ledger goes: `study.db`, an address, or `env:NAME` of one."""
    if spec.storage.ledger is not None:
        return spec.storage.ledger
    return f"env:{LEDGER_VARIABLE}" if os.environ.get(LEDGER_VARIABLE) else EMBEDDED


def ledger_url(folder: SearchFolder, place: str) -> str:
    """The address of a ledger.

    Raises:
        InputError: the environment variable is not set.
    """
    if place == EMBEDDED:
        return f"sqlite:///{folder.database}"
    return environment_value("storage.ledger", place, "the ledger's address")


def create_ledger(spec: SearchSpec, folder: SearchFolder, text: str) -> Ledger:
    """Start a search's ledger and folder; the ledger is first and has what the files say.

    Args:
        spec: the search.
        folder: where it is to lie.
        text: the YAML as given; what looks like a secret in it is not kept.

    Raises:
        InputError: the name is taken.
        LedgerError: the database cannot be written.
        OSError: the disk is full or read-only.
    """
    folder.create()
    place = ledger_place(spec)
    facts = {
        "spec": spec.resolved(),
        "text": redact(text),
        "seed": spec.sampler.seed,
        "created_s": time.time(),
    }
    ledger = Ledger.create(ledger_url(folder, place), folder.name, spec.objectives, facts)
    _write_files(folder, ledger, place)
    return ledger


def open_ledger(
    folder: SearchFolder, *, write: bool = False, force: bool = False
) -> tuple[SearchSpec, Ledger]:
    """Open a search's ledger; to write, take its lease and mend its files.

    Args:
        folder: where it lies.
        write: to continue the search.
        force: continue under other versions, and without what a damaged log has lost.

    Raises:
        InputError: there is no such search, another driver runs it, or versions differ.
        LedgerError: the ledger is missing or damaged; names the file.
    """
    place = _recorded_place(folder)
    ledger = Ledger.open(ledger_url(folder, place), folder.name, lossy=force)
    try:
        missing = {"spec", "text", "seed", "created_s"} - ledger.facts.keys()
        if missing:
            raise LedgerError(
                f"{redact(ledger_url(folder, place))}: the ledger is damaged: its {min(missing)!r} "
                "is missing; restore it from a copy (it is never overwritten)"
            )
        spec = recorded_spec(ledger.facts, folder)
        if write:
            take_ledger(folder, ledger, force=force)
    except BaseException:
        ledger.close()
        raise
    return spec, ledger


def take_ledger(folder: SearchFolder, ledger: Ledger, *, force: bool = False) -> None:
    """Take the lease of a ledger that was opened to read, and mend the search's files.

    Args:
        folder: where the search lies.
        ledger: opened, and so read and verified.
        force: continue under other versions.

    Raises:
        InputError: another driver runs the search, or versions differ.
        LedgerError: the ledger was damaged meanwhile, or belongs to another search.
    """
    manifest = _own_manifest(folder, ledger)
    sessions = [manifest["versions"]] if manifest else [s.versions for s in ledger.sessions]
    if sessions:  # none when the driver was lost before it began
        check_versions(sessions[-1], folder.name, force=force)
    ledger.take()
    _mend(folder, ledger)
    _write_files(folder, ledger, _recorded_place(folder))


def recorded_spec(facts: Mapping[str, Any], folder: SearchFolder) -> SearchSpec:
    """The specification a search was started with.

    Raises:
        InputError: it no longer fits this version or its recipes.
    """
    try:
        return SearchSpec.from_resolved(facts["spec"])
    except (KeyError, ValidationError, ValueError) as error:
        raise InputError(
            f"{folder.path}: the specification that the ledger holds must fit this version of "
            f"spiketune, but: {error}"
        ) from error


def differences(old: SearchSpec, new: SearchSpec) -> list[str]:
    """Where two specifications differ, as `key: old, not new`."""
    before, after = flatten(old.resolved()), flatten(new.resolved())
    return [
        f"{key}: {before.get(key)!r}, not {after.get(key)!r}"
        for key in sorted(before.keys() | after.keys())
        # Those were found when the search started.
        if before.get(key) != after.get(key) and key != "sampler.warm_points"
    ]


def check_same(old: SearchSpec, new: SearchSpec, name: str) -> None:
    """Refuse to continue a search under another specification.

    Raises:
        InputError: names what differs.
    """
    found = differences(old, new)
    if found:
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise InputError(
            f"`--resume` continues a search as it was started, but {name!r} was started with "
            f"{'; '.join(found[:_SHOWN])}{more}; choose another --name"
        )


def _recorded_place(folder: SearchFolder) -> str:
    manifest = folder.manifest()
    if folder.database.exists():
        return EMBEDDED
    if manifest is not None and isinstance(manifest.get("ledger"), str):
        return str(manifest["ledger"])
    try:
        tree = yaml.safe_load((folder.path / "resolved.yaml").read_text())
        place = tree["storage"]["ledger"]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        place = None
    if place:
        return str(place)
    if os.environ.get(LEDGER_VARIABLE):
        return f"env:{LEDGER_VARIABLE}"
    if folder.manifest_path.exists():
        raise LedgerError(f"{folder.database}: no such ledger")
    known = [found.name for found in all_searches(folder.runs)]
    listed = f"; searches there: {', '.join(known[-8:])}" if known else ""
    raise InputError(f"{folder.runs}: no search named {folder.name!r}{listed}")


def _own_manifest(folder: SearchFolder, ledger: Ledger) -> dict[str, Any] | None:
    """The manifest; None where it must be written again.

    Raises:
        LedgerError: it belongs to another search than the ledger.
    """
    manifest = folder.manifest()
    if manifest is None or manifest.get("search_id") == ledger.search_id:
        return manifest
    resolved = folder.path / "resolved.yaml"
    if resolved.is_file() and resolved.read_bytes() == folder.texts(ledger.facts)[resolved]:
        return None
    raise LedgerError(
        f"{folder.manifest_path}: it must belong to the ledger's search {ledger.search_id}, but "
        f"names {str(manifest.get('search_id'))[:40]!r}; put the folder's own files back"
    )


def _mend(folder: SearchFolder, ledger: Ledger) -> None:
    """Set aside files that no longer say what the ledger says; they are written anew."""
    for path, data in folder.texts(ledger.facts).items():
        if not path.is_file():
            logger.warning("%s was missing; it is written again from the ledger", path)
        elif path.read_bytes() != data:
            path.replace(path.with_name(f"{path.name}.altered"))
            logger.warning("%s was altered; it is written again from the ledger", path)
    if folder.manifest() is None:
        logger.warning("%s was unreadable; it is written again", folder.manifest_path)


def _write_files(folder: SearchFolder, ledger: Ledger, place: str) -> None:
    (folder.path / "trials").mkdir(parents=True, exist_ok=True)
    for path, data in folder.texts(ledger.facts).items():
        if not path.is_file():
            write_atomically(path, data)
    folder.write_manifest(
        {
            "search_id": ledger.search_id,
            "ledger": place if place == EMBEDDED or place.startswith("env:") else redact(place),
            "started_s": ledger.facts["created_s"],
            "seed": ledger.facts["seed"],
        }
    )
