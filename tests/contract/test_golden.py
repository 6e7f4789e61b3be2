"""Our network equals the papers' in float64, through every backend of the CPU.

Logits, loss, gradients, optimiser steps, spikes.
"""

from typing import Any

import numpy as np
import pytest
import torch
from backends import CPU_BACKENDS, computed_by
from golden_cases import golden_module, model_config
from torch import nn

from trainables.config import TrainConfig
from trainables.cost import parameter_count
from trainables.losses import LOSSES
from trainables.model import build_model

GOLDEN = golden_module()
CASES: list[str] = GOLDEN.cases() if GOLDEN else []
# What the emulated backend takes minutes for beyond forward and backward is torch's own.
STEPPED = ("torch", "cpp", pytest.param("cuda-emulated", marks=pytest.mark.slow))
pytestmark = pytest.mark.skipif(GOLDEN is None, reason="no golden results beside the project")


def load(name: str, backend: str) -> tuple[Any, nn.Module, torch.Tensor, torch.Tensor]:
    assert GOLDEN is not None
    case = GOLDEN.load(name)
    model = build_model(model_config(case.config)).double()
    model.load_state_dict({k: torch.from_numpy(np.asarray(v)) for k, v in case.state_dict.items()})
    computed_by(backend, model)
    return case, model, torch.from_numpy(case.input).double(), torch.from_numpy(case.target).long()


def train_config(case: Any) -> TrainConfig:
    return TrainConfig(loss="tet" if case.config["tet"] else "ce", label_smoothing=0.0)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("name", CASES)
def test_logits_loss_and_gradients_equal_the_reference(name: str, backend: str) -> None:
    case, model, x, target = load(name, backend)
    tet = case.config["tet"]
    model.eval()
    with torch.no_grad():
        logits = model(x)
    model.train()
    train_logits = model(x)
    train = train_config(case)
    loss = LOSSES[train.loss](train_logits, target, train)
    loss.backward()
    gradients = {
        key: None if p.grad is None else p.grad.numpy() for key, p in model.named_parameters()
    }
    assert GOLDEN is not None
    assert not GOLDEN.check(
        case,
        logits_eval=(logits if tet else logits.mean(0)).numpy(),
        logits_train=(train_logits if tet else train_logits.mean(0)).detach().numpy(),
        loss=loss.item(),
        grads=gradients,
    )


@pytest.mark.parametrize("backend", STEPPED)
@pytest.mark.parametrize("name", CASES)
def test_optimiser_steps_and_parameter_count_equal_the_reference(name: str, backend: str) -> None:
    case, model, x, target = load(name, backend)
    count = sum(p.numel() for p in model.parameters())
    assert count == case.expected["params"] == parameter_count(model_config(case.config))
    model.train()
    train = train_config(case)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.06)
    losses = []
    for _ in range(4):  # the stored losses are those after one, two and three steps
        loss = LOSSES[train.loss](model(x), target, train)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[1:] == pytest.approx(case.expected["f64"]["adamw_losses"], rel=1e-7)
