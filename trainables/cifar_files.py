"""Reads CIFAR's batch files, which are pickles, without ever running what is in them."""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from trainables.errors import InputError

SIDE, CHANNELS = 32, 3
PIXELS = CHANNELS * SIDE * SIDE
MAX_BATCH_BYTES = 2**30

# All that a pickled array of bytes names; every other name in a file is refused.
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


class _ArrayUnpickler(pickle.Unpickler):
    """Rebuilds dicts, lists, numbers, texts and arrays of bytes; refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        """Resolve one of the allowed names.

        Raises:
            UnpicklingError: the file names anything else.
        """
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no CIFAR file does")
        if name == "_reconstruct":
            return _empty_bytes
        return {"ndarray": np.ndarray, "dtype": _byte_type, "encode": _encode}[name]


def read_batch(path: Path, label_key: str) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of one batch file.

    Args:
        path: such as `data_batch_1`.
        label_key: `labels` (CIFAR-10) or `fine_labels` (CIFAR-100).

    Returns:
        Pixels `[N,32,32,3]` (uint8) and labels `[N]` (int64).

    Raises:
        InputError: it is missing, damaged or holds anything but images and labels.
    """
    tree = _read(path)
    rows, labels = tree.get("data"), tree.get(label_key)
    if not isinstance(rows, np.ndarray) or not isinstance(labels, list):
        raise InputError(f"{path}: must hold `data` and `{label_key}`, but got {sorted(tree)}")
    if rows.dtype != np.uint8 or rows.ndim != 2 or rows.shape != (len(labels), PIXELS):
        raise InputError(
            f"{path}: `data` must be {len(labels)} rows of {PIXELS} bytes (one a label), "
            f"but got {rows.dtype} of shape {rows.shape}"
        )
    if not all(isinstance(label, int) for label in labels):
        raise InputError(f"{path}: every one of `{label_key}` must be an integer")
    images = rows.reshape(-1, CHANNELS, SIDE, SIDE).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), np.array(labels, dtype=np.int64)


def _read(path: Path) -> dict[str, Any]:
    if path.stat().st_size > MAX_BATCH_BYTES:
        raise InputError(f"{path}: must be at most {MAX_BATCH_BYTES} bytes")
    try:
        # The files were written by Python 2: their texts are bytes.
        tree = _ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
    except OSError:
        raise
    except Exception as error:  # damaged bytes can raise anything while they are interpreted
        raise InputError(f"{path}: not a readable CIFAR batch ({error}); fetch it again") from error
    if not isinstance(tree, dict):
        raise InputError(f"{path}: must hold a dictionary, but got {type(tree).__name__}")
    return {k.decode("ascii", "replace") if isinstance(k, bytes) else str(k): tree[k] for k in tree}


def _empty_bytes(kind: Any, shape: Any, code: Any) -> np.ndarray:
    if kind is not np.ndarray or shape != (0,) or code not in (b"b", "b"):
        raise pickle.UnpicklingError("an array is not rebuilt as numpy does")
    return np.empty(0, dtype=np.int8)


def _byte_type(code: Any, *_: Any) -> np.dtype[Any]:
    text = code.decode("ascii", "replace") if isinstance(code, bytes) else code
    if text not in ("u1", "|u1"):
        raise pickle.UnpicklingError(f"an array holds {text!r} instead of bytes")
    return np.dtype(np.uint8)


def _encode(text: Any, encoding: Any) -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError("bytes are not encoded as Python 3 does")
    return text.encode("latin1")
