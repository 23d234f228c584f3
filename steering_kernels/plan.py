"""Which tokens a layer moves, and by which vectors: found out once a step, on a CPU.

Most layers of a step do the same, so a step has a few moves, and each layer names one of them. As long as no
row and no vector changes, as from one token of an answer to the next, the plan of the step before holds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import compress

import torch

from steering_kernels.layout import PARAMETER_COLUMNS, Form, SteeringTable


@dataclass(frozen=True, slots=True)
class Grouping:
    """The tokens of a step that have a row."""

    #: ``[T]`` int32, what was grouped.
    rows: torch.Tensor
    #: ``[n]`` int64, rising: the tokens whose row is not 0.
    tokens: torch.Tensor
    #: ``[n]`` int64: their rows.
    token_rows: torch.Tensor
    #: The rows that occur, rising.
    distinct: tuple[int, ...]

    @classmethod
    def of(cls, rows: torch.Tensor) -> "Grouping":
        """Group the tokens of a step."""
        tokens = rows.nonzero().flatten()
        token_rows = rows.index_select(0, tokens).long()
        return cls(rows.clone(), tokens, token_rows, tuple(torch.unique(token_rows).tolist()))

    def of_rows(self, chosen: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the tokens that have one of these rows, and their rows."""
        if len(chosen) == len(self.distinct):
            return self.tokens, self.token_rows
        is_chosen = torch.isin(self.token_rows, torch.tensor(chosen))
        return self.tokens[is_chosen], self.token_rows[is_chosen]


def span_of(tokens: torch.Tensor) -> tuple[int, int] | None:
    """Return the first of rising tokens and the one past the last where they lie side by side, else None."""
    first, last = int(tokens[0]), int(tokens[-1])
    return (first, last + 1) if last - first + 1 == len(tokens) else None


@dataclass(frozen=True, slots=True)
class Move:
    """What is to be done at some layers; the tensors of parameters are ``[1, 1]`` or ``[n, 1]`` float32."""

    #: The tokens where they lie side by side, see ``span_of``.
    span: tuple[int, int] | None
    tokens: torch.Tensor
    #: The one row of all tokens; None where they have several.
    row: int | None
    token_rows: torch.Tensor
    absolute: torch.Tensor
    relative: torch.Tensor
    opposed_gain: torch.Tensor
    #: Bool; None where all tokens keep their length, or none does.
    changes_length: torch.Tensor | None
    is_renormalised: bool
    #: The strength where it is relative, one for all and never raised: the shortest way.
    plain_relative: float | None
    needs_norm: bool
    needs_cosine: bool

    @classmethod
    def of(cls, grouping: Grouping, table: SteeringTable, acting: Sequence[int]) -> "Move":
        """Plan what these rows do, at least one."""
        tokens, token_rows = grouping.of_rows(acting)
        # Most vectors act in the same way, and then so do most steps.
        is_uniform = _are_alike([table.forms[row] for row in acting])
        parameters = table.parameters[acting[0]] if is_uniform else table.parameters[token_rows]
        columns = parameters.view(-1, len(PARAMETER_COLUMNS), 1).unbind(1)
        absolute, relative, opposed_gain, renormalise = (column.contiguous() for column in columns)
        has = {name: bool(column.any()) for name, column in zip(PARAMETER_COLUMNS, columns, strict=True)}
        is_plain = is_uniform and not has["absolute"] and not has["opposed_gain"]
        return cls(
            span=span_of(tokens),
            tokens=tokens,
            row=acting[0] if len(acting) == 1 else None,
            token_rows=token_rows,
            absolute=absolute,
            relative=relative,
            opposed_gain=opposed_gain,
            changes_length=renormalise == 0 if has["is_renormalised"] and not renormalise.all() else None,
            is_renormalised=has["is_renormalised"],
            plain_relative=float(relative) if is_plain else None,
            needs_norm=has["relative"] or has["opposed_gain"] or has["is_renormalised"],
            needs_cosine=has["opposed_gain"],
        )


def _are_alike(forms: Sequence[Form | None]) -> bool:
    parameters = {form.parameters for form in forms if form is not None}
    return len(parameters) == 1


@dataclass(frozen=True, slots=True)
class LayerMove:
    """A move, and what one layer moves by."""

    move: Move
    #: ``[d]`` where all tokens have one row; else ``[R, d]``, to be gathered by ``move.token_rows``. What was
    #: gathered is not kept: fresh memory for each layer costs more than the copies do.
    vectors: torch.Tensor
    #: The vector's length, ``[]`` or ``[n, 1]``; None where the move needs no cosine.
    length: torch.Tensor | None

    @classmethod
    def of(cls, move: Move, table: SteeringTable, site: int, layer: int) -> "LayerMove":
        """Look the vectors up."""
        if move.row is not None:
            length = table.norms[site, layer, move.row] if move.needs_cosine else None
            return cls(move, table.vectors[layer, move.row], length)
        lengths = table.norms[site, layer, move.token_rows, None] if move.needs_cosine else None
        return cls(move, table.vectors[layer], lengths)

    @property
    def vector(self) -> torch.Tensor:
        """``[d]`` or ``[n, d]``."""
        if self.move.row is not None:
            return self.vectors
        return self.vectors.index_select(0, self.move.token_rows)


@dataclass(eq=False, slots=True)
class StepPlan:
    """The moves of a step, each made when a layer first asks for it."""

    grouping: Grouping
    table: SteeringTable
    version: int
    _of_layer: dict[tuple[int, int], LayerMove | None] = field(default_factory=dict)
    _of_rows: dict[tuple[int, ...], Move | None] = field(default_factory=lambda: {(): None})
    #: ``[2][L][distinct]``: whether a row acts at a site and layer.
    _acts: list[list[list[bool]]] = field(init=False)

    def __post_init__(self) -> None:
        self._acts = self.table.norms[:, :, list(self.grouping.distinct)].bool().tolist()

    def move(self, site: int, layer: int) -> LayerMove | None:
        """Return what a layer does to the tokens of this step; None for nothing."""
        try:
            return self._of_layer[site, layer]
        except KeyError:
            return self._made(site, layer)

    def _made(self, site: int, layer: int) -> LayerMove | None:
        acting = tuple(compress(self.grouping.distinct, self._acts[site][layer]))
        if acting not in self._of_rows:
            self._of_rows[acting] = Move.of(self.grouping, self.table, acting)
        move = self._of_rows[acting]
        made = None if move is None else LayerMove.of(move, self.table, site, layer)
        self._of_layer[site, layer] = made
        return made
