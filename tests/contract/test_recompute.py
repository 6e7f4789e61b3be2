"""Blocks that are computed again give the same step in less memory, through every backend."""

import pytest
import torch
from backends import CPU_BACKENDS, computed_by
from test_backends import CASES, inputs, kept_bytes, network, outcome

from trainables.config import TrialConfig
from trainables.loop import TrialRun
from trainables.model.recompute import Stack, set_recompute


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("case", sorted(CASES))
def test_a_step_is_the_same(case: str, backend: str) -> None:
    found = []
    for recompute in (False, True):
        model = computed_by(backend, network(case))
        set_recompute(model, recompute=recompute)
        found.append(outcome(model, inputs(case), train=True))
    kept, again = found
    assert again.keys() == kept.keys()
    assert any(name.endswith("num_batches_tracked") for name in kept)
    for name, value in kept.items():
        assert torch.equal(again[name], value), name


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_only_the_blocks_inputs_are_kept(backend: str) -> None:
    x = inputs("static", batch=4).float()
    sizes = []
    for recompute in (False, True):
        model = computed_by(backend, network("static", depth=4).float())
        set_recompute(model, recompute=recompute)
        sizes.append(kept_bytes(model, x))
    assert sizes[1] < 0.6 * sizes[0]


def test_bf16_is_recomputed_in_bf16() -> None:
    found = []
    for recompute in (False, True):
        model = computed_by("cpp", network("static").float()).train()
        set_recompute(model, recompute=recompute)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(inputs("static").float())
        logits.float().logsumexp(-1).sum().backward()
        found.append([p.grad for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("recompute", [False, True])
def test_a_trial_does_as_it_is_told(recompute: bool) -> None:
    tree = {
        "model": {"in_channels": 1, "image_size": 8, "width": 16, "heads": 2, "pooling": "0010"},
        "train": {"recompute": recompute, "device": "cpu"},
    }
    run = TrialRun(TrialConfig.model_validate(tree))
    (stack,) = (module for module in run.model.modules() if isinstance(module, Stack))
    assert stack.recompute is recompute
