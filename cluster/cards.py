"""How much memory a cluster's cards and machines have."""

import logging
import math
from collections.abc import Mapping
from typing import Any

from cluster.packing import Machine
from cluster.resources import CAPACITY_VARIABLE

logger = logging.getLogger(__name__)

ASK_S = 120.0  # a worker imports torch first
_SLIVER = 0.001  # of a card, to be let onto its machine


def machines(available: Mapping[str, float]) -> list[Machine]:
    """The machines of the cluster that this process is connected to.

    What it can grow by (`SPIKETUNE_CAPACITY`) is one more machine; then nothing is known of
    memory, and none is asked for.

    Args:
        available: what the cluster has or can grow to, by Ray's names.
    """
    import ray

    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    grows = {
        name: available.get(name, 0.0) - sum(node.get(name, 0.0) for node in alive)
        for name in ("CPU", "GPU")
    }
    is_complete = all(more <= 0.0 for more in grows.values())
    found = [
        Machine(
            node.get("CPU", 0.0),
            int(node.get("GPU", 0.0)),
            node.get("memory", math.inf) if is_complete else math.inf,
        )
        for node in alive
    ]
    if not is_complete:
        logger.info("%s: memory of machines to come is not known", CAPACITY_VARIABLE)
        found.append(Machine(max(0.0, grows["CPU"]), int(max(0.0, grows["GPU"]))))
    return found


def card_memory_mib() -> float | None:
    """Memory of the smallest card of the cluster; None where no machine with one can tell.

    Ray knows how many cards there are, not how large: a task on every machine that has some asks
    torch. Its worker ends with it, for it leaves a context on the card.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [n["NodeID"] for n in ray.nodes() if n["Alive"] and n["Resources"].get("GPU", 0.0) > 0]

    @ray.remote(num_cpus=0, num_gpus=_SLIVER, max_calls=1, max_retries=0)
    def total_mib() -> float:
        from trainables.memory import device_memory_mib

        return device_memory_mib()

    asked: list[Any] = [
        total_mib.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
        ).remote()
        for node in nodes
    ]
    answered, silent = ray.wait(asked, num_returns=len(asked), timeout=ASK_S) if asked else ([], [])
    for task in silent:
        ray.cancel(task, force=True)
    found = [told for told in map(_answer, answered) if told]
    return min(found) if found and len(found) == len(nodes) else None


def _answer(task: Any) -> float:
    import ray

    try:
        return float(ray.get(task))
    except ray.exceptions.RayError as error:
        logger.warning("a machine's card cannot be asked for its memory: %s", error)
        return 0.0
