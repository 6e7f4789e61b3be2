"""Which software made a result."""

import logging
import platform
from collections.abc import Mapping
from importlib.metadata import version

from trainables.errors import InputError

logger = logging.getLogger(__name__)

# The first decide a trial's numbers, the next what is proposed, when trials run and the ledger.
NUMBERS = ("spiketune", "torch", "torchvision", "spikingjelly", "timm", "numpy")
DECISIONS = ("optuna", "ray")
RECORDED = ("mlflow", "pydantic")


def versions() -> dict[str, str]:
    """Versions of Python and of every package that decides a search's results."""
    names = (*NUMBERS, *DECISIONS, *RECORDED)
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def check_versions(recorded: Mapping[str, str], name: str, *, force: bool) -> None:
    """Refuse to mix results of different software in one search.

    Args:
        recorded: what the search ran with before.
        name: the search.
        force: only warn.

    Raises:
        InputError: a package that decides numbers or proposals has another version now.
    """
    now = versions()
    changed = [
        f"{package} {recorded[package]} then, {now[package]} now"
        for package in (*NUMBERS, *DECISIONS)
        if package in recorded and recorded[package] != now[package]
    ]
    if changed and not force:
        raise InputError(
            f"a search must go on with the versions it was started with, but {name!r} has "
            f"{'; '.join(changed)}; install those, or accept mixed results by --force"
        )
    if changed:
        logger.warning("%s goes on under other versions: %s", name, "; ".join(changed))
