"""Growth on paper, held against what was measured."""

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from server.cli import main
from server.memory.capacity import (
    CONSTANTS,
    SHAPES,
    Plan,
    figures,
    file_bytes,
    in_words,
    page_bytes,
    payload_bytes,
    sent_bytes,
    start_s,
)
from tests.server.stand import patch_bytes, put
from tools.catalog_memory import measure
from tools.catalog_traffic import measure as measure_traffic

ROOT = Path(__file__).resolve().parents[3]
DEMO = SHAPES["smollm2-135m"]
#: How far the model may be from a benchmark.
SHARE = 0.2


def records(question: str) -> Iterator[dict[str, Any]]:
    """Yield the records of a question's newest run of record, but for its warm-up."""
    folder = sorted((ROOT / "bench/results").glob(f"*-{question}-cpu*"))[-1]
    for line in (folder / "records.jsonl").read_text().splitlines():
        record = json.loads(line)
        if not record["setup"]["is_warmup"]:
            yield record


def medians(question: str, key: str) -> dict[int, float]:
    """Return the median of one result by the number on the axis."""
    found: dict[int, list[float]] = defaultdict(list)
    for record in records(question):
        found[record["setup"]["x"]].append(record["result"][key])
    return {x: median(values) for x, values in found.items()}


def by_name(plan: Plan) -> dict[str, float]:
    return {figure.name: figure.value for figure in figures(plan)}


def test_a_patch_takes_of_memory_what_the_memory_benchmark_found() -> None:
    for record in records("memory"):
        patch = record["result"]["patch_bytes"]
        assert payload_bytes(Plan(DEMO, num_tokens=48)) == pytest.approx(patch, rel=SHARE)


def test_patches_take_the_blocks_that_the_memory_benchmark_found() -> None:
    """There, blocks are of 32: a whole one is shared, and the tail lies in a block of each request."""
    blocks = {(r["setup"]["series"], r["setup"]["x"]): r["result"]["num_blocks"] for r in records("memory")}
    found = by_name(Plan(DEMO, num_tokens=48, block_size=32))
    assert found["tail_tokens"] == 16
    extra = blocks[("one", 1)] - blocks[("base", 1)]
    assert found["shared_blocks"] == pytest.approx(extra, rel=SHARE)


def test_metrics_grow_as_the_scrape_benchmark_found() -> None:
    for function, key in ((page_bytes, "page_bytes"), (sent_bytes, "sent_bytes")):
        for num_patches, measured in medians("scrape", key).items():
            assert function(num_patches) == pytest.approx(measured, rel=SHARE), key


def test_a_start_takes_the_processor_time_that_the_catalog_benchmark_found() -> None:
    file = payload_bytes(Plan(DEMO, num_tokens=48))
    measured = medians("catalog", "start_cpu_s")
    assert start_s(1000, file) == pytest.approx(measured[1000], rel=SHARE)


def test_a_catalog_and_its_copies_take_what_is_measured_now(tmp_path: Path) -> None:
    for i in range(40):
        put(tmp_path, f"patch-{i:03}", "1.0.0", fill=float(i))
    found = measure(tmp_path)
    for name in ("file", "catalog", "sync"):
        # The fingerprint of the tests' model is a little shorter than that of a real one.
        assert CONSTANTS[name].value == pytest.approx(found[name], rel=SHARE), name


def test_a_fleets_catalog_takes_what_is_measured_now() -> None:
    found = measure_traffic()
    for name in ("look", "revision", "named"):
        assert CONSTANTS[name].value == pytest.approx(found[name], rel=SHARE), name
    one, many = by_name(Plan(DEMO)), by_name(Plan(DEMO, num_replicas=50))
    assert many["fleet_looks"] == 50 * one["fleet_looks"] == 50 * CONSTANTS["look"].value / 2
    assert many["fleet_revision"] == 50 * one["fleet_revision"]


def test_a_file_is_its_tensors_and_a_header() -> None:
    plan = Plan(DEMO, num_tokens=160)
    compiled = (ROOT / "examples/patches/pirate-1.0.0.safetensors").stat().st_size
    assert file_bytes(plan) == pytest.approx(compiled, rel=0.01)
    vector = (ROOT / "examples/patches/safe-steer-1.2.0.safetensors").stat().st_size
    assert file_bytes(Plan(DEMO, num_tokens=0, kind="steering")) == pytest.approx(vector, rel=SHARE)


def test_host_and_device_memory_stay_within_their_bounds() -> None:
    few, many = (by_name(Plan(SHAPES["llama-3-8b"], num_patches=n)) for n in (10, 100_000))
    assert few["device"] == few["host"] == 10 * 6 * 2**20
    assert (few["device_patches"], few["host_patches"]) == (10, 10)
    assert (many["device"], many["host"]) == (2**30, 4 * 2**30)
    assert (many["device_patches"], many["host_patches"]) == (170, 682)


def test_the_kv_cache_has_the_room_that_weights_leave() -> None:
    found = by_name(Plan(SHAPES["llama-3-8b"], gpu_bytes=80 * 2**30))
    assert found["block"] == 2 * 2**20
    assert found["blocks"] == int((80 * 2**30 * 0.9 - 16_060_000_000) // (2 * 2**20))
    assert found["hot_blocks"] == 3000
    assert by_name(Plan(DEMO, gpu_bytes=1))["blocks"] == 0


def test_replicas_and_processes_multiply_what_each_of_them_has() -> None:
    one, many = by_name(Plan(DEMO)), by_name(Plan(DEMO, num_replicas=1000, num_processes=4))
    assert (one["fleet_disk"], one["sync"]) == (one["disk"], 0)
    assert many["fleet_disk"] == 1000 * one["disk"]
    assert many["catalog"] == 4 * one["catalog"]
    assert many["sync"] == 3 * 1000 * CONSTANTS["sync"].value


@pytest.mark.parametrize(
    ("value", "unit", "words"),
    [
        (512, "bytes", "512 B"),
        (6 * 2**20, "bytes", "6.00 MiB"),
        (3 * 2**40, "bytes/s", "3.00 TiB/s"),
        (1.234, "s", "1.23 s"),
        (3000, "blocks", "3,000 blocks"),
        (0, "bytes", "0 B"),
    ],
)
def test_figures_are_in_units_that_people_read(value: float, unit: str, words: str) -> None:
    assert in_words(value, unit) == words


def test_the_command_prints_a_table_or_json(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["capacity", "--model", "llama-3-8b", "--patches", "1000", "--gpu-memory", "80GiB"]
    assert main(arguments) == 0
    assert "6.38 MiB" in capsys.readouterr().out
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["hot_blocks"] == 3000


def test_the_command_reads_a_models_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = {"num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 576}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for model in (str(tmp_path), "30x3x64x576", "smollm2-135m"):
        assert main(["capacity", "--model", model, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["host"] == 1000 * 1105920


@pytest.mark.parametrize("model", ["gpt", "1x2x3", "0x1x1x1", "32x8x128x4096x1"])
def test_a_shape_that_is_none_is_an_error_that_says_what_one_is(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["capacity", "--model", model]) == 2
    assert "--model: expected a model folder, " in capsys.readouterr().err


def test_a_folder_without_a_models_sizes_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert main(["capacity", "--model", str(tmp_path)]) == 2
    assert "expected a config.json with a transformer's sizes" in capsys.readouterr().err
    assert main(["capacity"]) == 2


@pytest.mark.parametrize(
    "flags", [["--patches", "100001"], ["--replicas", "0"], ["--tokens", "x"], ["--gpu-memory", "much"]]
)
def test_what_is_beyond_the_model_is_refused(flags: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["capacity", "--model", "llama-3-8b", *flags])


def test_every_constant_names_the_command_that_measures_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["capacity", "--constants"]) == 0
    printed, page = capsys.readouterr().out, (ROOT / "docs/capacity.md").read_text()
    for name, constant in CONSTANTS.items():
        assert constant.command in printed
        assert constant.command in page
        assert f"`{name}`" in page
    assert len(patch_bytes()) > CONSTANTS["file"].value / 2
