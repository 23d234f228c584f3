"""What is forked from the preloaded process is as good as a program that was started anew."""

import json
import os
import signal
import subprocess
import textwrap
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.e2e.preload import Preload, import_environment, is_forked

pytestmark = pytest.mark.server("none")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("preload")


@pytest.fixture(scope="module")
def preload(folder: Path) -> Iterator[Preload]:
    """One that has imported nothing, which is faster."""
    with Preload(folder / "preload.log", modules=()) as preload:
        yield preload


class Run:
    """One process of a preloaded one, and what it wrote."""

    def __init__(self, preload: Preload, folder: Path, source: str, *arguments: str, **env: str) -> None:
        name = f"ordered_{uuid.uuid4().hex}"
        self.file = folder / f"{name}.py"
        self.file.write_text(textwrap.dedent(source))
        self._log = self.file.with_suffix(".log")
        with self._log.open("wb") as out:
            self.process = preload.start([name, *arguments], out, out, env=env, folder=folder)

    def ended(self) -> int:
        return self.process.wait(60)

    @property
    def output(self) -> str:
        return self._log.read_text()


def test_a_fork_has_the_arguments_and_the_environment_of_its_order_alone(
    preload: Preload, folder: Path
) -> None:
    run = Run(
        preload,
        folder,
        """
        import json, os, sys, __main__
        print(json.dumps([sys.argv, dict(os.environ), os.getsid(0), __main__.__spec__.name]))
        """,
        "--flag",
        COLOUR="blue",
    )
    assert run.ended() == 0, run.output
    argv, environment, session, main_name = json.loads(run.output)
    assert argv == [str(run.file), "--flag"]
    assert environment == {"COLOUR": "blue"}
    assert (session, main_name) == (run.process.pid, run.file.stem)


@pytest.mark.parametrize(
    ("source", "status"),
    [
        ("pass", 0),
        ("raise SystemExit(7)", 7),
        ("1 / 0", 1),
        ("import os; os.abort()", -signal.SIGABRT),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
    ],
)
def test_a_fork_ends_with_the_status_of_a_program(
    preload: Preload, folder: Path, source: str, status: int
) -> None:
    assert Run(preload, folder, source).ended() == status


def test_a_signal_reaches_the_fork_and_no_other(preload: Preload, folder: Path) -> None:
    source = "import time; time.sleep(600)"
    one, other = (Run(preload, folder, source).process for _ in range(2))
    with pytest.raises(subprocess.TimeoutExpired):
        one.wait(0)
    one.terminate()
    assert one.wait(60) == -signal.SIGTERM
    assert other.poll() is None
    other.kill()
    assert other.wait(60) == -signal.SIGKILL


#: A process that starts another as vLLM does, and says what both saw.
SPAWNS = """
    import json, multiprocessing, os, sys, threading
    from tests.e2e.preload import is_forked

    def child(out):
        processes = [os.getppid(), os.getpgid(0)]
        out.send([is_forked(os.getpid()), *processes, dict(os.environ), threading.active_count()])
        out.close()
        print("the child's line", flush=True)
        sys.exit(5)

    if __name__ == "__main__":
        os.environ.update(json.loads(sys.argv[1]))
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=child, args=[theirs])
        threading.Thread(target=threading.Event().wait, daemon=True).start()
        process.start()
        theirs.close()
        answer = ours.recv()
        process.join(60)
        print(json.dumps([*answer, process.exitcode, os.getpid()]))
"""


@pytest.mark.parametrize(
    ("change", "is_fork"), [({"COLOUR": "red"}, True), ({"OMP_NUM_THREADS": "7"}, False)]
)
def test_what_a_fork_spawns_is_its_child_and_a_fork_unless_libraries_would_load_otherwise(
    preload: Preload, folder: Path, change: dict[str, str], is_fork: bool
) -> None:
    run = Run(preload, folder, SPAWNS, json.dumps(change), **os.environ | import_environment())
    assert run.ended() == 0, run.output
    line, last = run.output.splitlines()
    forked, parent, group, environment, num_threads, status, pid = json.loads(last)
    assert line == "the child's line"
    assert (forked, parent, group, num_threads, status) == (is_fork, pid, pid, 1, 5)
    assert change.items() <= environment.items()


#: A process that starts another, which waits until its parent is gone.
LEAVES = """
    import multiprocessing, os, signal, sys

    def child():
        print(os.getpid(), flush=True)
        multiprocessing.parent_process().join()

    if __name__ == "__main__":
        multiprocessing.get_context("spawn").Process(target=child).start()
        signal.pause()
"""


def test_children_of_a_fork_notice_that_it_was_killed(preload: Preload, folder: Path) -> None:
    run = Run(preload, folder, LEAVES, **os.environ | import_environment())
    wait_until(lambda: run.output.endswith("\n"))
    child = psutil.Process(int(run.output))
    assert is_forked(child.pid)
    run.process.kill()
    run.ended()
    assert psutil.wait_procs([child], 60)[0] == [child]


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_everything_ends_with_the_tests(folder: Path) -> None:
    with Preload(folder / "other.log", modules=()) as preload:
        process = Run(preload, folder, "import time; time.sleep(600)").process
        assert is_forked(process.pid)
    assert process.wait(60) == -signal.SIGKILL


def test_where_the_imports_fail_a_start_fails_at_once_and_says_why(folder: Path) -> None:
    with (
        Preload(folder / "failed.log", modules=["no_such_module"]) as preload,
        pytest.raises(RuntimeError, match="no_such_module"),
    ):
        Run(preload, folder, "pass")


def test_imports_start_no_thread_that_a_fork_would_lack(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    with Preload(folder / "numpy.log", modules=["numpy"]) as preload:
        assert Run(preload, folder, "import numpy").ended() == 0
