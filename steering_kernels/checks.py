"""What the tables demand of what is put in, and what a step demands; never called by a layer."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch

HIDDEN_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def check_size(name: str, size: int) -> None:
    """Check that something has a size.

    Raises:
        ValueError: it is below 1.
    """
    if size < 1:
        raise ValueError(f"{name}: expected 1 or more, got {size}")


def check_row(row: int, num_rows: int) -> None:
    """Check that a row may be filled.

    Raises:
        ValueError: it is row 0, which acts nowhere, or there is no such row.
    """
    if not 1 <= row < num_rows:
        raise ValueError(f"row: expected 1 to {num_rows - 1}, got {row}")


def check_vector(vector: torch.Tensor, num_layers: int, hidden_size: int, name: str = "vector") -> None:
    """Check the shape, the dtype and the values of a row's tensor.

    Raises:
        ValueError: one of them does not fit.
    """
    if vector.shape != (num_layers, hidden_size) or vector.dtype != torch.float32:
        raise ValueError(
            f"{name}: expected [{num_layers}, {hidden_size}] torch.float32, "
            f"got {list(vector.shape)} {vector.dtype}"
        )
    if not bool(torch.isfinite(vector).all()):
        raise ValueError(f"{name}: expected finite values, got NaN or infinity")


def check_form(site: str, parameters: Sequence[float], sites: Sequence[str]) -> None:
    """Check how a vector is to act.

    Raises:
        ValueError: the site is unknown, or a parameter is not finite or negative where it must not be.
    """
    if site not in sites:
        raise ValueError(f"form.site: expected one of {', '.join(sites)}, got {site!r}")
    if not all(math.isfinite(parameter) for parameter in parameters):
        raise ValueError(f"form: expected finite parameters, got {list(parameters)}")
    if parameters[2] < 0:
        raise ValueError(f"form.opposed_gain: expected 0 or more, got {parameters[2]}")


def check_condition(
    vectors: torch.Tensor,
    layers: Sequence[Sequence[int]],
    num_layers: int,
    hidden_size: int,
    max_probes: int,
    num_needed: int,
) -> None:
    """Check what a condition is made of.

    Raises:
        ValueError: too few or too many probes, layers that are not there or do not rise, vectors that do
        not fit them, or a number of needed probes that can't be reached.
    """
    if not 1 <= len(layers) <= max_probes:
        raise ValueError(f"probes: expected 1 to {max_probes}, got {len(layers)}")
    for i, chosen in enumerate(layers):
        is_rising = all(low < high for low, high in pairwise(chosen))
        if not chosen or not is_rising or chosen[0] < 0 or chosen[-1] >= num_layers:
            raise ValueError(
                f"probes[{i}].layers: expected rising numbers from 0 to {num_layers - 1}, got {list(chosen)}"
            )
    if not 1 <= num_needed <= len(layers):
        raise ValueError(f"num_needed: expected 1 to {len(layers)}, got {num_needed}")
    check_vector(vectors, sum(map(len, layers)), hidden_size, "vectors")


def check_values(name: str, values: torch.Tensor, low: int, high: int, max_length: int) -> None:
    """Check numbers of a step that come from the host.

    Raises:
        ValueError: they are not one axis of int32 on the CPU, too many, or out of range.
    """
    if values.dtype != torch.int32 or values.ndim != 1 or values.device.type != "cpu":
        raise ValueError(
            f"{name}: expected one axis of int32 on the CPU, "
            f"got {values.dtype} {list(values.shape)} on {values.device}"
        )
    if len(values) > max_length:
        raise ValueError(f"{name}: expected at most {max_length}, got {len(values)}")
    if len(values):
        least, most = (int(x) for x in values.aminmax())
        if least < low or most > high:
            raise ValueError(f"{name}: expected {low} to {high}, got {least} to {most}")


def check_step_values(
    names: Sequence[str], columns: Sequence[torch.Tensor], max_num_reqs: int
) -> torch.Tensor:
    """Check what is known of a step's requests, and lay it side by side; zeros fill it up.

    Args:
        names: of the columns; the first has one number more than there are requests.
        columns: int32 on the CPU.
        max_num_reqs: how many fit.

    Returns:
        ``[columns, max_num_reqs + 1]`` int32 on the CPU.

    Raises:
        ValueError: another dtype, lengths that do not fit each other, too many, or negative numbers.
    """
    num_reqs = len(columns[0]) - 1
    if not 0 <= num_reqs <= max_num_reqs:
        raise ValueError(f"{names[0]}: expected 1 to {max_num_reqs + 1}, got {num_reqs + 1}")
    together = torch.zeros(len(columns), max_num_reqs + 1, dtype=torch.int32)
    for i, (name, values) in enumerate(zip(names, columns, strict=True)):
        expected = num_reqs + (i == 0)
        if values.dtype != torch.int32 or values.shape != (expected,) or values.device.type != "cpu":
            raise ValueError(
                f"{name}: expected [{expected}] torch.int32 on the CPU, "
                f"got {list(values.shape)} {values.dtype} on {values.device}"
            )
        together[i, :expected].copy_(values)
    if int(together.min()) < 0:
        raise ValueError(f"{', '.join(names)}: expected 0 or more, got {int(together.min())}")
    return together


def check_states(
    hidden: torch.Tensor, residual: torch.Tensor | None, hidden_size: int, num_rows: int, rows: torch.Tensor
) -> None:
    """Check the tensors of a layer against the tables and the rows of the step.

    Raises:
        ValueError: a shape, dtype or device that does not fit, or a row that the table lacks.
    """
    if hidden.ndim != 2 or hidden.shape[1] != hidden_size or hidden.dtype not in HIDDEN_DTYPES:
        raise ValueError(
            f"hidden: expected [T, {hidden_size}] of one of {HIDDEN_DTYPES}, "
            f"got {list(hidden.shape)} {hidden.dtype}"
        )
    if hidden.stride(1) != 1:
        raise ValueError(f"hidden: expected the last axis contiguous, got strides {list(hidden.stride())}")
    if residual is not None and (residual.shape, residual.dtype) != (hidden.shape, hidden.dtype):
        raise ValueError(
            f"residual: expected {list(hidden.shape)} {hidden.dtype}, "
            f"got {list(residual.shape)} {residual.dtype}"
        )
    if len(rows) < len(hidden):
        raise ValueError(f"rows: expected at least {len(hidden)}, got {len(rows)}")
    check_values("rows", rows[: len(hidden)].cpu(), 0, num_rows - 1, len(hidden))
