"""Finds the requests whose vector has made states that are not finite: the last thing a rank does in a step.

A step too long for the model's dtype, most likely float16, makes infinities, and what follows of them is NaN:
in the stream up to the last layer, so that it shows there, and in the K and V of the layers between. Such a
request must not answer, and what it wrote must not stay: a later owner of the block may read a part of it
that is not its own. Nothing is waited for: on a GPU the flags are read once they have reached the host.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from server.engine.steering_conditions import SlotView
from steering_kernels import TokenRows

#: Id of a request, and its tokens in the step's batch, from the first to before the last.
Span = tuple[str, int, int]


@dataclass(frozen=True, slots=True)
class Broken:
    """What a request left in the KV cache that is not finite."""

    req_id: str
    #: KV-cache group -> slots.
    slots: Mapping[int, torch.Tensor]


@dataclass(frozen=True, slots=True)
class StepCheck:
    """What the states of a step were, once that has reached the host."""

    spans: tuple[Span, ...]
    #: ``[tokens]`` bool, on the CPU.
    flags: torch.Tensor
    slots: Mapping[int, torch.Tensor]
    event: torch.cuda.Event | None
    #: Requests that have ended or lost their blocks since.
    gone: set[str] = field(default_factory=set)

    @property
    def is_known(self) -> bool:
        """Whether the flags are there."""
        return self.event is None or self.event.query()

    def wait(self) -> "StepCheck":
        """Return once the flags are there."""
        if self.event is not None:
            self.event.synchronize()
        return self

    def broken(self) -> list[Broken]:
        """Return the requests that have a token whose state is not finite."""
        found = []
        for req_id, begin, stop in self.spans:
            tokens = self.flags[begin:stop].nonzero().flatten() + begin
            if len(tokens):
                slots = {group: of[tokens.to(of.device)] for group, of in self.slots.items()}
                found.append(Broken(req_id, slots))
        return found


class StateGuard:
    """Looks at the states that leave one rank."""

    def __init__(self, max_num_tokens: int, device: torch.device) -> None:
        self._flags = torch.zeros(max_num_tokens, dtype=torch.bool, device=device)
        self._spans: tuple[Span, ...] = ()
        self._is_on_host = device.type == "cpu"
        #: Whether the flags have to be read; on a GPU the host knows that a step later.
        self._is_raised = not self._is_on_host
        self._pending: list[StepCheck] = []
        #: Of the step at hand; None where it has nothing to look at.
        self.latest: StepCheck | None = None

    def begin_step(self, spans: Sequence[Span]) -> None:
        """Take which requests of a step a vector may act on."""
        self._spans, self.latest = tuple(spans), None
        self._is_raised = not self._is_on_host

    def after_last_layer(self, hidden: torch.Tensor, residual: torch.Tensor, rows: TokenRows) -> None:
        """Flag the steered tokens whose state is not finite; both ``[tokens, d]``, not changed."""
        if self._is_on_host and rows.is_idle:
            return
        state = hidden + residual
        if self._is_on_host and math.isfinite(float(state.sum(dtype=torch.float32))):
            return
        is_finite = state.sum(-1, dtype=torch.float32).isfinite()
        torch.logical_and(~is_finite, rows.tensor[: len(state)] > 0, out=self._flags[: len(state)])
        self._is_raised = True

    def end_step(self, views: Mapping[int, SlotView]) -> None:
        """Send the flags to the host, after the layers have run.

        Args:
            views: KV-cache group -> where the step's slots are.
        """
        if not self._spans or not self._is_raised:
            return
        num_tokens = max(stop for _, _, stop in self._spans)
        event, flags = None, self._flags[:num_tokens]
        slots = {group: view.slots[:num_tokens].clone() for group, view in views.items()}
        if self._is_on_host:
            flags = flags.clone()
        else:
            flags = flags.to("cpu", non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self.latest = StepCheck(self._spans, flags, slots, event)
        self._pending.append(self.latest)
        self._spans = ()

    def note_gone(self, req_ids: Collection[str]) -> None:
        """Note that requests have lost their blocks, which others may write to from the next step on."""
        for check in self._pending:
            check.gone.update(req_ids)

    def take_broken(self) -> list[Broken]:
        """Return what has been found since the last call, of requests that still own their blocks."""
        found: list[Broken] = []
        while self._pending and self._pending[0].is_known:
            check = self._pending.pop(0)
            found += [broken for broken in check.broken() if broken.req_id not in check.gone]
        return found
