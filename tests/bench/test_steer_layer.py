"""`policypatch bench steer-layer` at a tiny shape: what it writes, and what its figures are of."""

import json
from pathlib import Path

import pytest
import torch

from bench.report.record import read_records
from bench.run import device_timing
from bench.steer_layer import Arm, SteerOptions, Workload, arms_of, main

TINY = ["--layers", "5", "--hidden-size", "32", "--mlp-size", "48", "--kv-size", "16", "--dtype", "float32"]
OPTIONS = SteerOptions((4,), (1, 3), 5, 32, 48, 16, "float32", "cpu")


@pytest.fixture(autouse=True)
def small_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_timing, "FLUSH_BYTES", 1024)


def test_every_way_is_compared_with_the_products_of_a_layer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*TINY, "--tokens", "2,4", "--vectors", "1,3", "--rounds", "3", "--device", "cpu"]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    records = read_records([Path(summary["records"])])
    assert [(r.setup["num_tokens"], r.setup["arm"]) for r in records] == [
        (num_tokens, arm.name) for num_tokens in (2, 4) for arm in arms_of(OPTIONS, num_tokens)
    ]
    for record in records:
        assert record.result["layer_s"]["p50"] > 0
        assert (record.result["share"] == 1) == (record.setup["arm"] == "products")
    report = (Path(summary["records"]).parent / "report.md").read_text()
    assert "| 4 | all, 3 vectors |" in report
    assert records[0].setup["command"].startswith("python -m bench.steer_layer --layers")
    assert summary["shares"].keys() >= {"none x2", "condition x4"}


@torch.inference_mode()
def test_what_is_timed_is_what_its_name_says() -> None:
    workload, arms = Workload(OPTIONS, 4), {arm.name: arm for arm in arms_of(OPTIONS, 4)}

    def moved(arm: Arm) -> tuple[list[bool], list[bool]]:
        workload.reset()
        workload.begin(arm)
        before = workload.hidden + workload.residual
        arm.run(workload)
        after = workload.hidden + workload.residual
        return (after != before).any(1).tolist(), workload.hidden.any(1).logical_not().tolist()

    assert moved(arms["none"]) == ([False] * 4, [False] * 4)
    assert moved(arms["half, 1 vector"]) == ([True, False] * 2, [True, False] * 2)
    assert moved(arms["all, 3 vectors"]) == ([True] * 4, [True] * 4)
    assert moved(arms["mlp, opposed"]) == ([True] * 4, [False] * 4)
    assert moved(arms["condition"]) == ([False] * 4, [False] * 4)
    assert workload._ledger.flags.count_nonzero() == 1


@torch.inference_mode()
def test_plain_torch_steers_as_the_kernels_do() -> None:
    workload, arms = Workload(OPTIONS, 4), {arm.name: arm for arm in arms_of(OPTIONS, 4)}
    results = []
    for name in ("all, 1 vector", "plain torch"):
        workload.reset()
        workload.begin(arms[name])
        arms[name].run(workload)
        results.append(workload.residual.clone())
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("flags", [["--tokens", "0"], ["--vectors", "x"], ["--layers", "0"]])
def test_numbers_out_of_range_are_mistakes_of_the_caller(flags: list[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(flags)
    assert exit_.value.code == 2
