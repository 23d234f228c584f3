"""The tables on a device: which vectors are resident, how each acts, and at which of the two sites.

A token names a row; row 0 acts nowhere. Vectors are kept a layer at a time, so that a layer reads one
contiguous matrix. Addresses never change: captured CUDA graphs hold them.
"""

from dataclasses import dataclass, field
from typing import Literal, get_args

import torch

from steering_kernels.checks import check_form, check_row, check_size, check_vector

Site = Literal["residual", "mlp"]

#: Index of a site in ``SteeringTable.norms``: what comes out of a layer, and what comes out of its MLP.
SITES: tuple[Site, ...] = get_args(Site)

#: Columns of ``SteeringTable.parameters``.
PARAMETER_COLUMNS = ("absolute", "relative", "opposed_gain", "is_renormalised")

#: What stands for a norm of zero where something is divided by it: far below any norm of a real token.
TINY = 1e-20


@dataclass(frozen=True, slots=True)
class Form:
    """How a vector acts.

    Semantics: with ``x`` a token's state at the site and ``v`` the layer's vector,
    ``u = x + (absolute + relative * |x|) * (1 + opposed_gain * max(0, -cos(x, v))) * v``, and the token
    becomes ``u * |x| / |u|`` where ``is_renormalised``, else ``u``. Float32 inside, rounded once. The cosine
    with ``x = 0`` is 0; where ``u = 0`` the token becomes 0.
    """

    site: Site
    absolute: float = 0.0
    relative: float = 0.0
    opposed_gain: float = 0.0
    is_renormalised: bool = True

    @property
    def parameters(self) -> tuple[float, float, float, float]:
        """A row of ``SteeringTable.parameters``."""
        return (self.absolute, self.relative, self.opposed_gain, float(self.is_renormalised))


@dataclass(eq=False)
class SteeringTable:
    """The vectors that a rank can apply, a row each. Filled between steps, read by every layer."""

    #: ``[L, R, d]`` float32; row 0 is zero.
    vectors: torch.Tensor
    #: ``[R, 4]`` float32, columns as in ``PARAMETER_COLUMNS``.
    parameters: torch.Tensor
    #: ``[2, L, R]`` float32: the length of a row's vector at the site where it acts, 0 at the other. Where
    #: it is 0 the row does nothing.
    norms: torch.Tensor
    #: What ``parameters`` says, for the host.
    forms: list[Form | None]
    #: Counts what was put and cleared; plans made before are stale.
    version: int = field(default=0)

    @classmethod
    def allocate(
        cls, num_layers: int, num_rows: int, hidden_size: int, device: torch.device | str
    ) -> "SteeringTable":
        """Allocate a table in which no row acts.

        Raises:
            ValueError: a size is below 1.
        """
        check_size("num_layers", num_layers)
        check_size("num_rows", num_rows)
        check_size("hidden_size", hidden_size)
        return cls(
            torch.zeros(num_layers, num_rows, hidden_size, device=device),
            torch.zeros(num_rows, len(PARAMETER_COLUMNS), device=device),
            torch.zeros(len(SITES), num_layers, num_rows, device=device),
            [None] * num_rows,
        )

    @property
    def device(self) -> torch.device:
        """Where the table lies."""
        return self.vectors.device

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors."""
        return self.vectors.nbytes + self.parameters.nbytes + self.norms.nbytes

    def put(self, row: int, vector: torch.Tensor, form: Form) -> None:
        """Fill a row.

        Args:
            row: from 1 on; what it held is replaced.
            vector: ``[L, d]`` float32, finite, any device; a zero row leaves its layer alone. Not changed.
            form: how it acts.

        Raises:
            ValueError: an argument does not fit.
        """
        num_layers, num_rows, hidden_size = self.vectors.shape
        check_row(row, num_rows)
        check_vector(vector, num_layers, hidden_size)
        check_form(form.site, form.parameters, SITES)
        self.vectors[:, row].copy_(vector)
        self.parameters[row].copy_(torch.tensor(form.parameters))
        self.norms[:, :, row].zero_()
        # In double precision: a vector whose squares underflow is short, not absent.
        norms = torch.linalg.vector_norm(vector.detach().double(), dim=-1)
        self.norms[SITES.index(form.site), :, row].copy_(norms)
        self.forms[row] = form
        self.version += 1

    def clear(self, row: int) -> None:
        """Make a row act nowhere.

        Raises:
            ValueError: there is no such row, or it is row 0.
        """
        check_row(row, len(self.forms))
        self.vectors[:, row].zero_()
        self.parameters[row].zero_()
        self.norms[:, :, row].zero_()
        self.forms[row] = None
        self.version += 1
