"""What every test shares: quiet third parties, temporary Ray folders, real servers."""

import os

# Read at import by the libraries, so set before any test module is imported.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
