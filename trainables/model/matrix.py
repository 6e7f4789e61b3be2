"""Dense products of rows on a CPU that read and write half precision where it lies.

Shapes: R rows, K inputs, N outputs; P panels of columns, as many as the kernels keep side by side.
"""

import torch

from trainables.model.engines import engine_of

# Columns of a panel; `matrix.h` has the same number.
PANEL = 64


def padded(columns: int) -> int:
    """So many columns and those that fill the last panel."""
    return -(-columns // PANEL) * PANEL


def panels(weight: torch.Tensor) -> torch.Tensor:
    """`[...,P,K,PANEL]` of `[...,K,N]`, with zeros behind the last column."""
    num_outputs = weight.shape[-1]
    wide = torch.nn.functional.pad(weight, (0, padded(num_outputs) - num_outputs))
    return wide.unflatten(-1, (-1, PANEL)).transpose(-3, -2).contiguous()


def multiply(rows_RK: torch.Tensor, weight_KN: torch.Tensor) -> torch.Tensor:
    """`[R,N]` in the rows' dtype; half-precision rows go with a float32 weight."""
    num_rows, num_inputs = rows_RK.shape
    num_outputs = weight_KN.shape[1]
    out = rows_RK.new_empty(num_rows, num_outputs)
    engine_of(out).call(
        "multiply", out.dtype, num_rows, num_inputs, num_outputs, rows_RK, panels(weight_KN), out
    )
    return out
