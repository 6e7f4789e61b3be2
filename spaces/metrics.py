"""What a trial reports each epoch, and which way each metric is better."""

from typing import Literal, get_args

Mode = Literal["max", "min"]
Metric = Literal[
    "train_loss",
    "val_loss",
    "val_top1",
    "val_top5",
    "energy_mj",
    "sops_g",
    "firing_rate",
    "params_m",
    "images_per_s",
    "peak_memory_mib",
    "epoch_s",
]
METRICS: tuple[str, ...] = get_args(Metric)

# Known before training: these make a constraint hard, like configuration keys do.
DERIVED = ("params_m", "macs_g")

# firing_rate is missing: neither silence nor saturation is good.
BETTER: dict[str, Mode] = {
    "train_loss": "min",
    "val_loss": "min",
    "val_top1": "max",
    "val_top5": "max",
    "energy_mj": "min",
    "sops_g": "min",
    "params_m": "min",
    "images_per_s": "max",
    "peak_memory_mib": "min",
    "epoch_s": "min",
}
