"""Work on the records of a large search without a look for cycles among them."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_cycles() -> Iterator[None]:
    """Do not collect garbage: nothing here makes cycles, and a look at 10,000 trials takes seconds.

    What is collected by count of references is so as ever.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
