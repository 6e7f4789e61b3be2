"""Hands a split's batches to the loop, preparing the next one while the network works."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from trainables.data.splits import Split


def feed(
    split: Split,
    batches: Sequence[torch.Tensor],
    device: torch.device,
    generator: torch.Generator | None = None,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Inputs and labels of a split, batch by batch.

    Args:
        split: the samples.
        batches: indices `[B]` of each batch, in the order they are wanted.
        device: where batches go.
        generator: randomness of training augmentation, drawn from in the batches' order; None for
            evaluation. Nobody else may draw from it before the last batch is out.
    """
    if not split.decodes:
        for indices in batches:
            yield split.batch(indices, device, generator)
        return
    # One thread and one batch ahead: the generator is drawn from in the same order as without.
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="feed") as ahead:
        coming = [ahead.submit(split.batch, indices, device, generator) for indices in batches[:1]]
        for indices in batches[1:]:
            ready = coming.pop().result()
            coming.append(ahead.submit(split.batch, indices, device, generator))
            yield ready
        for last in coming:
            yield last.result()
