"""The session's bookkeeping; what it runs is rehearsed as `docs/gpu.md` says."""

from pathlib import Path

from bench.gpu_session import Step, build_parser, graph_difference, run_step, steps_of

CHECK = '{"scenario": "s", "check": "facts", "ok": true, "cudagraph_mode": "FULL"}'


def step(program: str, limit_s: float = 60) -> Step:
    return Step("s", "host-path", ["-c", program], limit_s)


def test_each_step_has_a_name_of_its_own_and_a_stage(tmp_path: Path) -> None:
    args = build_parser().parse_args(["--models", "m", "--out", str(tmp_path)])
    steps = list(steps_of(args, tmp_path / "policy.txt"))
    assert len({step.name for step in steps}) == len(steps)
    assert {step.stage for step in steps} == set(args.stages)


def test_programs_of_the_session_exist(tmp_path: Path) -> None:
    args = build_parser().parse_args(["--models", "m", "--out", str(tmp_path)])
    for step in steps_of(args, tmp_path / "policy.txt"):
        root = Path(__file__).parents[2]
        module = step.command[1].replace(".", "/") + ".py"
        if step.command[1] == "pytest":
            assert Path(step.command[-1]).is_dir()
        else:
            assert (root / module if step.command[0] == "-m" else Path(step.command[0])).is_file()


def test_a_failed_check_is_in_the_summary(tmp_path: Path) -> None:
    failed = '{"scenario": "s", "check": "c", "ok": false, "got": 1}'
    summary = run_step(step(f"print('{CHECK}'); print('{failed}'); exit(1)"), tmp_path)
    assert (summary["status"], summary["num_checks"]) == (1, 2)
    assert [check["check"] for check in summary["failed"]] == ["c"]


def test_the_last_line_of_a_program_is_kept(tmp_path: Path) -> None:
    summary = run_step(step("""print('{"a": 1}'); print('{"ok": true}'); print('{no json')"""), tmp_path)
    assert summary["last"] == {"ok": True}


def test_the_last_line_of_tests_is_kept(tmp_path: Path) -> None:
    assert (
        run_step(step("print('..s'); print('2 passed, 1 skipped')"), tmp_path)["last"]
        == "2 passed, 1 skipped"
    )


def test_a_program_over_its_limit_is_ended(tmp_path: Path) -> None:
    summary = run_step(step("import time; time.sleep(600)", 0.5), tmp_path)
    assert summary["status"] is None
    assert summary["seconds"] < 60


def test_a_graph_mode_that_the_connector_changed_is_found() -> None:
    facts = {"full_graphs": [1], "capture_sizes": [1], "max_concurrent_batches": 2, "hybrid_manager": True}
    summaries = [
        {"step": "host-path-default", "facts": facts | {"cudagraph_mode": "PIECEWISE"}},
        {"step": "host-path-plain", "facts": facts | {"cudagraph_mode": "FULL_AND_PIECEWISE"}},
    ]
    found = graph_difference(summaries)
    assert found is not None
    assert found["status"] == 1
    assert found["plain_and_ours_differ_in"] == {"cudagraph_mode": ["FULL_AND_PIECEWISE", "PIECEWISE"]}
    assert graph_difference(summaries[:1]) is None
