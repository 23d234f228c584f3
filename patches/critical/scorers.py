"""The scorers that there are: our own, and those of installed packages by entry point."""

from importlib.metadata import entry_points

from patches.critical.margin import NAME, RefusalMargin
from patches.critical.scorer import GROUP, MakeScorer, Questions, Scorer
from patches.errors import ScoresError
from patches.model import LoadedModel


def scorer_names() -> list[str]:
    """Return the names of the scorers that are installed, ours first."""
    return [NAME, *sorted(point.name for point in entry_points(group=GROUP))]


def make_scorer(name: str, model: LoadedModel, questions: Questions) -> Scorer:
    """Make the scorer of this name.

    Raises:
        ScoresError: None is installed under this name, or it can't be loaded.
        TrainingError: The model has no chat template.
    """
    if name == NAME:
        return RefusalMargin(model, questions)
    found = list(entry_points(group=GROUP, name=name))
    if not found:
        known = ", ".join(scorer_names())
        raise ScoresError(
            f"scorer: expected one of {known}, got {name!r}; install the package that brings it, as an entry "
            f"point of {GROUP}"
        )
    try:
        make: MakeScorer = found[0].load()
    except (ImportError, AttributeError) as error:
        raise ScoresError(f"scorer: {name} can't be loaded from {found[0].value}: {error}") from error
    return make(model, questions)
