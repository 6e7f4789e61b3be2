"""The card of a promoted network: what it is worth, what it costs, how it is loaded and made."""

import json
from collections.abc import Mapping
from typing import Any

from trainables.config import TrialConfig
from trainables.data_cards import CARDS
from trainables.energy import E_AC_PJ, E_MAC_PJ

CONFIGURATION = "## Configuration"
_PJ_PER_MJ = 1e9


def card(
    told: Mapping[str, Any], config: TrialConfig, *, uri: str, command: str, versions: str
) -> str:
    """Markdown that a model version is described by.

    Args:
        told: what was measured on the test split, as `promote` records it.
        config: the network, its data and its training.
        uri: MLflow's address of the model.
        command: what makes it again.
        versions: of the packages that made it.
    """
    data, model = CARDS[config.data.name], config.model
    metrics = told["metrics"]
    lines = [
        f"# {told['search']}, trial {told['trial']}",
        "",
        f"{model.backbone} with {model.attention} attention for {data.title}: {model.timesteps} "
        f"timesteps, depth {model.depth}, width {model.width}, {told['params']} parameters. "
        f"Trained for {told['epochs']} epochs with seed {config.train.seed}; the test split was "
        f"looked at once, after the last one.",
        "",
        "| | test split |",
        "|---|---|",
        f"| samples | {told['samples']} |",
        f"| top-1 accuracy | {metrics['test_top1']!r} % |",
        f"| top-5 accuracy | {metrics['test_top5']!r} % |",
        f"| cross-entropy | {metrics['test_loss']!r} |",
        f"| energy of one inference | {metrics['test_energy_mj']!r} mJ |",
        f"| accumulates (ACs) of one inference | {metrics['test_sops_g'] * 1e6:,.1f} k |",
        f"| multiply-accumulates (MACs) of one inference | {metrics['test_macs_g'] * 1e6:,.1f} k |",
        f"| firing rate | {metrics['test_firing_rate']!r} |",
        "",
        f"Energy: {told['convention']}, {E_MAC_PJ} pJ a MAC, {E_AC_PJ} pJ an AC; memory is not "
        "counted.",
        "",
        *_groups(told),
        "",
        "## Use",
        "",
        "Weights and configuration only, safetensors: nothing is unpickled. It needs spiketune.",
        "",
        "```python",
        "import mlflow",
        f'network = mlflow.pyfunc.load_model("{uri}")',
        f"logits = network.predict(inputs)  # float32 {told['shape']}, normalised",
        "```",
        "",
        _normalisation(config),
        "",
        "## Made by",
        "",
        "```",
        command,
        "```",
        "",
        f"{versions}.",
        "",
        CONFIGURATION,
        "",
        f"`{config.config_hash()}`",
        "",
        "```json",
        json.dumps(config.model_dump(mode="json", exclude={"data": {"root"}}), indent=2),
        "```",
    ]
    return "\n".join(lines) + "\n"


def _groups(told: Mapping[str, Any]) -> list[str]:
    """Rows of layer groups; firing rates are means of a group's neuron layers."""
    ops: dict[str, list[float]] = {}
    rates: dict[str, list[float]] = {}
    for name, rate in told["layer_rates"].items():
        rates.setdefault(group(name), []).append(rate)
    for name, num in told["layer_ops"].items():
        mj = told["layer_mj"][name]
        # Which of the two a layer's operations are shows in their price.
        is_mac = mj * _PJ_PER_MJ > num * (E_MAC_PJ + E_AC_PJ) / 2
        row = ops.setdefault(group(name), [0.0, 0.0, 0.0])
        row[0 if is_mac else 1] += num
        row[2] += mj
    lines = ["| layers | firing rate | MACs | ACs | energy |", "|---|---|---|---|---|"]
    for name in dict.fromkeys([*rates, *ops]):
        fires = rates.get(name)
        rate_text = f"{sum(fires) / len(fires):.4f}" if fires else "-"
        macs, acs, mj = ops.get(name, [0.0, 0.0, 0.0])
        lines.append(
            f"| {name} | {rate_text} | {macs / 1e3:,.1f} k | {acs / 1e3:,.1f} k | "
            f"{mj * 1e3:.4g} µJ |"
        )
    return lines


def group(layer: str) -> str:
    """The part of the network that a layer belongs to: `patch_embed`, `block.0.attn`, `head`."""
    words = layer.split(".")
    if words[0] == "block":
        return ".".join(words[:3])
    return "head" if words[0].startswith("head") else words[0]


def _normalisation(config: TrialConfig) -> str:
    data = CARDS[config.data.name]
    if not data.mean:
        return "Inputs are as the data set's loader gives them."
    return f"Pixels in [0, 1] are normalised with mean {data.mean} and deviation {data.std}."
