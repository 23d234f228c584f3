"""What a recipe says, as types: how one patch is made, from prompts to the flags of its training.

A recipe is YAML. Paths in it are looked up beside the file that names them::

    name: refuse-harm                 # of the patch
    version: 1.1.0
    license: Apache-2.0
    policy: refuse-harm.txt           # the text that training starts from
    prompts:                          # what the patch is about
      - {set: do-not-answer, limit: 350}
      - {file: mine.txt}              # one prompt a line; or .jsonl
      - {frames: twins.json, phrases: harmful}
    reference: {say: ["Sorry, I can't help with that."]}
    benign: [...]                     # sources like those of prompts: where it must change nothing
    documents: [...]                  # the same, as plain text to continue
    pairs: {max-tokens: 3}            # how answers are drawn: flags of `policypatch pairs`
    contrast: {max-tokens: 3}         # optional: benign prompts become pairs as well
    train: {kind: prefix, tokens: 16} # flags of `policypatch train`
    condition: {hard-negative: [...]} # of a steering patch: fitted to prompts and benign prompts
    critical: {num-prompts: 150}      # of a weight patch: how many prompts decide which weights learn

One that ``continues`` another takes from there all that it does not say itself, data included. With
``beside``, a patch learns among others, and what they are to say is among its benign rows.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from patches.errors import InvalidName, RecipeInvalid
from patches.label import Label
from patches.recipes.options import Option, require_options
from patches.text import read_text, said
from patches.yaml_text import parse_yaml

_CONFIG = ConfigDict(
    extra="forbid", strict=True, allow_inf_nan=False, alias_generator=lambda name: name.replace("_", "-")
)
_MAX_CHAIN = 20
#: How a path begins that another recipe's patch has, in the folder of all that is made.
MADE = "{made}"
#: The keys of a source that name files.
PATHS = ("file", "frames", "templates-in")


@dataclass(frozen=True)
class Source:
    """Where prompts come from, and how many; exactly one of set, file and frames."""

    __pydantic_config__: ClassVar[ConfigDict] = _CONFIG

    #: A name of ``patches.recipes.sets.SETS``.
    set: str | None = None
    #: One prompt a line, or rows of JSON as ``policypatch pairs`` takes them.
    file: str | None = None
    #: JSON with sets of frames, each of which is filled with each of its phrases.
    frames: str | None = None
    #: The key of the phrases.
    phrases: str = "phrases"
    #: Take the first sets of frames only.
    first: int | None = None
    limit: int | None = None
    #: Leave out prompts of so many characters or more, before any are chosen.
    shorter_than: int | None = None
    #: Each with ``{prompt}``, or ``{aim}`` for the prompt with a small first letter.
    templates: tuple[str, ...] = ("{prompt}",)
    #: The same, one a line of a text file; or those of ``patches.recipes.jailbreaks``.
    templates_in: str | None = None
    jailbreaks: bool = False

    def __post_init__(self) -> None:
        """Check that it names one place, and templates once.

        Raises:
            ValueError: It names none, or several.
        """
        given = [self.templates != ("{prompt}",), self.templates_in is not None, self.jailbreaks]
        if sum(given) > 1:
            raise ValueError("expected one of templates, templates-in and jailbreaks at most")
        named = [key for key in ("set", "file", "frames") if getattr(self, key) is not None]
        if len(named) != 1:
            raise ValueError(f"expected one of set, file and frames, got {' and '.join(named) or 'none'}")


@dataclass(frozen=True)
class Reference:
    """What the chosen answers are."""

    __pydantic_config__: ClassVar[ConfigDict] = _CONFIG

    #: One of these texts; the hash of the prompt chooses.
    say: tuple[str, ...] = ()
    #: The model's own answer, without gendered words.
    own: Literal["neutral"] | None = None
    #: With ``say``: one of these texts is the rejected answer, in place of the model's own.
    over: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check that it says what is to be said.

        Raises:
            ValueError: It does not, or says two things.
        """
        if bool(self.say) == (self.own is not None):
            raise ValueError("expected say, with a text at least, or own: neutral")
        if self.over and not self.say:
            raise ValueError("over: goes with say")


@dataclass(frozen=True)
class Answers:
    """How the model's own answers are drawn for pairs."""

    __pydantic_config__: ClassVar[ConfigDict] = _CONFIG

    dtype: str = "float32"
    max_tokens: int = 64
    batch_size: int = 8
    samples: int = 1
    temperature: float = 0.0
    test_share: float = 0.0


@dataclass(frozen=True)
class Contrast:
    """How the model answers benign prompts: chosen there, where the reference's answer is rejected."""

    __pydantic_config__: ClassVar[ConfigDict] = _CONFIG

    dtype: str = "float32"
    max_tokens: int = 64
    batch_size: int = 8
    #: How many of the prompts stay benign rows as well.
    benign: int = 0


@dataclass(frozen=True)
class Conditioning:
    """How the condition of a steering patch is fitted: to the recipe's prompts, and its benign ones."""

    __pydantic_config__: ClassVar[ConfigDict] = _CONFIG

    #: Harmless prompts that look like those that the patch is about.
    hard_negative: tuple[Source, ...] = ()
    false_positive_rate: float = 0.02
    hard_weight: float = 2.0


@dataclass(frozen=True)
class Critical:
    """How the weights are found that learn: by prompts and benign prompts of the recipe."""

    __pydantic_config__: ClassVar[ConfigDict] = _CONFIG

    #: Of each kind.
    num_prompts: int = 150


@dataclass(frozen=True, kw_only=True)
class RecipeDocument:
    """The keys of a recipe."""

    __pydantic_config__: ClassVar[ConfigDict] = _CONFIG

    name: str
    version: str
    license: str
    policy: str
    prompts: tuple[Source, ...]
    reference: Reference
    benign: tuple[Source, ...]
    documents: tuple[Source, ...] = ()
    pairs: Answers = Answers()
    contrast: Contrast | None = None
    condition: Conditioning | None = None
    critical: Critical | None = None
    #: Folder of another recipe's data -> its patch; ``{made}`` is the folder of all, ``{seed}`` the seed.
    beside: dict[str, str] = field(default_factory=dict)
    #: Rows that are taken from each of them.
    beside_rows: int = 100
    train: dict[str, Option]


@dataclass(frozen=True, kw_only=True)
class Recipe(RecipeDocument):
    """A recipe that was read, and where its results go."""

    #: The name of its file: the folder of its patches.
    stem: str
    #: The folder of its data: that of the recipe which it continues, if it does.
    data: str


def read_recipe(path: Path) -> Recipe:
    """Read a recipe, with what it takes from the one that it continues.

    Raises:
        RecipeInvalid: It can't be read, or says something unknown; the message names file, key and value.
    """
    document, data = _merged(path, _MAX_CHAIN)
    try:
        # By way of JSON, so that lists may be tuples in strict mode.
        read = TypeAdapter(RecipeDocument).validate_json(json.dumps(document), by_alias=True)
    except ValidationError as error:
        raise RecipeInvalid(f"{path}: {_explained(error.errors()[0])}") from None
    except TypeError as error:
        raise RecipeInvalid(f"{path}: expected text, numbers and lists alone: {error}") from None
    try:
        Label(read.name, read.version, license=read.license)
    except InvalidName as error:
        raise RecipeInvalid(f"{path}: {error}") from None
    require_options(read.train, f"{path}: train")
    if read.condition is not None and read.train.get("kind") != "steering":
        raise RecipeInvalid(f"{path}: condition: goes with train: {{kind: steering}}")
    if (read.critical is not None) != (read.train.get("kind") == "delta"):
        raise RecipeInvalid(f"{path}: critical: expected with train: {{kind: delta}}, and only with it")
    if not Path(read.policy).is_file():
        raise RecipeInvalid(f"{path}: policy: no such file: {read.policy}")
    return Recipe(**vars(read), stem=path.stem, data=data)


def _merged(path: Path, depth: int) -> tuple[dict[str, Any], str]:
    try:
        document = parse_yaml(read_text(path))
    except (OSError, ValueError) as error:
        raise RecipeInvalid(f"{path}: {said(error)}") from None
    if not isinstance(document, dict) or not all(isinstance(key, str) for key in document):
        raise RecipeInvalid(f"{path}: expected an object with the keys of a recipe")
    before, data = document.pop("continues", None), path.stem
    own = _with_whole_paths(document, path.parent)
    if before is None:
        return own, data
    if not isinstance(before, str) or depth == 0:
        raise RecipeInvalid(f"{path}: continues: expected another recipe, got {before!r}")
    inherited, data = _merged(path.parent / before, depth - 1)
    return inherited | own, data


def _with_whole_paths(document: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Look paths up beside the file that names them, before another file takes them over."""

    def whole(value: Any) -> Any:
        is_path = isinstance(value, str) and not value.startswith(MADE)
        return os.path.normpath(folder / value) if is_path else value

    def placed(source: Any) -> Any:
        if not isinstance(source, dict):
            return source
        return source | {key: whole(source[key]) for key in PATHS if key in source}

    found = dict(document)
    if "policy" in found:
        found["policy"] = whole(found["policy"])
    for key in ("prompts", "benign", "documents"):
        if isinstance(found.get(key), list):
            found[key] = [placed(source) for source in found[key]]
    condition = found.get("condition")
    if isinstance(condition, dict) and isinstance(condition.get("hard-negative"), list):
        hard = [placed(source) for source in condition["hard-negative"]]
        found["condition"] = condition | {"hard-negative": hard}
    train = found.get("train")
    if isinstance(train, dict) and "init-patch" in train:
        found["train"] = train | {"init-patch": whole(train["init-patch"])}
    if isinstance(found.get("beside"), dict):
        found["beside"] = {name: whole(patch) for name, patch in found["beside"].items()}
    return found


def _explained(problem: Any) -> str:
    where, value = ".".join(map(str, problem["loc"])) or "recipe", problem["input"]
    if problem["type"] == "missing":
        return f"{where}: is missing"
    if problem["type"] == "value_error":
        return f"{where}: {problem['ctx']['error']}"
    if "unexpected" in problem["type"] or problem["type"] == "extra_forbidden":
        return f"{where}: unknown key, got {value!r}; expected one of {', '.join(_keys_at(problem['loc']))}"
    expected = problem["msg"].removeprefix("Input should be ")
    return f"{where}: expected {expected}, got {value!r}"


def _keys_at(place: tuple[str | int, ...]) -> list[str]:
    kind: Any = RecipeDocument
    for part in place[:-1]:
        if isinstance(part, str):
            hint = get_type_hints(kind)[part.replace("-", "_")]
            kind = next(one for one in (hint, *get_args(hint)) if is_dataclass(one))
    return [one.name.replace("_", "-") for one in fields(kind)]
