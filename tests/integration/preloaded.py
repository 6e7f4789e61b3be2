"""Imported once by the process that tests fork others from: what takes them seconds to import."""

import importlib

from cluster.connect import prepare_environment

prepare_environment()  # before Ray is imported, as our command does
for _name in (
    "alembic.context",
    "fake_trial",
    "mlflow.store.tracking.sqlalchemy_store",
    "ray.tune",
    "search.adapters",
    "search.cli",
    "search.propose",
    "search.recorded",
    "search.runner",
    "search.tracking_store",
    "sklearn.datasets",
    "spikingjelly.datasets.utils",
    "trainables.data.prepare",
    "trainables.trial",
):
    importlib.import_module(_name)
