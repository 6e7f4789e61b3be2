"""Mixup and cutmix against timm's, and what the loop makes of them."""

import numpy as np
import pytest
import torch
from timm.data.mixup import mixup_target
from torch.nn import functional as nnf

from trainables.config import TrainConfig
from trainables.losses import LOSSES
from trainables.mixing import cut_in, mix, soft_labels

LABELS = torch.tensor([0, 3, 1, 1])
K = 5


def batch(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [(4, 3, 8, 8), (4, 2, 2, 8, 6)])
def test_mixup_is_timms(shape: tuple[int, ...]) -> None:
    x = batch(*shape)
    mixed, soft = mix(x, LABELS, K, TrainConfig(mixup=0.5), np.random.default_rng(3))
    rng = np.random.default_rng(3)
    rng.random()  # whether to mix at all
    kept = float(rng.beta(0.5, 0.5))
    assert torch.equal(mixed, x * kept + x.flip(0) * (1.0 - kept))
    torch.testing.assert_close(soft, mixup_target(LABELS, K, kept, 0.1))


def test_cutmix_takes_a_box_and_labels_by_its_area() -> None:
    x = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 2, 12, 10).contiguous()
    for seed in range(40):
        mixed, soft = mix(x, LABELS, K, TrainConfig(cutmix=1.0), np.random.default_rng(seed))
        taken = mixed[0, 0] == 3.0
        assert torch.equal(mixed[0, 0], torch.where(taken, 3.0, 0.0))
        assert torch.equal(mixed[0, 1], mixed[0, 0])
        rows, columns = taken.any(1).sum(), taken.any(0).sum()
        assert taken.sum() == rows * columns
        kept = 1.0 - float(taken.float().mean())
        torch.testing.assert_close(soft, mixup_target(LABELS, K, kept, 0.1))


def test_the_box_ends_at_the_edges() -> None:
    x = batch(2, 1, 4, 4)
    mixed, kept = cut_in(x, 0.0, np.random.default_rng(0))
    assert 0.0 <= kept < 1.0
    assert (mixed == x).float().mean() == pytest.approx(kept)


def test_probabilities_are_kept() -> None:
    x = batch(4, 1, 6, 6)
    rng = np.random.default_rng(0)
    train = TrainConfig(mixup=0.4, cutmix=1.0, mixup_prob=0.6, mixup_switch_prob=0.25)
    counts = {"none": 0, "mixup": 0, "cutmix": 0}
    for _ in range(2000):
        mixed, _ = mix(x, LABELS, K, train, rng)
        same = (mixed == x) | (mixed == x.flip(0))
        kind = "none" if torch.equal(mixed, x) else "cutmix" if same.all() else "mixup"
        counts[kind] += 1
    # a cutmix box may be empty, so that the batch looks unmixed
    assert counts["mixup"] / 2000 == pytest.approx(0.6 * 0.75, abs=0.03)
    assert counts["cutmix"] / 2000 == pytest.approx(0.6 * 0.25, abs=0.03)


def test_mixing_stops_at_its_epoch() -> None:
    train = TrainConfig(mixup=0.5, mixup_off_epoch=3)
    assert [train.mixes(epoch) for epoch in range(5)] == [True, True, True, False, False]
    assert TrainConfig(cutmix=0.5).mixes(1000)
    assert not TrainConfig(mixup_off_epoch=3).mixes(0)


@pytest.mark.parametrize("name", ["ce", "tet"])
def test_soft_labels_without_a_partner_give_the_smoothed_loss(name: str) -> None:
    logits_TBK = batch(3, 4, K).double()
    train = TrainConfig(label_smoothing=0.2)
    soft = soft_labels(LABELS, K, 0.2, torch.float64)
    hard, mixed = (LOSSES[name](logits_TBK, y, train) for y in (LABELS, soft))
    torch.testing.assert_close(hard, mixed, rtol=1e-12, atol=0.0)


def test_tet_averages_the_soft_loss_over_time() -> None:
    logits_TBK = batch(3, 4, K)
    soft = mixup_target(LABELS, K, 0.3, 0.1)
    train = TrainConfig(tet_lambda=0.0)
    wanted = torch.stack([nnf.cross_entropy(x, soft) for x in logits_TBK]).mean()
    torch.testing.assert_close(LOSSES["tet"](logits_TBK, soft, train), wanted)
