"""What a step tells the layers: which row each token has, and where the prompts of conditional requests end.

Tensors at fixed addresses, filled before the forward pass. On a GPU nothing else is read. On a CPU, where the
tensors are the host's own, the tokens are sorted by row once a step instead of once a layer.
"""

from dataclasses import dataclass, field

import torch

from steering_kernels.checks import check_size, check_step_values, check_values
from steering_kernels.layout import SteeringTable
from steering_kernels.plan import Grouping, StepPlan

_INT32_MAX = 2**31 - 1

#: Rows of ``StepRequests.fields``.
REQUEST_FIELDS = ("query_start", "start", "row", "first", "stop")


@dataclass(eq=False)
class TokenRows:
    """The row of each token of a step."""

    #: ``[capacity]`` int32 on the device; 0 where nothing is to be done, and beyond the step's tokens.
    tensor: torch.Tensor
    #: Whether the host knows that every row is 0, and stays 0 in this step.
    is_idle: bool = True
    #: What the host wrote last, as far as it is not 0.
    _written: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int32), repr=False)
    #: Whether the device may hold other rows than the host wrote.
    _is_diverged: bool = False
    _grouping: Grouping | None = field(default=None, repr=False)
    _plan: StepPlan | None = field(default=None, repr=False)
    _is_grouped: bool = False

    @classmethod
    def allocate(cls, max_num_tokens: int, device: torch.device | str) -> "TokenRows":
        """Allocate for steps of up to so many tokens, padding included.

        Raises:
            ValueError: there are no tokens.
        """
        check_size("max_num_tokens", max_num_tokens)
        return cls(torch.zeros(max_num_tokens, dtype=torch.int32, device=device))

    def assign(self, values: torch.Tensor, *, is_conditional: bool = False) -> None:
        """Write the rows of a step's tokens, before its forward pass; copies only what changed.

        Args:
            values: ``[n]`` int32 on the CPU; may be reused at once. 0 for tokens of conditional requests.
            is_conditional: ``read_flags_`` and ``decide_`` may set rows in this step.

        Raises:
            ValueError: too many tokens, another dtype, or a negative row.
        """
        check_values("values", values, 0, _INT32_MAX, len(self.tensor))
        self.is_idle = not is_conditional and not bool(values.any())
        before = self._written
        if self._is_diverged or not torch.equal(values, before):
            if not (self.is_idle and not len(before) and not self._is_diverged):
                self._copy(values, max(len(values), len(before)))
            self._written = values.clone() if not self.is_idle else values[:0].clone()
        self._is_diverged = is_conditional

    def clear(self) -> None:
        """Write zeros: a step in which no token has a row; free where that is so already."""
        if not self.is_idle:
            self.assign(torch.zeros(len(self._written), dtype=torch.int32))

    def _copy(self, values: torch.Tensor, length: int) -> None:
        # A new buffer each time: the copy of the step before may still be reading its own.
        is_pinned = self.tensor.device.type == "cuda"
        buffer = torch.zeros(length, dtype=torch.int32, pin_memory=is_pinned)
        buffer[: len(values)].copy_(values)
        self.tensor[:length].copy_(buffer, non_blocking=True)
        self._is_grouped = False

    def touch(self) -> None:
        """Note that an operation changed ``tensor``; matters on a CPU only."""
        self._is_grouped = False

    def grouping(self, num_tokens: int) -> Grouping:
        """Return the step's tokens grouped by row, the same object as long as no row changed; CPU only."""
        known = self._grouping
        if known is not None and self._is_grouped and len(known.rows) == num_tokens:
            return known
        rows = self.tensor[:num_tokens]
        if known is None or not torch.equal(known.rows, rows):
            known = self._grouping = Grouping.of(rows)
        self._is_grouped = True
        return known

    def plan(self, table: SteeringTable, num_tokens: int) -> StepPlan | None:
        """Return what the layers do to the tokens of this step; None for nothing; CPU only."""
        if self.is_idle:
            return None
        plan, grouping = self._plan, self.grouping(num_tokens)
        if (
            plan is None
            or plan.grouping is not grouping
            or plan.table is not table
            or plan.version != table.version
        ):
            plan = self._plan = StepPlan(grouping, table, table.version)
        return plan


@dataclass(eq=False)
class StepRequests:
    """The requests of a step, as far as conditions are concerned."""

    #: ``[5, max_num_reqs + 1]`` int32 on the device, rows as in ``REQUEST_FIELDS``. ``query_start`` has one
    #: more than there are requests: request ``q`` has the step's tokens ``query_start[q]`` to
    #: ``query_start[q + 1]``, the first at its position ``start[q]``. Its prompt is at ``first[q]`` to
    #: ``stop[q]``, a prefix not counted. ``row`` is 0 for a request without a condition, and beyond the last.
    fields: torch.Tensor
    #: ``[max_num_reqs, max_blocks]`` int32 on the device, not this object's own.
    block_table: torch.Tensor
    block_size: int
    #: Whether no request of the step has a condition.
    is_idle: bool = True
    #: What was assigned last.
    host: torch.Tensor = field(default_factory=lambda: torch.zeros(5, 1, dtype=torch.int32), repr=False)
    #: Those of them that have a condition, and its row.
    conditional: tuple[tuple[int, int], ...] = ()

    @classmethod
    def allocate(
        cls, max_num_reqs: int, block_table: torch.Tensor, block_size: int, device: torch.device | str
    ) -> "StepRequests":
        """Allocate for steps of up to so many requests.

        Args:
            max_num_reqs: padding included.
            block_table: ``[max_num_reqs or more, max_blocks]`` int32, where the engine keeps it; read by the
                operations.
            block_size: slots of a block of that table.
            device: the table's.

        Raises:
            ValueError: a size is below 1, or the table is another.
        """
        check_size("max_num_reqs", max_num_reqs)
        check_size("block_size", block_size)
        if block_table.ndim != 2 or block_table.dtype != torch.int32 or len(block_table) < max_num_reqs:
            raise ValueError(
                f"block_table: expected [{max_num_reqs}, max_blocks] torch.int32, "
                f"got {list(block_table.shape)} {block_table.dtype}"
            )
        fields = torch.zeros(len(REQUEST_FIELDS), max_num_reqs + 1, dtype=torch.int32, device=device)
        return cls(fields, block_table, block_size)

    @property
    def max_num_reqs(self) -> int:
        """Requests that fit."""
        return self.fields.shape[1] - 1

    def assign(
        self,
        query_start: torch.Tensor,
        start: torch.Tensor,
        row: torch.Tensor,
        first: torch.Tensor,
        stop: torch.Tensor,
    ) -> None:
        """Write the requests of a step, before its forward pass; see ``fields``.

        All are int32 on the CPU, ``query_start`` one longer than the others, and may be reused at once.

        Raises:
            ValueError: lengths that differ, too many requests, another dtype, or negative numbers.
        """
        columns = (query_start, start, row, first, stop)
        host = check_step_values(REQUEST_FIELDS, columns, self.max_num_reqs)
        if not bool(row.any()):
            self.clear()
            return
        if self.fields.device.type == "cuda":
            host = host.pin_memory()
        self.fields.copy_(host, non_blocking=True)
        self.host, self.is_idle = host, False
        self.conditional = tuple((i, number) for i, number in enumerate(row.tolist()) if number)

    def clear(self) -> None:
        """Note that no request of the step has a condition; free where that is so already."""
        if not self.is_idle:
            self.fields.zero_()
            self.host, self.is_idle = torch.zeros_like(self.fields, device="cpu"), True
            self.conditional = ()
