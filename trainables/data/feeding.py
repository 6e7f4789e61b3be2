"""Hands a split's batches to the loop, preparing the next one while the network works."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch

from trainables.data.splits import Split


def feed(
    split: Split,
    order: torch.Tensor,
    batch_size: int,
    device: torch.device,
    generator: torch.Generator | None = None,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Inputs and labels of a split, batch by batch.

    Args:
        split: the samples.
        order: indices in the order they are wanted.
        batch_size: samples a batch; the last one may be smaller.
        device: where batches go.
        generator: randomness of training augmentation, drawn from in the batches' order; None for
            evaluation. Nobody else may draw from it before the last batch is out.
    """
    chosen = order.split(batch_size)
    if not split.decodes:
        for indices in chosen:
            yield split.batch(indices, device, generator)
        return
    # One thread and one batch ahead: the generator is drawn from in the same order as without.
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="feed") as ahead:
        coming = [ahead.submit(split.batch, indices, device, generator) for indices in chosen[:1]]
        for indices in chosen[1:]:
            ready = coming.pop().result()
            coming.append(ahead.submit(split.batch, indices, device, generator))
            yield ready
        for last in coming:
            yield last.result()
