"""LIF and PLIF neurons on SpikingJelly: the only door to its neurons.

Shapes: T timesteps, B batch; anything may follow.
"""

from typing import Any

import torch
from spikingjelly.activation_based import neuron, surrogate
from torch import nn

TAU = 2.0
THRESHOLD = 1.0
ATTENTION_THRESHOLD = 0.5
SURROGATE_ALPHA = 4.0


class SpikingNeuron(nn.Module):
    """What every neuron layer is: `[T,B,...]` currents in, 0/1 spikes of the same shape out.

    A call starts at membrane potential 0 and leaves no state behind, so a trial can never leak one
    batch into the next. Spikes that were computed elsewhere may be handed in: hooks see either.

    Attributes:
        v_threshold: membrane potential at which the neuron fires.
    """

    v_threshold: float

    @property
    def leak(self) -> torch.Tensor | None:
        """What 1/tau is learnt by: it is `sigmoid(leak)`; None for a fixed tau."""
        return None


class LIFNeuron(neuron.LIFNode, SpikingNeuron):  # type: ignore[misc]  # spikingjelly is untyped
    """Leaky integrate-and-fire: `u = v + (x - v)/tau`, `s = [u >= threshold]`, `v = u (1 - s)`.

    Source: spec of STAtten-SDT; sigmoid surrogate (alpha 4), reset detached from the graph.
    """

    def __init__(self, v_threshold: float = THRESHOLD) -> None:
        """Set the firing threshold."""
        super().__init__(v_threshold=v_threshold, **_shared(tau=TAU))

    def forward(self, x: torch.Tensor, spikes: torch.Tensor | None = None) -> torch.Tensor:
        """Spikes of a sequence of currents.

        Args:
            x: currents `[T,B,...]`; half precision is widened, membrane state is never half.
            spikes: the result, if it is known.
        """
        return _from_rest(self, super().forward, x) if spikes is None else spikes


class PLIFNeuron(neuron.ParametricLIFNode, SpikingNeuron):  # type: ignore[misc]
    """LIF whose leak is learnt: `1/tau = sigmoid(w)`, one scalar a layer, tau 2 at first.

    Source: Fang et al., ICCV 2021 (arXiv 2007.05785).
    """

    def __init__(self, v_threshold: float = THRESHOLD) -> None:
        """Set the firing threshold."""
        super().__init__(v_threshold=v_threshold, **_shared(init_tau=TAU))

    @property
    def leak(self) -> torch.Tensor | None:
        """The learnt `w`."""
        return torch.as_tensor(self.w)

    def forward(self, x: torch.Tensor, spikes: torch.Tensor | None = None) -> torch.Tensor:
        """Spikes of a sequence of currents `[T,B,...]`, as LIFNeuron."""
        return _from_rest(self, super().forward, x) if spikes is None else spikes


NEURONS: dict[str, type[LIFNeuron] | type[PLIFNeuron]] = {"lif": LIFNeuron, "plif": PLIFNeuron}


def make_neuron(kind: str, v_threshold: float = THRESHOLD) -> SpikingNeuron:
    """Build a neuron layer by name.

    Raises:
        ValueError: the name is unknown; the message lists the valid ones.
    """
    if kind not in NEURONS:
        raise ValueError(f"neuron must be one of {sorted(NEURONS)}, but got {kind!r}")
    return NEURONS[kind](v_threshold)


def _shared(**leak: float) -> dict[str, Any]:
    return {
        **leak,
        "decay_input": True,
        "v_reset": 0.0,
        "surrogate_function": surrogate.Sigmoid(alpha=SURROGATE_ALPHA),
        "detach_reset": True,
        "step_mode": "m",
    }


def _from_rest(node: Any, forward: Any, x: torch.Tensor) -> torch.Tensor:
    # Under autocast a half input would drive SpikingJelly's state to half and its slow loop.
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    node.reset()
    spikes: torch.Tensor = forward(wide)
    node.reset()
    return spikes
