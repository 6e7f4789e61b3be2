"""The papers' golden results, which lie beside the project, and our configuration of a case."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from trainables.config import ModelConfig

SHARED = Path(__file__).parents[3] / "shared"


def golden_module() -> ModuleType | None:
    """The checker that comes with the golden results, or None where they are absent."""
    path = SHARED / "golden" / "golden.py"
    if not path.exists():
        return None
    spec = importlib.util.spec_from_file_location("golden", path)
    if spec is None or spec.loader is None:
        return None
    module = importlib.util.module_from_spec(spec)
    sys.modules["golden"] = module  # its dataclass looks itself up there
    spec.loader.exec_module(module)
    return module


def model_config(case: dict[str, Any]) -> ModelConfig:
    """Our configuration of a golden case."""
    keep = ("timesteps", "depth", "width", "heads", "image_size", "in_channels", "num_classes")
    attention = case["attention"].lower()
    return ModelConfig(
        **{name: case[name] for name in keep},
        block_size=case["block_size"],
        pooling=case["pooling_stat"],
        attention=attention,
        event_data=case["event_data"],
    )
