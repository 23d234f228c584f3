"""The overhead benchmark as a whole, against stand-ins in processes of their own."""

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import overhead
from bench.overhead import OverheadOptions, build_parser, main
from bench.report.record import read_records
from bench.run import arm_servers, rounds
from bench.servers.fake import FakeServer, policy_ids
from bench.servers.launch import EngineOptions, PatchFacts
from bench.servers.processes import ServerSpec, free_port, running_server

POLICY = " ".join(f"rule{i}" for i in range(50))


def stand_in(folder: Path, name: str, *arguments: str) -> ServerSpec:
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "bench.servers.fake",
        "--port",
        str(port),
        "--token-delay-s",
        "0",
        *arguments,
    ]
    return ServerSpec(name, command, port, folder / f"{name}.log", {})


@pytest.fixture
def policy_text(tmp_path: Path) -> Path:
    path = tmp_path / "policy.txt"
    path.write_text(POLICY)
    return path


@contextlib.contextmanager
def stand_ins(folder: Path, policy_text: Path, *faults: str) -> Iterator[list[str]]:
    """Run both servers; yields the arguments that name them."""
    plain = stand_in(folder, "plain")
    ours = stand_in(folder, "ours", "--patch-name", "kind", "--policy-text", str(policy_text), *faults)
    with running_server(plain, start_timeout_s=30), running_server(ours, start_timeout_s=30):
        # With and without what the server's own block has at the end.
        yield ["--plain-url", plain.url, "--ours-url", f"{ours.url}/v1/", "--patch-name", "kind"]


def quick(policy_text: Path, out: Path) -> list[str]:
    return [
        *("--model", "fake", "--policy-text", str(policy_text), "--out", str(out)),
        *("--rounds", "2", "--concurrency", "1,3", "--output-tokens", "4", "--input-tokens", "40"),
        *("--settle-s", "0"),
    ]


def test_run_leaves_records_report_and_one_json_line(
    tmp_path: Path, policy_text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with stand_ins(tmp_path, policy_text) as servers:
        assert main([*quick(policy_text, tmp_path / "out"), *servers]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    records = read_records([Path(last["records"])])
    # Six arms, two concurrencies, one round to warm up and two that count.
    assert len(records) == 6 * 2 * 3
    assert {record.setup["arm"] for record in records if not record.setup["is_warmup"]} == set(
        overhead.DEFAULT_ARMS
    )
    assert last["ratios"]["3"]["patched/idle"]["throughput"]["count"] == 2
    assert Path(last["records"]).with_name("report.svg").is_file()
    assert str(tmp_path) not in Path(last["records"]).read_text()


@pytest.mark.parametrize("fault", ["ignore_patch", "drop_digest", "leak_prefix", "one_short", "cut_off"])
def test_servers_that_are_wrong_are_not_timed(
    tmp_path: Path, policy_text: Path, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    with stand_ins(tmp_path, policy_text, "--fault", fault) as servers:
        assert main([*quick(policy_text, tmp_path / "out"), *servers]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out.splitlines()[-1])["ok"] is False
    assert "bench overhead: " in captured.err
    assert not list((tmp_path / "out").glob("*/records.jsonl"))


def test_own_servers_are_started_and_taken_down(
    tmp_path: Path, policy_text: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[ServerSpec] = []

    def start(name: str, *arguments: str) -> ServerSpec:
        started.append(stand_in(tmp_path, name, *arguments))
        return started[-1]

    facts = PatchFacts("kind", FakeServer(POLICY).digest, len(policy_ids(POLICY)))
    monkeypatch.setattr(overhead, "prepare_patch", lambda *_, **__: facts)
    monkeypatch.setattr(arm_servers, "plain_server", lambda *_: start("plain"))
    ours = ("--patch-name", "kind", "--policy-text", str(policy_text))
    monkeypatch.setattr(arm_servers, "ours_server", lambda *_: start("ours", *ours))
    assert main([*quick(policy_text, tmp_path / "out"), "--arms", "plain,patched", "--concurrency", "1"]) == 0
    records = read_records([Path(json.loads(capsys.readouterr().out.splitlines()[-1])["records"])])
    assert set(records[0].setup["server_commands"]) == {"plain", "ours"}
    assert len(started) == 2
    for spec in started:
        with pytest.raises(OSError, match="refused"):
            overhead_connection(spec.port)


def overhead_connection(port: int) -> None:
    import socket

    socket.create_connection(("127.0.0.1", port), timeout=1).close()


def test_time_limit_ends_a_run(tmp_path: Path, policy_text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with stand_ins(tmp_path, policy_text) as servers:
        arguments = [*quick(policy_text, tmp_path / "out"), *servers, "--time-limit-s", "0"]
        assert main(arguments) == 1
    assert "not done after 0 s; see --time-limit-s" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*/report.md"))


def test_rounds_measured_before_the_time_limit_are_reported(
    tmp_path: Path, policy_text: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Six arms, two concurrencies: the 30th cell is in the middle of the last round."""
    measured: list[str] = []

    async def measure(session: Any, run: Any, arm: Any, *where: Any) -> dict[str, Any]:
        measured.append(arm.name)
        if len(measured) > 30:
            raise TimeoutError
        return await measure_arm(session, run, arm, *where)

    measure_arm = rounds.measure_arm
    monkeypatch.setattr(rounds, "measure_arm", measure)
    monkeypatch.setattr(asyncio.Timeout, "expired", lambda self: True)
    with stand_ins(tmp_path, policy_text) as servers:
        arguments = [*quick(policy_text, tmp_path / "out"), *servers, "--time-limit-s", "500"]
        assert main(arguments) == 1
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (last["ok"], last["cut_short"]) == (False, "not done after 500 s; see --time-limit-s")
    assert last["ratios"]["1"]["patched/idle"]["throughput"]["count"] == 2
    report = Path(last["records"]).with_name("report.md").read_text()
    assert report.splitlines()[2].startswith("**Cut short**, run `")
    assert Path(last["records"]).with_name("report.svg").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arms", "plain,warm"], "expected some of plain"),
        (["--rounds", "0"], "at least one round"),
        (["--concurrency", "0"], "one request in flight"),
        (["--output-tokens", "1"], "two output tokens"),
        (["--ours-url", "http://127.0.0.1:1", "--patch-name", "x"], "got none for plain"),
        (["--ours-url", "http://127.0.0.1:1", "--arms", "patched"], "expected --patch-name"),
        (["--ours-url", "http://::1:8000", "--patch-name", "x"], "--ours-url: expected http://HOST:PORT"),
        (["--env", "X"], "expected NAME=VALUE"),
        (["--policy-text", "missing.txt"], "expected a file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_of_the_caller_end_with_two(
    policy_text: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--model", "m", "--policy-text", str(policy_text), *arguments])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_command_line_defaults_are_the_dataclass_defaults(policy_text: Path) -> None:
    args = build_parser().parse_args(["--model", "m", "--policy-text", str(policy_text)])
    assert overhead.overhead_options(args) == OverheadOptions(policy_text)


def test_compiled_patch_of_another_length_is_refused(
    tmp_path: Path, policy_text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = PatchFacts("kind", FakeServer(POLICY).digest, num_tokens=48)
    monkeypatch.setattr(overhead, "prepare_patch", lambda *_, **__: facts)
    arguments = ("--patch-name", "kind", "--policy-text", str(policy_text))
    monkeypatch.setattr(arm_servers, "ours_server", lambda *_: stand_in(tmp_path, "ours", *arguments))
    options = OverheadOptions(policy_text, arms=("idle", "patched"))
    with pytest.raises(overhead.CheckFailed, match="expected 52 tokens as in the text, got 48"):
        overhead.run_overhead(EngineOptions("m"), options, "", tmp_path)


def test_bench_imports_neither_vllm_nor_server() -> None:
    script = "import bench.overhead, bench.report.__main__, sys"
    script += "; print({'vllm', 'server', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
