"""Firing rates, synaptic operations and energy, measured while a network evaluates.

Energy (45 nm, Horowitz 2014): 4.6 pJ a multiply-accumulate (layers with analog input: the first
convolution; Spikformer's head too), 0.9 pJ an accumulate (all that spikes drive). A layer costs
`E_op * MACs * T * r` an image, r = the mean value at the layer's actual input (share of spikes;
mean count where spikes were added up: event-data attention outputs, Spikformer's residuals). Batch
norm is folded; neurons, pooling, residuals and the elementwise gates of SDT are free. STAtten adds
`sum_n |k_n|0 |v_n|0` a head for k^T v and `nnz(q) d` for q A; SSA `sum_c |q_c|0 |k_c|0` for q k^T
and `nnz(v) N` for A v.

SpikingJelly's `activation_based.op_counter` counts the same number of operations (tests hold the
two together) except that
- a padded convolution has fewer operations at its borders; here, as in the papers, it is rate times
  dense MACs, an upper bound;
- one input value of 2 (event-data attention outputs, Spikformer's residuals) makes its counter call
  the whole layer dense MACs; here a count of n is n accumulates;
- the first convolution of event frames that happen to be 0 or 1 is accumulates there, MACs here;
  `first_conv_once` has no counterpart there;
- an operand that happens to be 0 or 1 everywhere (k^T v in a nearly silent block) is a spike tensor
  there, so that q A costs its overlap instead of `nnz(q) d`;
- batch norm's MACs, neuron updates and the accesses to memory that its energy estimates include are
  not counted here; multiplications by the attention's scale by neither.

Shapes: T timesteps, B batch, A heads, N tokens, d head dim.
"""

from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn

from trainables.config import EnergyConfig
from trainables.model.attention import BlockProduct, SpikeProduct
from trainables.model.neurons import SpikingNeuron
from trainables.parallel import World

E_MAC_PJ = 4.6
E_AC_PJ = 0.9
PJ_PER_MJ = 1e9
FIRST_CONV = "patch_embed.proj_conv"


@dataclass(frozen=True)
class EnergyReport:
    """What a network spends on one image, averaged over an evaluation.

    Attributes:
        energy_mj: energy an image in mJ.
        sops_g: accumulates (synaptic operations) an image, in 1e9.
        macs_g: multiply-accumulates an image (layers with analog input), in 1e9.
        firing_rate: spikes a neuron and timestep over the whole network, in [0, 1].
        layer_rates: the same a neuron layer.
        layer_ops: operations an image of each synaptic layer and attention product.
        layer_mj: energy an image of the same.
        convention: how the first convolution is counted, in words.
    """

    energy_mj: float
    sops_g: float
    macs_g: float
    firing_rate: float
    layer_rates: dict[str, float]
    layer_ops: dict[str, float]
    layer_mj: dict[str, float]
    convention: str


class EnergyProbe:
    """Context manager that counts operations through forward hooks; the network is unchanged."""

    def __init__(self, model: nn.Module, config: EnergyConfig) -> None:
        """Attach to nothing yet."""
        self._model = model
        self._analog = getattr(model, "analog_layers", frozenset({FIRST_CONV}))
        self._first_conv_once = config.first_conv_once
        self._operations: dict[str, torch.Tensor] = {}
        self._spikes: dict[str, torch.Tensor] = {}
        self._neurons: dict[str, int | torch.Tensor] = {}
        self._num_images = 0
        self._num_steps = 0
        self._handles: list[Any] = []

    def __enter__(self) -> Self:
        """Hook every synaptic layer, product and neuron, and the network for what it is given."""
        self._handles.append(self._model.register_forward_hook(self._count_images))
        for name, module in self._model.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                self._handles.append(module.register_forward_hook(self._count_layer(name)))
            elif isinstance(module, SpikeProduct):
                self._handles.append(module.register_forward_hook(self._count_product(name)))
            elif isinstance(module, SpikingNeuron):
                self._handles.append(module.register_forward_hook(self._count_spikes(name)))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def report(self) -> EnergyReport:
        """Averages over all images seen.

        Raises:
            RuntimeError: no image has passed.
        """
        if self._num_images == 0:
            raise RuntimeError("at least one batch must pass within the probe, but none has")
        an_image = {name: float(ops) / self._num_images for name, ops in self._operations.items()}
        if self._first_conv_once and FIRST_CONV in an_image:
            an_image[FIRST_CONV] /= self._num_steps
        layer_mj = {
            name: ops * (E_MAC_PJ if name in self._analog else E_AC_PJ) / PJ_PER_MJ
            for name, ops in an_image.items()
        }
        macs = sum(an_image.get(name, 0.0) for name in self._analog)
        rates = {name: float(n) / float(self._neurons[name]) for name, n in self._spikes.items()}
        neurons = self._neurons.values()
        return EnergyReport(
            energy_mj=sum(layer_mj.values()),
            sops_g=(sum(an_image.values()) - macs) / 1e9,
            macs_g=macs / 1e9,
            firing_rate=sum(map(float, self._spikes.values())) / sum(map(float, neurons)),
            layer_rates=rates,
            layer_ops=an_image,
            layer_mj=layer_mj,
            convention="first conv once" if self._first_conv_once else "first conv T times",
        )

    def gather(self, world: World) -> None:
        """Add what the other processes counted; all of them must call this.

        Raises:
            RuntimeError: no image has passed here.
        """
        if self._num_images == 0:
            raise RuntimeError("at least one batch must pass within the probe, but none has")
        tables: tuple[dict[str, Any], ...] = (self._operations, self._spikes, self._neurons)
        counts = [float(count) for table in tables for count in table.values()]
        counts.append(float(self._num_images))
        totals = world.total(torch.tensor(counts, dtype=torch.float64)).tolist()
        self._num_images = int(totals.pop())
        for table in tables:
            for name in table:
                table[name] = torch.tensor(totals.pop(0), dtype=torch.float64)

    def _count_images(
        self, _: nn.Module, args: tuple[torch.Tensor, ...], logits_TBK: torch.Tensor
    ) -> None:
        self._num_steps = logits_TBK.shape[0]
        self._num_images += logits_TBK.shape[1]
        if args[0].dim() != 4:  # every frame is another image: none can be convolved only once
            self._first_conv_once = False

    def _add(self, name: str, operations: torch.Tensor) -> None:
        # float64 tensors on the device: no synchronisation a layer, no rounding of counts
        total = self._operations.get(name)
        self._operations[name] = operations if total is None else total + operations

    def _count_layer(self, name: str) -> Any:
        def hook(
            module: nn.Conv2d | nn.Linear, args: tuple[torch.Tensor, ...], out: torch.Tensor
        ) -> None:
            x = args[0]
            dense = out.numel() * module.weight[0].numel()
            if name in self._analog:
                self._add(name, torch.tensor(float(dense), dtype=torch.float64))
            else:
                self._add(name, x.sum(dtype=torch.float64) * (dense / x.numel()))

        return hook

    def _count_product(self, name: str) -> Any:
        def hook(module: SpikeProduct, args: tuple[Any, ...], _out: torch.Tensor) -> None:
            q, k, v = args[:3]
            if isinstance(module, BlockProduct):
                first = (k.sum(-1, dtype=torch.float64) * v.sum(-1, dtype=torch.float64)).sum()
                second = q.sum(dtype=torch.float64) * v.shape[-1]
            else:
                per_channel = q.sum(-2, dtype=torch.float64) * k.sum(-2, dtype=torch.float64)
                first = per_channel.sum()
                second = v.sum(dtype=torch.float64) * v.shape[-2]
            self._add(name, first + second)

        return hook

    def _count_spikes(self, name: str) -> Any:
        def hook(_: nn.Module, _args: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
            total = out.sum(dtype=torch.float64)
            self._spikes[name] = self._spikes.get(name, torch.zeros_like(total)) + total
            self._neurons[name] = self._neurons.get(name, 0) + out.numel()

        return hook
