"""Which software made a result."""

import platform
from importlib.metadata import version

PACKAGES = ("spiketune", "torch", "spikingjelly", "ray", "optuna", "mlflow", "numpy", "pydantic")


def versions() -> dict[str, str]:
    """Versions of Python and of every package that decides a search's results."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
