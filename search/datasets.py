"""What MLflow is told of the data: a name, a fingerprint and a context for each split."""

import json
from typing import Any

from trainables.config import TrialConfig
from trainables.data_cards import CARDS

CONTEXTS = {"train": "training", "val": "validation", "test": "test"}


def datasets(config: TrialConfig, *parts: str) -> list[dict[str, str]]:
    """Describe splits as MLflow's data set entries, with a `context` each.

    Args:
        config: the trial; its data must be there.
        parts: `train`, `val`, `test`.

    Raises:
        InputError: the data are missing, damaged or do not fit the network.
    """
    from trainables.data import load_data
    from trainables.data.fingerprint import fingerprint

    splits, card = load_data(config.data, config.model), CARDS[config.data.name]
    found = []
    for part in parts:
        split = getattr(splits, part)
        shape = [-1, *split.sample_shape]
        found.append(
            {
                "name": f"{config.data.name}-{part}",
                "digest": fingerprint(split),
                "source_type": "spiketune",
                "source": json.dumps(
                    {"uri": card.source, **config.data.model_dump(mode="json", exclude={"root"})}
                ),
                "schema": json.dumps(
                    {
                        "mlflow_tensorspec": {
                            "features": json.dumps([_tensor("float32", shape)]),
                            "targets": json.dumps([_tensor("int64", [-1])]),
                        }
                    }
                ),
                "profile": json.dumps(
                    {"num_samples": len(split), "num_classes": config.model.num_classes}
                ),
                "context": CONTEXTS[part],
            }
        )
    return found


def _tensor(dtype: str, shape: list[int]) -> dict[str, Any]:
    return {"type": "tensor", "tensor-spec": {"dtype": dtype, "shape": shape}}
