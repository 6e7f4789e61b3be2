"""What a trial is: the one definition that YAML, model, checkpoint, ledger and MLflow share.

Importable without torch. Every model is strict (no silent conversion) and frozen.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from trainables.data_cards import CARDS

Attention = Literal["statten", "sdt", "ssa"]
Neuron = Literal["lif", "plif"]
Backbone = Literal["sdt", "spikformer"]
DatasetName = Literal[
    "digits",
    "digits_dvs",
    "cifar10",
    "cifar100",
    "seq_cifar10",
    "seq_cifar100",
    "imagenet",
    "cifar10_dvs",
    "ncaltech101",
    "dvs_gesture",
    "nmnist",
]
EventAugment = Literal["none", "snda", "cutout", "trivial"]
Optimizer = Literal["adamw", "lamb"]
Loss = Literal["ce", "tet"]
Precision = Literal["float32", "bf16", "fp16", "float64"]
Device = Literal["auto", "cpu", "cuda"]
NeuronBackend = Literal["auto", "torch", "cpp", "cuda"]

# Which attention modes each backbone has.
ATTENTION_OF: Mapping[Backbone, tuple[Attention, ...]] = {
    "sdt": ("statten", "sdt", "ssa"),
    "spikformer": ("statten", "ssa"),
}

# timm's RandAugment notation: magnitude, layers, probability, noise, bound, increasing severity.
RANDAUGMENT = r"^(none|rand(-(m|n|mmax|inc)[0-9]+|-(p|mstd)[0-9]+(\.[0-9]+)?)+)$"

_PICTURE_SETTINGS = ("crop_scale", "randaugment", "crop_pct", "eval_size")

PositiveInt = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0, allow_inf_nan=False)]
Rate = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]


class StrictModel(BaseModel):
    """A frozen pydantic model that refuses unknown keys and converts nothing but int to float."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


class ModelConfig(StrictModel):
    """Architecture of one STAtten-SDT network, or of a Spikformer with the same attention.

    `timesteps` is how often each layer fires for a sample. `depth` is the number of blocks, `width`
    their channels, which `heads` share, `mlp_ratio` the hidden channels of their MLPs, in widths.
    `attention` is of space and time in blocks of `block_size` timesteps (statten), linear in space
    (sdt), or softmax-free in space (ssa). `pooling` says for each of four stages of the embedding
    whether it halves the image. `drop_path` is the rate at which residual branches are skipped.

    Source: Lee et al., CVPR 2025 (arXiv 2409.19764); Yao et al., NeurIPS 2023 (arXiv 2307.01694);
    Zhou et al., ICLR 2023 (arXiv 2209.15425).
    """

    timesteps: PositiveInt = 4
    depth: PositiveInt = 2
    width: PositiveInt = 256
    heads: PositiveInt = 8
    block_size: PositiveInt = 2
    attention: Attention = "statten"
    mlp_ratio: PositiveInt = 4
    pooling: Annotated[str, Field(pattern="^[01]{4}$")] = "0011"
    image_size: PositiveInt = 32
    in_channels: PositiveInt = 3
    num_classes: Annotated[int, Field(ge=2)] = 10
    event_data: bool = False
    neuron: Neuron = "lif"
    backbone: Backbone = "sdt"
    drop_path: Fraction = 0.0

    @model_validator(mode="after")
    def _shapes_fit(self) -> Self:
        problems = model_problems(self.model_dump())
        if problems:
            raise ValueError("; ".join(problems))
        return self


def model_problems(model: Mapping[str, Any]) -> list[str]:
    """Name each rule between ModelConfig fields that a mapping of its fields breaks.

    Args:
        model: all ModelConfig fields by name, each of the right type.

    Returns:
        One sentence a broken rule; empty when the network can be built.
    """
    problems = []
    width, heads = model["width"], model["heads"]
    if width % 8:
        problems.append(
            f"`width % 8 == 0` must hold (stage 0 has width/8 channels), but got width={width}"
        )
    if width % heads:
        problems.append(f"`width % heads == 0` must hold, but got width={width}, heads={heads}")
    if model["attention"] not in ATTENTION_OF[model["backbone"]]:
        valid = ", ".join(f"{name}: {' or '.join(modes)}" for name, modes in ATTENTION_OF.items())
        problems.append(
            f"attention must be one its backbone has ({valid}), "
            f"but got backbone={model['backbone']}, attention={model['attention']}"
        )
    if model["attention"] == "statten" and model["timesteps"] % model["block_size"]:
        problems.append(
            "`timesteps % block_size == 0` must hold for attention=statten, "
            f"but got timesteps={model['timesteps']}, block_size={model['block_size']}"
        )
    return problems


def grid_size(model: ModelConfig) -> int:
    """Height of the token grid: image_size halved (rounding up) by each pooling stage."""
    size = model.image_size
    for stage in model.pooling:
        if stage == "1":
            size = (size + 1) // 2
    return size


class DataConfig(StrictModel):
    """Which data a trial sees and how it is split.

    Augmentation is of training batches only. Images: a random crop of at least `crop_scale` of the
    area, mirrored with probability `hflip`, then `randaugment` (timm's notation, such as
    `rand-m9-n1-mstd0.4-inc1`). Event frames: `hflip`, then one list of `dvs_augment`. Both: shifted
    by up to `shift_px`. Evaluation images are resized to `eval_size / crop_pct`, then cut to
    `eval_size` (model.image_size unless given).

    `root` is where data sets that are not embedded lie; without it the environment's
    `SPIKETUNE_DATA` says so. `test_frac` is for sets that have no official test part.
    """

    name: DatasetName = "digits"
    root: str | None = None
    val_frac: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2
    test_frac: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2
    split_seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    shift_px: Annotated[int, Field(ge=0, le=8)] = 0
    hflip: Share = 0.0
    crop_scale: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    randaugment: Annotated[str, Field(pattern=RANDAUGMENT)] = "none"
    dvs_augment: EventAugment = "none"
    crop_pct: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    eval_size: PositiveInt | None = None

    @model_validator(mode="after")
    def _settings_are_read(self) -> Self:
        for key in _ignored_settings(self.name):
            default = type(self).model_fields[key].default
            if getattr(self, key) != default:
                raise ValueError(
                    f"`{key}` must be {default} with name={self.name}, which does not use it, "
                    f"but got {getattr(self, key)}"
                )
        return self

    @model_validator(mode="after")
    def _fractions_fit(self) -> Self:
        if self.val_frac + self.test_frac >= 1.0:
            raise ValueError(
                "`val_frac + test_frac < 1` must hold, "
                f"but got val_frac={self.val_frac}, test_frac={self.test_frac}"
            )
        return self


def _ignored_settings(name: str) -> tuple[str, ...]:
    if CARDS[name].is_event:
        return _PICTURE_SETTINGS
    return (*_PICTURE_SETTINGS, "hflip", "dvs_augment") if name == "digits" else ("dvs_augment",)


class TrainConfig(StrictModel):
    """How a trial optimises: schedule, loss, mixing, precision, seed.

    Rates are per epoch as in the papers' recipes: linear warm-up from `warmup_lr` over
    `warmup_epochs`, cosine to `min_lr` over `epochs`, then `cooldown_epochs` at `min_lr`.

    `batch_size` is the samples of one optimisation step, whatever the number of processes that
    share them and of the parts (`accumulate`) they are worked through in.

    `mixup` and `cutmix` are the alpha of their Beta distribution, 0 for off; a batch is mixed with
    `mixup_prob`, by cutmix with `mixup_switch_prob` where both are on, and not at all from epoch
    `mixup_off_epoch` (counted from 0; 0: mixed to the end). `ema_decay` above 0 averages the
    weights; validation and the checkpoint's evaluation then use the average.

    With `start_timesteps` above 0 training begins with so many timesteps and doubles them, in
    stages of equal length, over the first `start_frac` of `epochs` (rounded down); all later epochs
    have `model.timesteps`.

    Half precisions are of convolutions and products: membrane potentials stay float32. float64 is
    for comparing implementations, in which one flipped spike shows.

    `neuron_backend` says how the network is computed, not what: `torch` is plain torch with
    SpikingJelly's neurons, `cpp` (for CPUs) and `cuda` (for NVIDIA's GPUs, with CuPy) are kernels
    that are compiled on the machine and need less memory; `auto` takes what the device has. They
    differ by rounding. Where a backend cannot run, torch does. `compile` compiles plain torch.
    `recompute` keeps only the blocks' inputs for the backward, which computes the blocks again:
    less memory, more time, the same result.
    """

    epochs: PositiveInt = 200
    batch_size: PositiveInt = 64
    eval_batch_size: PositiveInt = 256
    optimizer: Optimizer = "adamw"
    lr: Annotated[float, Field(gt=0.0)] = 3.0e-4
    min_lr: Rate = 1.0e-5
    warmup_lr: Rate = 1.0e-6
    warmup_epochs: Annotated[int, Field(ge=0)] = 20
    cooldown_epochs: Annotated[int, Field(ge=0)] = 10
    weight_decay: Rate = 0.06
    loss: Loss = "ce"
    label_smoothing: Fraction = 0.1
    tet_lambda: Share = 1.0e-3
    tet_mean: float = 1.0
    mixup: Rate = 0.0
    cutmix: Rate = 0.0
    mixup_prob: Share = 1.0
    mixup_switch_prob: Share = 0.5
    mixup_off_epoch: Annotated[int, Field(ge=0)] = 0
    ema_decay: Fraction = 0.0
    accumulate: PositiveInt = 1
    start_timesteps: Annotated[int, Field(ge=0)] = 0
    start_frac: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    precision: Precision = "float32"
    channels_last: bool = False
    compile: bool = False
    neuron_backend: NeuronBackend = "auto"
    recompute: bool = False
    sync_batchnorm: bool = True
    device: Device = "auto"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42

    @model_validator(mode="after")
    def _compiled_is_torch(self) -> Self:
        if self.compile and self.neuron_backend not in ("auto", "torch"):
            raise ValueError(
                "neuron_backend must be auto or torch with compile=true, "
                f"but got {self.neuron_backend}"
            )
        return self

    @property
    def total_epochs(self) -> int:
        """Epochs a full run takes, cool-down included."""
        return self.epochs + self.cooldown_epochs

    def mixes(self, epoch: int) -> bool:
        """Whether batches of an epoch (0 for the first) are mixed."""
        is_off = self.mixup_off_epoch > 0 and epoch >= self.mixup_off_epoch
        return not is_off and (self.mixup > 0.0 or self.cutmix > 0.0)


class EnergyConfig(StrictModel):
    """Energy convention: whether a static image's first convolution is counted once or T times."""

    first_conv_once: bool = False


class TrialConfig(StrictModel):
    """Everything one trial depends on.

    Raises:
        pydantic.ValidationError: a field has the wrong type or range, or fields do not fit.
    """

    recipe: str = "digits"
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    energy: EnergyConfig = EnergyConfig()

    @model_validator(mode="after")
    def _sections_fit(self) -> Self:
        problem = start_problem(self.train.start_timesteps, self.model.timesteps, self.data.name)
        if problem:
            raise ValueError(problem)
        return self

    def timesteps_at(self, epoch: int) -> int:
        """Timesteps of an epoch (0 for the first): those of its stage, at last the model's."""
        stages = _stages(self.train.start_timesteps, self.model.timesteps)
        early = int(self.train.start_frac * self.train.epochs)
        return stages[epoch * (len(stages) - 1) // early] if epoch < early else stages[-1]

    def config_hash(self) -> str:
        """First 16 hex digits of the SHA-256 of the canonical JSON: equal configs, equal hash."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def start_problem(start: int, timesteps: int, data: DatasetName) -> str:
    """Word why training cannot begin with so many timesteps; empty when it can, or need not."""
    if start > timesteps:
        return (
            "`train.start_timesteps <= model.timesteps` must hold, "
            f"but got train.start_timesteps={start}, model.timesteps={timesteps}"
        )
    stages, card = _stages(start, timesteps), CARDS[data]
    if card.is_sequence and len(stages) > 1:
        return (
            f"train.start_timesteps must be 0 or {timesteps} for data {data}, whose timesteps are "
            f"columns of the image, but got {start}"
        )
    if card.is_event and any(timesteps % steps for steps in stages):
        return (
            "train.start_timesteps, doubled some times, must be model.timesteps for data "
            f"{data}, whose frames are added up, but got {start} and {timesteps}"
        )
    return ""


def _stages(start: int, timesteps: int) -> list[int]:
    """Numbers of timesteps that training goes through: doubled until they are the model's."""
    stages = []
    while 0 < start < timesteps:
        stages.append(start)
        start *= 2
    return [*stages, timesteps]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested sections into dotted keys: `{"model": {"depth": 2}}` to `{"model.depth": 2}`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{name}."))
        else:
            flat[name] = value
    return flat


def with_overrides(tree: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Copy a nested configuration with dotted keys set.

    Raises:
        KeyError: a dotted key's section does not exist in `tree`.
    """
    copy: dict[str, Any] = {k: dict(v) if isinstance(v, Mapping) else v for k, v in tree.items()}
    for dotted, value in overrides.items():
        section, _, key = dotted.partition(".")
        if key:
            copy[section][key] = value
        else:
            copy[section] = value
    return copy
