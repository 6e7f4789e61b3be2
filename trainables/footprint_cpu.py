"""Peak memory of a step and of an evaluation on a CPU, counted layer by layer.

Each layer says what it keeps for its backward and what it works with besides, in bytes of a frame
(a sample in a timestep). While training, the peak is at the layer where what is kept so far and the
work there are most; in evaluation it is the most work alone. Letters: D width, N tokens, T
timesteps; c bytes of a current (4, or 2 in half precision), m values of a block's width, D N. Where
a number stands alone it is bytes a value: 1 for a spike of our kernels, 4 for one of torch's.
"""

from dataclasses import dataclass

from trainables.config import ModelConfig, TrialConfig
from trainables.cost import embedding_channels, embedding_grids

MIB = 2**20
# Dense copies and Winograd's points are made for so many bytes at a time (`model/synapses.py`).
_CHUNK_BYTES = 16 * MIB
_POINTS = 36
_TILE = 4
# Pieces up to this size come from the C library's heap, larger ones are mapped and given back.
_HEAP_PIECE = 32 * MIB
# Above so many connections the points lie in memory, below in a cache (`model/winograd.py`).
_MOST_CACHED = 128 * 64


@dataclass(frozen=True)
class Layer:
    """Bytes of a frame at a layer.

    Attributes:
        kept: for the backward.
        work: in training besides, forward or backward.
        eval_work: in evaluation, of everything that is there.
        at_kernel: in training besides while a kernel works on chunks.
        chunk: of copies that it makes, of which at most a chunk is there at a time.
        eval_at_kernel: in evaluation, of everything while a kernel works on chunks.
        weights: bytes of copies of its weights and of their gradient, whatever the frames.
        values: of its largest tensor; where tensors lie in the heap.
        fired: values of all its neurons; likewise.
    """

    kept: float
    work: float
    eval_work: float
    at_kernel: float = 0.0
    chunk: float = 0.0
    eval_at_kernel: float = 0.0
    weights: float = 0.0
    values: float = 0.0
    fired: float = 0.0


@dataclass(frozen=True)
class Stage:
    """Values of a frame at a stage of the patch embedding.

    Attributes:
        inputs: of what is convolved.
        whole: currents.
        pooled: spikes after pooling; 0 where nothing is pooled.
        connections: inputs times outputs of the kernel.
        points: of Winograd's way, of inputs and outputs.
        is_once: whether one timestep is computed for all, as of a static image.
    """

    inputs: int
    whole: int
    pooled: int
    connections: int
    points: int
    is_once: bool

    @property
    def out(self) -> int:
        """Values that the next layer is given."""
        return self.pooled or self.whole


def stages_of(model: ModelConfig, *, is_sequence: bool) -> list[Stage]:
    """The four stages of the embedding and its positional convolution."""
    grids = embedding_grids(model.image_size, model.pooling, is_sequence=is_sequence)
    stages: list[Stage] = []
    before = model.in_channels
    # Nothing is pooled after the positions: the grid stays.
    after = zip(model.pooling + "0", [*grids[1:], grids[-1]], strict=True)
    for channels, (rows, columns), (pools, (out_rows, out_columns)) in zip(
        embedding_channels(model.width), grids, after, strict=True
    ):
        pixels, points = rows * columns, _POINTS * -(-rows // _TILE) * -(-columns // _TILE)
        stages.append(
            Stage(
                inputs=before * pixels,
                whole=channels * pixels,
                pooled=channels * out_rows * out_columns if pools == "1" else 0,
                connections=before * channels,
                points=points * (before + channels),
                is_once=not stages and not model.event_data,
            )
        )
        before = channels
    return stages


def matrix_of(model: ModelConfig, block: int) -> int:
    """Values between all tokens of a frame, where attention goes token by token."""
    return model.heads * (block // model.width) ** 2 if model.attention == "ssa" else 0


def fused_layers(model: ModelConfig, stages: list[Stage], c: int) -> list[Layer]:
    """Layers of the embedding as our kernels keep them: currents as they came, bytes of spikes."""
    is_sdt = model.backbone == "sdt"
    layers: list[Layer] = []
    for number, s in enumerate(stages[:4]):
        share = 1 / model.timesteps if s.is_once else 1.0
        currents = c * share * s.whole
        inputs = s.inputs * (c * share if number == 0 else 1.0)
        values = s.inputs + s.whole
        at_kernel, chunk = (0.0, 4.0 * values) if number == 0 else (c * s.inputs, _points(s))
        eval_at_kernel = inputs + currents if number == 0 else 0.0
        kept = currents + (inputs if number == 0 else 0)
        if is_sdt and number == 3:
            kept += s.pooled + (c + 1) * s.out
            work = 1.0 * c * (s.whole + 2 * s.out)
            eval_work = inputs + currents + c * s.out + s.pooled + s.out
        else:
            kept += 2 * s.pooled or s.whole
            work = (1.0 + share) * c * s.whole
            eval_work = inputs + currents + s.whole
        layers.append(Layer(kept, work, eval_work, at_kernel, chunk, eval_at_kernel, _weights(s)))
    rpe = stages[4]
    eval_work = ((4 * c + 1) if is_sdt else (c + 3)) * rpe.whole
    kept, work = c * rpe.whole, 2 * c * rpe.whole
    layers.append(Layer(kept, work, eval_work, work, _points(rpe), weights=_weights(rpe)))
    return layers


def fused_block(model: ModelConfig, m: int, c: int) -> list[Layer]:
    """Layers of a block as our kernels keep them; m values of its width."""
    is_sdt, event = model.backbone == "sdt", int(model.event_data and model.backbone == "sdt")
    x = c if is_sdt else 0  # a current, or bytes that are the spikes
    matrix, r = matrix_of(model, m), model.mlp_ratio
    alive = x + 1 + 3 * c + 3 + event
    mixed = {"statten": c + 1 + event, "sdt": 1 + 3 * event, "ssa": c + 4}[model.attention]
    at_mix = 4 if model.attention == "sdt" else 4 + c
    eval_mix = (alive + max(at_mix, 2 * c + 1)) * m
    work_mix = 5.0 * c * m
    if matrix:
        half = 2 * (c < 4)
        eval_mix = max(eval_mix, (alive + 8) * m + (4 + half) * matrix)
        work_mix += 8 * m + (4 + half) * matrix
    grown = c * (r + 1) if r == 1 else c * r
    return [
        Layer((x + 1 + 3 * c + 3 + 5 * event) * m, (5 + event) * c * m, alive * m),
        Layer(mixed * m + c * matrix, work_mix, eval_mix),
        Layer(c * m, 3 * c * m, (alive + 2 * c + 1) * m),
        Layer((x + 1 + grown) * m, 2 * c * m, (2 * x + 1 + r * (c + 1)) * m),
        Layer((r + c) * m, 2 * r * c * m, (2 * x + 1 + r * (c + 1) + 2 * c) * m),
    ]


def _points(s: Stage) -> float:
    return 4.0 * s.points if s.connections > _MOST_CACHED else 0.0


def _weights(s: Stage) -> float:
    """A gradient at Winograd's points, half way back, and in three orders."""
    return 4.0 * (36 + 18 + 27) * s.connections


def torch_layers(model: ModelConfig, stages: list[Stage], c: int) -> list[Layer]:
    """Layers of the embedding as plain torch keeps them: everything dense, spikes in float32."""
    is_sdt, leak = model.backbone == "sdt", _leak(model)
    work, eval_work = _torch_firing(model.timesteps, c)
    layers = []
    for number, s in enumerate(stages):
        n, m = s.whole, s.out
        kept = c * n + (c * s.inputs if number == 0 else 0)
        if number == 4 and is_sdt:
            layers.append(Layer(kept, (2 * c + 8) * n, (4 * c + 8) * n, values=n, fired=n))
        elif number == 3 and is_sdt:
            kept += ((c * n + 8 * m) if s.pooled else 0) + (7 + leak + c) * m
            work_3, eval_3 = max(work * m, c * n), 2 * c * n + eval_work * m
            layers.append(Layer(kept, work_3, eval_3, values=n, fired=n))
        else:
            kept += (7 + leak) * n + (4 * n + (8 + c) * m if s.pooled else c * n)
            layers.append(Layer(kept, work * n, eval_work * n, values=n, fired=n))
    return layers


def torch_block(model: ModelConfig, m: int, c: int) -> list[Layer]:
    """Layers of a block as plain torch keeps them; m values of its width."""
    is_sdt, event = model.backbone == "sdt", int(model.event_data and model.backbone == "sdt")
    leak, r, matrix = _leak(model), model.mlp_ratio, matrix_of(model, m)
    # Each of three convolutions has its own copy of spikes in half precision.
    spikes = c if c == 4 else 3 * c
    pooled = 16 * event  # spikes before and after, and 8 bytes of which one won
    work, eval_work = _torch_firing(model.timesteps, c)
    x = c if is_sdt else 4
    alive = x + 4 + 3 * c
    kept = (7 + leak) * is_sdt + spikes + pooled + 3 * (c + 7 + leak + c + pooled)
    mixed = {"statten": 2 * c, "sdt": 4 + 12 * event, "ssa": 2 * c}[model.attention] + 7 + leak + c
    firing = c + 7 + leak + c
    mlp = (7 + leak + c + firing * r) * m
    eval_mix = (alive + 28) * m + c * matrix
    return [
        Layer(kept * m, (work + x) * m, (alive - c + 8 + eval_work) * m, values=m, fired=4 * m),
        Layer(mixed * m + c * matrix, (work + x) * m + 4 * matrix, eval_mix, values=m, fired=m),
        Layer(c * m, 4 * c * m, 0.0, values=m),
        Layer(mlp, (work * r + 2 * x) * m, (eval_work * r + 2 * x) * m, values=r * m, fired=r * m),
        Layer(c * m, 4 * c * m, 0.0, values=m, fired=m),
    ]


def _leak(model: ModelConfig) -> int:
    return 4 if model.neuron == "plif" else 0


def _torch_firing(timesteps: int, c: int) -> tuple[float, float]:
    """Bytes a value at a neuron layer: in training besides what it keeps, and in evaluation.

    Potentials and spikes are there twice, one by one and stacked; at the last timestep there are
    six values of that step's besides.
    """
    at_once = max(8.0 + 16.0 / timesteps, 16.0 + 4.0 / timesteps)
    widened = 4 if c < 4 else 0
    return c + widened + at_once - 8.0, 2 * c + widened + at_once


def fused_bytes(config: TrialConfig, stages: list[Stage]) -> float:
    """Bytes of tensors at the peak with our kernels, which lie in an arena nearly without holes."""
    model, train = config.model, config.train
    c, m = _current_bytes(config), stages[-1].whole
    embedding, block = fused_layers(model, stages, c), fused_block(model, m, c)
    frames = model.timesteps * (train.batch_size // train.accumulate)
    layers = embedding + block * (1 if train.recompute else model.depth)
    kept = peak = 0.0
    for number, layer in enumerate(layers):
        if train.recompute and number == len(embedding):
            kept += c * m * (model.depth - 1) * frames
        kept += layer.kept * frames
        chunk = min(_CHUNK_BYTES, layer.chunk * frames)
        at_kernel = layer.at_kernel * frames + chunk + layer.weights
        peak = max(peak, kept + max(layer.work * frames, at_kernel))
    of_inputs = input_bytes(model)
    peak += of_inputs * train.batch_size
    frames = model.timesteps * train.eval_batch_size
    evaluated = max(layer.eval_work for layer in layers) * frames
    first = layers[0]
    at_kernel = first.eval_at_kernel * frames + min(_CHUNK_BYTES, first.chunk * frames)
    return max(peak, max(evaluated, at_kernel) + of_inputs * train.eval_batch_size)


@dataclass(frozen=True)
class Holes:
    """How much more than its tensors the C library's heap takes.

    A freed piece is too small for the next of its size, as that must be aligned, and lives on as a
    hole until its neighbours are free too.

    Attributes:
        train: heap for a byte that lives at a step's peak.
        evaluate: the same of the layer that needs most in evaluation.
        layer: for a byte of the spikes of all layers of an evaluation.
        most_layers: the most of that, in what the layer takes that needs most.
        left: of what lives at a step's peak, what is still there in evaluation.
        mapped_train: for a byte of a step that is mapped.
        mapped_evaluate: likewise in evaluation.
    """

    train: float
    evaluate: float
    layer: float
    most_layers: float
    left: float
    mapped_train: float
    mapped_evaluate: float


def torch_bytes(config: TrialConfig, stages: list[Stage], holes: Holes) -> float:
    """Bytes at the peak with plain torch, whose tensors lie in the heap unless they are large."""
    model, train = config.model, config.train
    c, m = _current_bytes(config), stages[-1].whole
    embedding, block = torch_layers(model, stages, c), torch_block(model, m, c)
    layers = embedding + block * (1 if train.recompute else model.depth)
    frames = model.timesteps * (train.batch_size // train.accumulate)
    again = c * m * (model.depth - 1) * frames if train.recompute else 0.0
    kept, kept_mapped, heap, mapped = 0.0, 0.0, 0.0, 0.0
    for number, layer in enumerate(layers):
        kept_mapped += (1.0 - _heap_share(layer.values, frames)) * layer.kept * frames
        kept += layer.kept * frames + (again if number == len(embedding) else 0.0)
        of_work = _work_share(layer.values, frames, model.timesteps)
        work = layer.work * frames
        if kept + work > heap + mapped:
            mapped = kept_mapped + (1.0 - of_work) * work
            heap = kept + work - mapped
    trained = holes.train * heap + holes.mapped_train * mapped
    frames = model.timesteps * train.eval_batch_size
    in_heap = in_map = fired = 0.0
    for layer in layers:
        of_work = _work_share(layer.values, frames, model.timesteps)
        in_heap = max(in_heap, of_work * layer.eval_work * frames)
        in_map = max(in_map, (1.0 - of_work) * layer.eval_work * frames)
        fired += 4.0 * layer.fired * frames * _heap_share(layer.values, frames / model.timesteps)
    evaluated = holes.evaluate * in_heap + holes.mapped_evaluate * in_map
    evaluated += holes.layer * min(fired, holes.most_layers * in_heap) + holes.left * heap
    return max(trained, evaluated + input_bytes(model) * train.eval_batch_size)


def _heap_share(values: float, frames: float) -> float:
    return 1.0 if 4.0 * values * frames <= _HEAP_PIECE else 0.0


def _work_share(values: float, frames: float, timesteps: int) -> float:
    """What of the work comes from the heap: half of it are tensors of one timestep."""
    return (_heap_share(values, frames) + _heap_share(values, frames / timesteps)) / 2


def _current_bytes(config: TrialConfig) -> int:
    return 2 if config.train.precision in ("bf16", "fp16") else 4


def input_bytes(model: ModelConfig) -> int:
    """Bytes of a sample as the network takes it."""
    frames = model.timesteps if model.event_data else 1
    return 4 * frames * model.in_channels * model.image_size**2
