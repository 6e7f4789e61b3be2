"""Why a worker was lost, and what follows."""

import pytest

from search.records import Attempt
from search.retries import BACKOFF_MAX_S, MAX_ATTEMPTS, Loss, backoff_s, loss_of, used_up

DIED = "The actor died unexpectedly before finishing this task.\n\tclass_name: Wrapped\n"
NODE_DIED = "The actor died because its node has died. Node Id: 12\n"


@pytest.mark.parametrize(
    ("error", "reason", "charged"),
    [
        (DIED + "The actor is dead because its worker process has died.", "worker_lost", True),
        (DIED + "The actor died because its node has died. Node Id: 12", "node_lost", False),
        (NODE_DIED + "\tthe actor's node was terminated unexpectedly: health", "node_lost", False),
        (DIED + "\tthe actor's node was preempted: spot", "node_lost", False),
        ("Task failed because the node it was running on is dead or", "node_lost", False),
        ("ray::X.train()\nRuntimeError: our node died: preempted", "error RuntimeError", True),
        ("The actor 12 is unavailable: rpc error", "worker_unreachable", False),
        ("Task was killed due to the node running low on memory.", "host_out_of_memory", True),
        ("ray::X.train()\n  File ...\nOSError: [Errno 28] No space left", "error OSError", True),
        ("", "worker_lost", True),
    ],
)
def test_what_a_worker_was_lost_to(error: str, reason: str, charged: bool) -> None:
    assert loss_of(error) == Loss(reason, charged)


def test_a_store_that_does_not_answer_is_not_the_trial_s_fault() -> None:
    error = "ray::X.train()\n  File ...\ntrainables.errors.StoreError: s3://b/x must be usable, but"
    loss = loss_of(error)
    assert (loss.reason, loss.charged) == ("store_unavailable", False)
    assert str(loss) == "store_unavailable (s3://b/x must be usable, but)"


def test_retries_are_bounded_and_machines_are_not_charged() -> None:
    charged, free = Attempt(0.0, charged=True), Attempt(0.0)
    assert not used_up([charged, charged], 2)
    assert used_up([charged, charged, charged], 2)
    assert used_up([charged], 0)
    assert not used_up([free] * (MAX_ATTEMPTS - 1), 0)
    assert used_up([free] * MAX_ATTEMPTS, 0)


def test_pauses_grow_up_to_a_limit() -> None:
    pauses = [backoff_s([Attempt(0.0)] * count) for count in range(1, 60)]
    assert pauses[:3] == [1.0, 2.0, 4.0]
    assert max(pauses) == BACKOFF_MAX_S
