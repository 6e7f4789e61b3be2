"""A commented search space to start from, for each data set."""

import itertools
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from spaces.json_schema import SCHEMA_PATH
from spaces.reading import recipe, recipe_names
from trainables.config import ATTENTION_OF, TrialConfig
from trainables.cost import total_macs
from trainables.data_cards import CARDS, PICTURE_SUFFIXES, count_pictures
from trainables.errors import InputError

FOLDER = "folder"  # one's own images, read as ImageNet's are
DATASETS = (*CARDS, FOLDER)
_IMAGES = "imagenet"
_USUAL_RECIPE = {_IMAGES: "imagenet_8_512"}
_LONG_EPOCHS = 30  # of a recipe: shorter ones need not be cut for a search
_COMMENT_COLUMN = 40

_MOST_LOOKED_AT = 200  # images, for the side of most
_LEAST_SCALE = 0.8  # twice the side costs four times the energy: images may shrink instead
# Sides that images are trained at, with how often the embedding halves them: 8 to 16 tokens a side.
_POOLING = {32: "0011", 64: "0011", 128: "0111", 224: "1111"}
# Depth, width and batch size for training sets below so many images.
_SMALLER = ((20_000, (2, 128, 32)), (200_000, (4, 256, 48)))

Line = tuple[str, str]  # of YAML, and what it means


class Pictures(NamedTuple):
    """What lies in a folder of images.

    Attributes:
        classes: folders below `train`.
        images: for training.
        side: the shorter one of most images, in pixels; None where none could be read.
    """

    classes: int
    images: int
    side: int | None


def starter(dataset: str, name: str = "", root: Path | None = None) -> str:
    """The text of a search space around the data set's recipe, each line with its meaning.

    Args:
        dataset: one of `DATASETS`.
        name: of the search; the data set's unless given.
        root: folder of the data; with `folder` it holds `train/CLASS/` and `val/CLASS/`.

    Raises:
        InputError: images are to be searched, but `root` has no two classes of them.
    """
    known = _IMAGES if dataset == FOLDER else dataset
    config, title = recipe(_recipe_of(known)), CARDS[known].title
    own: dict[str, Line] = {}
    if dataset == FOLDER:
        pictures = _pictures(root)
        title = f"{pictures.images:,} images of {pictures.classes} classes"
        config, own = _fitted(config, pictures)
    lines: list[Line] = [
        (f"# yaml-language-server: $schema={SCHEMA_PATH}", ""),
        (f"# A search space for {title}.", ""),
        ("# `spiketune check` says what it means, `spiketune search` runs it.", ""),
        (f"name: {json.dumps(name or dataset)}", "the search's, and of its folder below runs/"),
        (f"recipe: {_recipe_of(known)}", "the value of everything that is not said here"),
        *_fixed(config, own, root),
        ("", ""),
        ("objectives:", "one to three; two or more give a Pareto front"),
        ("  - {metric: val_top1, mode: max}", "accuracy on the validation split, %"),
        ("  - {metric: energy_mj, mode: min}", "energy of one sample by its spikes, mJ at 45 nm"),
        *_searched(config),
        *_around(config, name or dataset),
    ]
    return "".join(_written(*line) for line in lines)


def _recipe_of(dataset: str) -> str:
    usual = _USUAL_RECIPE.get(dataset, dataset)
    return usual if usual in recipe_names() else dataset


def _pictures(root: Path | None) -> Pictures:
    """What a folder of images holds.

    Raises:
        InputError: it has not two classes.
    """
    where = "DIR" if root is None else str(root)
    found = [] if root is None else [path for path in root.glob("train/*") if path.is_dir()]
    if root is None or len(found) < 2 or not (root / "val").is_dir():
        raise InputError(
            "--dataset folder needs --root DIR with images of at least two classes in "
            f"DIR/train/CLASS/ and DIR/val/CLASS/, but {where}/train has {len(found)} classes"
            + ("" if root is None or (root / "val").is_dir() else f" and {where}/val is missing")
        )
    return Pictures(len(found), count_pictures(root / "train"), _side(found))


def _side(folders: Sequence[Path]) -> int | None:
    from PIL import Image

    sides = []
    each = max(1, _MOST_LOOKED_AT // len(folders))
    for folder in folders[:_MOST_LOOKED_AT]:
        files = (path for path in folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES)
        for path in itertools.islice(files, each):
            try:
                with Image.open(path) as image:
                    sides.append(min(image.size))
            except OSError:
                continue  # preparing the data names those that cannot be read
    return round(statistics.median(sides)) if sides else None


def _fitted(config: TrialConfig, pictures: Pictures) -> tuple[TrialConfig, dict[str, Line]]:
    """The recipe for so many images of that size, and the lines that say what was changed."""
    model: dict[str, object] = {"num_classes": pictures.classes}
    train: dict[str, object] = {}
    told = {"model.num_classes": "one for each folder below train/"}
    if pictures.side is not None:
        least = _LEAST_SCALE * pictures.side
        side = next((side for side in _POOLING if side >= least), max(_POOLING))
        model |= {"image_size": side, "pooling": _POOLING[side]}
        told |= {
            "model.image_size": f"most images are {pictures.side} pixels high or wide",
            "model.pooling": "1: this part of the embedding halves height and width",
        }
    for most, (depth, width, batch) in _SMALLER:
        if 0 < pictures.images < most:
            model |= {"depth": depth, "width": width}
            train |= {"batch_size": batch, "precision": "float32"}
            told |= {
                "train.batch_size": f"for {pictures.images:,} images",
                "train.precision": "bf16 or fp16 need less memory on a GPU",
            }
            break
    changed = {f"model.{key}": value for key, value in model.items()}
    changed |= {f"train.{key}": value for key, value in train.items()}
    fitted = config.model_copy(
        update={
            "model": config.model.model_copy(update=model),
            "train": config.train.model_copy(update=train),
        }
    )
    return fitted, {key: (f"{key}: {json.dumps(changed[key])}", told[key]) for key in told}


def _fixed(config: TrialConfig, own: Mapping[str, Line], root: Path | None) -> list[Line]:
    train = config.train
    lines: list[Line] = []
    if train.epochs > _LONG_EPOCHS:
        lines += [
            (f"train.epochs: {train.epochs // 3}", f"a third of {train.epochs} ranks networks"),
            (f"train.warmup_epochs: {train.warmup_epochs // 3}", "shrinks with them"),
            ("train.cooldown_epochs: 0", "epochs at the lowest rate; not needed for ranking"),
        ]
    else:
        lines.append((f"train.epochs: {train.epochs}", "as in the recipe"))
    lines += own.values()
    if root is not None:
        shown = json.dumps(str(root.absolute()), ensure_ascii=False)
        lines.append((f"data.root: {shown}", "where the data lie"))
    elif not CARDS[config.data.name].is_embedded:
        lines.append(("# data.root: DIR", "where the data lie, unless SPIKETUNE_DATA says so"))
    head = ("trial:", "fixed for all trials, under the recipe's dotted names")
    return [("", ""), head, *((f"  {text}", told) for text, told in lines)]


def _searched(config: TrialConfig) -> list[Line]:
    model, card = config.model, CARDS[config.data.name]
    near = {max(1, model.timesteps // 2), model.timesteps, 2 * model.timesteps}
    timesteps = [model.timesteps] if card.is_sequence else sorted(near)
    sizes = {size for steps in timesteps for size in range(1, steps + 1) if steps % size == 0}
    widths = [model.width // 2, model.width, 3 * model.width // 2]
    depths = [max(1, model.depth // 2), model.depth + (model.depth + 1) // 2]
    modes = ATTENTION_OF[model.backbone]
    lines: list[Line] = [
        ("", ""),
        ("space:", "what a trial may vary; ranges include both ends"),
    ]
    if not card.is_sequence:
        told = "frames of a recording" if card.is_event else "spikes, so energy, grow with them"
        lines.append((f"  model.timesteps: {_choice(timesteps)}", told))
    rate = config.train.lr
    return [
        *lines,
        (f"  model.depth: {{int: [{depths[0]}, {depths[1]}]}}", "blocks of attention and MLP"),
        (f"  model.width: {_choice(widths)}", f"channels; {model.heads} heads must divide each"),
        (f"  model.attention: {_choice(modes)}", "space and time, spike-driven, softmax-free"),
        ("  model.block_size:", "timesteps that attend to each other; must divide timesteps"),
        (f"    choice: {sorted(sizes)}", "1 attends in space only"),
        ("    when: {model.attention: statten}", "elsewhere the parameter does not exist"),
        (f"  train.lr: {{float: [{rate / 3:.1e}, {rate * 3:.1e}], log: true}}", f"about {rate:g}"),
    ]


def _around(config: TrialConfig, name: str) -> list[Line]:
    is_sequence = CARDS[config.data.name].is_sequence
    macs_g = 2 * total_macs(config.model, is_sequence=is_sequence) / 1e9
    return [
        ("", ""),
        ("constraints:", "never broken by what is proposed"),
        (f'  - "macs_g <= {macs_g:.3g}"', "twice the recipe's: not deep, wide and long at once"),
        ("", ""),
        (
            "sampler: {name: gp, seed: 0}",
            "a Gaussian process; or tpe, random, grid",
        ),
        ("stopping:", "when a trial ends early"),
        ("  name: asha", "unless among the best at a rung; or mo_asha, none"),
        ("  metric: val_top1", "by which trials are compared"),
        ("  grace_epochs: auto", "a tenth of a full training for everyone"),
        ("  reduction_factor: 3", "one in so many goes on at a rung"),
        ("budget: {trials: 32, hours: 24}", "the search ends with whichever comes first"),
        ("resources: {cpus: 2, gpus: auto}", "of each trial; auto: the share of a GPU it needs"),
        (f"tracking: {{experiment: {json.dumps(name)}}}", "MLflow's; `spiketune ui` shows it"),
    ]


def _choice(values: Sequence[object]) -> str:
    return f"{{choice: [{', '.join(map(str, values))}]}}"


def _written(text: str, told: str) -> str:
    """A line with its comment beside it, or above where it is long."""
    if not told:
        return f"{text}\n"
    if len(text) < _COMMENT_COLUMN:
        return f"{text:<{_COMMENT_COLUMN}}# {told}\n"
    return f"{text}  # {told}\n"
