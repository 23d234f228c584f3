"""How much of each layer and module is critical: the figures of the paper's picture."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from patches.critical.selection import Selection
from patches.deltas.linear import layer_of


@dataclass(frozen=True)
class Cell:
    """One module of one layer, or several together."""

    num_chosen: int
    num_weights: int

    @property
    def share(self) -> float:
        """How much of it is chosen."""
        return self.num_chosen / self.num_weights

    def __add__(self, other: "Cell") -> "Cell":
        return Cell(self.num_chosen + other.num_chosen, self.num_weights + other.num_weights)


@dataclass(frozen=True)
class Shares:
    """Chosen weights by layer and module, such as ``self_attn.v_proj``."""

    cells: Mapping[tuple[int, str], Cell]

    @property
    def layers(self) -> list[int]:
        """The layers, rising."""
        return sorted({layer for layer, _ in self.cells})

    @property
    def modules(self) -> list[str]:
        """The modules, attention's first, in the order of a layer."""
        order = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
        names = {module for _, module in self.cells}
        last = {name: name.rpartition(".")[2] for name in names}
        return sorted(
            names, key=lambda name: (order.index(last[name]) if last[name] in order else len(order), name)
        )

    @property
    def whole(self) -> Cell:
        """All of it."""
        return _sum(self.cells.values())

    def of_module(self, module: str) -> Cell:
        """Return a module in all layers."""
        return _sum(cell for (_, name), cell in self.cells.items() if name == module)

    def of_layer(self, layer: int) -> Cell:
        """Return a layer with all modules."""
        return _sum(cell for (number, _), cell in self.cells.items() if number == layer)


def shares_of(selection: Selection) -> Shares:
    """Count chosen weights by layer and module."""
    cells: dict[tuple[int, str], Cell] = {}
    for name, (rows, columns) in selection.shapes.items():
        layer = layer_of(name)
        module = name.removesuffix(".weight").partition(f"layers.{layer}.")[2]
        cell = Cell(len(selection.positions.get(name, ())), rows * columns)
        cells[layer, module] = cells.get((layer, module), Cell(0, 0)) + cell
    return Shares(cells)


def _sum(cells: Iterable[Cell]) -> Cell:
    return sum(cells, start=Cell(0, 0))
