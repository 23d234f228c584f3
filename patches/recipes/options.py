"""The options of a training, as recipes and ``--set`` write them: the flags of ``policypatch train``."""

from collections.abc import Mapping
from typing import Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from patches.errors import RecipeInvalid, TrainingError
from patches.train.baselines import BASELINES
from patches.train.config import TrainConfig

#: The value of one.
Option = str | int | float
#: The patch that training continues from, in place of the policy text.
INIT_PATCH = "init-patch"
_STRICT = ConfigDict(strict=True, allow_inf_nan=False)
_SPELT = {"num_virtual_tokens": "tokens"}
_HINTS = get_type_hints(TrainConfig)
#: option -> field of the configuration. The seed is the caller's, and a baseline has an option of its own.
_FIELDS = {
    _SPELT.get(name, name.replace("_", "-")): name for name in _HINTS if name not in ("seed", "baseline")
}
_BASELINES = {baseline.option.replace("_", "-"): baseline.option for baseline in BASELINES.values()}


def require_options(options: Mapping[str, Option], where: str) -> None:
    """Check names, types and ranges, so that a run of hours does not end at a misspelt word.

    Raises:
        RecipeInvalid: One is unknown, or has a value that it can't have.
    """
    values: dict[str, Any] = {}
    for name, value in options.items():
        if name in _FIELDS:
            values[_FIELDS[name]] = _checked(name, value, where)
        elif name in _BASELINES:
            values["baseline"] = (_BASELINES[name], value)
        elif name != INIT_PATCH:
            known = ", ".join((*_FIELDS, *_BASELINES, INIT_PATCH))
            raise RecipeInvalid(f"{where}: {name}: unknown option, got {value!r}; expected one of {known}")
    try:
        TrainConfig.of(**values)
    except (TrainingError, TypeError) as error:
        raise RecipeInvalid(f"{where}: {error}") from None


def read_change(text: str) -> tuple[str, Option]:
    """Read ``OPTION=VALUE``.

    Raises:
        RecipeInvalid: It is nothing of the kind.
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise RecipeInvalid(f"--set: expected OPTION=VALUE, got {text!r}")
    try:
        return name, float(value) if "." in value or "e" in value.lower() else int(value)
    except ValueError:
        return name, value


def _checked(name: str, value: Option, where: str) -> Any:
    field = _FIELDS[name]
    if field == "stages":
        return tuple(str(value).split(","))
    try:
        return TypeAdapter(
            _HINTS[field], config=ConfigDict(strict=True, allow_inf_nan=False)
        ).validate_python(value)
    except ValidationError as error:
        expected = error.errors()[0]["msg"].removeprefix("Input should be ")
        raise RecipeInvalid(f"{where}: {name}: expected {expected}, got {value!r}") from None
