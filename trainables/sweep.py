"""One checkpoint at every number of timesteps: what accuracy and energy fewer of them give.

Shapes: T timesteps, B batch, C channels, H W image.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch

from trainables.config import TrialConfig
from trainables.data import Split
from trainables.data.feeding import feed
from trainables.model.selection import use_backend
from trainables.model.timesteps import at_timesteps
from trainables.model.weights import load_model
from trainables.scoring import Evaluation, Scorer


@dataclass(frozen=True)
class TimestepScore:
    """A network's scores with so many timesteps.

    Attributes:
        timesteps: t.
        block_size: timesteps a block of attention; None where the mode has no blocks.
        note: how the network differs from the trained one; empty where it does not.
        evaluation: accuracy, loss, energy.
    """

    timesteps: int
    block_size: int | None
    note: str
    evaluation: Evaluation


def sweep(
    config: TrialConfig,
    state: Mapping[str, torch.Tensor],
    split: Split,
    device: torch.device,
    timesteps: Sequence[int],
    tick: Callable[[int], None] = lambda _: None,
) -> list[TimestepScore]:
    """Score a checkpoint with several numbers of timesteps, reading the data once.

    Static images are shown t times; of event data and sequences the network sees the first t
    frames.

    Args:
        config: the trial; says how large a batch, which precision and which energy convention.
        state: state dict of its network.
        split: what to score on.
        device: where to.
        timesteps: the numbers t, each at most the trained T.
        tick: is told how many samples are done.

    Raises:
        CheckpointError: the weights are of another network.
        ValueError: a number of timesteps is out of range.
    """
    weights = {name: x.to(device) for name, x in state.items()}
    variants = [at_timesteps(config.model, t) for t in timesteps]
    train = config.train
    networks = [load_model(model, weights, device) for model, _ in variants]
    for network in networks:
        use_backend(network, train, device)
    done = 0
    with ExitStack() as stack:
        scorers = [
            stack.enter_context(Scorer(network, config.energy, train.precision))
            for network in networks
        ]
        batches = torch.arange(len(split)).split(train.eval_batch_size)
        for inputs, labels in feed(split, batches, device):
            for scorer, t in zip(scorers, timesteps, strict=True):
                scorer.add(inputs if inputs.dim() == 4 else inputs[:, :t], labels)
            done += len(labels)
            tick(done)
    return [
        TimestepScore(
            timesteps=model.timesteps,
            block_size=model.block_size if model.attention == "statten" else None,
            note=note,
            evaluation=scorer.result(),
        )
        for (model, note), scorer in zip(variants, scorers, strict=True)
    ]
