"""The vectors of one worker: in host memory, where the front end put them, and in rows of the device's table.

Everything runs on the thread of the steps. Rows are a cache of host memory: a vector without one is copied
into the table, on the stream of the forward pass that needs it, when a step needs it. Invariant: a row that
the step at hand needs is never given to another vector.
"""

from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load as load_safetensors

from server.engine.steering_conditions import HostedCondition
from server.engine.stores import Layout
from steering_kernels import ConditionTable, Form, SteeringTable

VECTOR, PROBES = "vector", "probes"


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What a vector has to fit, and the part of it that this rank uses."""

    num_layers: int
    hidden_size: int
    #: This rank's layers, as indices into the model's.
    layers: Sequence[int]

    def check(self, layout: Layout) -> None:
        """Compare the tensors of a patch with the model.

        Raises:
            ValueError: They don't fit.
        """
        expected = [[self.num_layers, self.hidden_size], "float32"]
        got = [list(layout[VECTOR][0]), layout[VECTOR][1]] if VECTOR in layout else None
        if got != expected:
            raise ValueError(f"{VECTOR}: expected {expected[0]} {expected[1]}, got {got}")


@dataclass(frozen=True, slots=True)
class _Hosted:
    #: [L_rank, d] float32.
    vector: torch.Tensor
    form: Form
    condition: HostedCondition | None
    #: Of the whole patch, as it was sent.
    layout: Layout


def form_of(facts: Mapping[str, Any]) -> Form:
    """Return how a vector acts, of the manifest's ``steering``."""
    steering = facts["steering"]
    strength = float(steering["strength"])
    is_relative = steering["scale"] == "relative"
    return Form(
        steering["site"],
        absolute=0.0 if is_relative else strength,
        relative=strength if is_relative else 0.0,
        opposed_gain=float(steering["opposed_gain"]),
        is_renormalised=bool(steering["renormalise"]),
    )


class VectorStore:
    """Holds vectors for the steps of one worker."""

    def __init__(
        self, shape: ModelShape, table: SteeringTable, conditions: ConditionTable, num_slots: int
    ) -> None:
        self._shape = shape
        self._table = table
        self._conditions = conditions
        #: Why vectors with a condition can't act here, until it is known that they can.
        self.condition_problem: str | None = "there is no KV cache yet"
        self._hosted: dict[str, _Hosted] = {}
        #: Digest -> row of the table, least recently used first. Row 0 is nobody's.
        self._rows: OrderedDict[str, int] = OrderedDict()
        self._free = list(range(num_slots, 0, -1))

    def check(self, digest: str, layout: Layout, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Confirm that a vector could be held here.

        Returns:
            ``digest``, ``layout`` of the whole patch and ``nbytes`` of the part that this rank would hold.

        Raises:
            ValueError: It does not have this model's shape or dtype, or a condition, where that can't be.
        """
        self._shape.check(layout)
        if facts.get("condition") is not None and self.condition_problem is not None:
            raise ValueError(
                f"a steering patch with a condition cannot be served here: {self.condition_problem}"
            )
        nbytes = len(self._shape.layers) * self._shape.hidden_size * 4
        return {"digest": digest, "layout": dict(layout), "nbytes": nbytes}

    def load(self, digest: str, blob: bytes, is_pinned: bool, facts: Mapping[str, Any]) -> None:
        """Put a vector into host memory; what is there already stays as it is.

        Args:
            digest: The patch's digest.
            blob: Safetensors bytes with the tensors of the whole patch.
            is_pinned: Of no account: a vector is copied into a row in less time than a step takes.
            facts: The manifest's ``steering`` and ``condition``.

        Raises:
            ValueError: It does not have this model's shape or dtype.
        """
        if digest in self._hosted:
            return
        tensors = load_safetensors(blob)
        layout = {name: (list(t.shape), str(t.dtype).removeprefix("torch.")) for name, t in tensors.items()}
        self.check(digest, layout, facts)
        vector = tensors[VECTOR][list(self._shape.layers)].contiguous()
        condition = None
        if facts.get("condition") is not None:
            condition = HostedCondition.of(facts["condition"], tensors[PROBES])
        self._hosted[digest] = _Hosted(vector, form_of(facts), condition, layout)

    def loaded(self, digest: str) -> dict[str, Any]:
        """Return what ``check`` says of a vector that is in host memory.

        Raises:
            ValueError: It was never sent.
        """
        if digest not in self._hosted:
            raise ValueError(f"vector {digest} was not sent")
        hosted = self._hosted[digest]
        return {"digest": digest, "layout": dict(hosted.layout), "nbytes": hosted.vector.nbytes}

    def unload(self, digest: str) -> int:
        """Drop a vector and return the bytes of host memory set free; 0 where it was not there."""
        row = self._rows.pop(digest, None)
        if row is not None:
            self._free.append(row)
        dropped = self._hosted.pop(digest, None)
        return 0 if dropped is None else dropped.vector.nbytes

    def resident(self) -> dict[str, int]:
        """Return digest -> bytes for what is in host memory."""
        return {digest: hosted.vector.nbytes for digest, hosted in self._hosted.items()}

    def in_slots(self) -> list[str]:
        """Return the digests that have a row of the table, least recently used first."""
        return list(self._rows)

    def conditions(self) -> dict[str, HostedCondition]:
        """Return the conditions of the vectors that have one."""
        hosted = self._hosted.items()
        return {digest: one.condition for digest, one in hosted if one.condition is not None}

    def bring(self, digests: Collection[str]) -> dict[str, int]:
        """Bring the vectors of a step into the table.

        Returns:
            Digest -> row, without those that are not resident or for which no row is left.
        """
        # Those that are there first, so that none of them gives way to another of this step.
        for digest in digests:
            if digest in self._rows:
                self._rows.move_to_end(digest)
        for digest in digests:
            if digest not in self._rows and digest in self._hosted and self._make_room(digests):
                row = self._rows[digest] = self._free.pop()
                self._put(row, self._hosted[digest])
        return {digest: self._rows[digest] for digest in digests if digest in self._rows}

    def _put(self, row: int, hosted: _Hosted) -> None:
        self._table.put(row, hosted.vector, hosted.form)
        condition = hosted.condition
        if condition is None:
            self._conditions.clear(row)
        else:
            self._conditions.put(
                row, condition.vectors, condition.probes, condition.num_needed, condition.is_shadow
            )

    def _make_room(self, kept: Collection[str]) -> bool:
        if not self._free:
            oldest = next(iter(self._rows), None)
            if oldest is None or oldest in kept:
                return False
            self._free.append(self._rows.pop(oldest))
        return True
