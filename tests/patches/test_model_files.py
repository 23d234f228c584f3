"""Models that can't be read, through every command that takes one: one line, exit code 2."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import httpx
import huggingface_hub
import huggingface_hub.errors
import pytest

from patches.errors import ModelUnusable
from patches.format import Patch, write_patch
from patches.model import load_model, require_device
from patches.model_files import require_model
from server.cli import main

TEXT, OUT = "text.txt", "out"
CALLS = {
    "serve": ["--patches", "."],
    "compile": ["--text", TEXT, "--name", "a", "--version", "1.0.0", "-o", OUT],
    "convert": ["pirate-1.0.0.safetensors", "--dtype", "float16", "-o", OUT],
    "compose": ["pirate-1.0.0.safetensors", "pirate-1.0.0.safetensors", "-o", OUT],
    "verify": ["pirate-1.0.0.safetensors"],
    "eval": ["--patch", "pirate-1.0.0.safetensors", "-o", OUT],
    "pairs": ["--reference-text", TEXT, "--prompts", TEXT, "-o", "pairs.jsonl"],
    "train": ["--pairs", "pairs.jsonl", "--init-text", TEXT, "--name", "a", "--version", "1.0.0", "-o", OUT],
}


@pytest.fixture(autouse=True)
def folder(make: Callable[..., Patch], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with what the calls name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    Path(TEXT).write_text("Be kind.\n")
    row = {"prompt": "a", "chosen": "b", "rejected": "c"}
    Path("pairs.jsonl").write_text("".join(json.dumps(row | {"prompt": str(i)}) + "\n" for i in range(8)))
    write_patch(make(), tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", CALLS)
def test_a_model_folder_that_is_not_there_is_told_in_one_line(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--model", "/nonexistent/m", *CALLS[command]]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"policypatch {command}: model: there is no folder /nonexistent/m; name one with config.json, or the "
        "id of a hub model"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "has no config.json; expected the folder of a transformers model"),
        ("{broken", "config.json is no JSON"),
        ("folder", "config.json can't be read: Is a directory; check who may read it"),
    ],
)
def test_a_model_folder_that_holds_none_is_told_what_it_lacks(content: str | None, message: str) -> None:
    model = Path("model")
    model.mkdir()
    if content == "folder":
        (model / "config.json").mkdir()
    elif content is not None:
        (model / "config.json").write_text(content)
    for check in (require_model, load_model):
        with pytest.raises(ModelUnusable, match=message):
            check(model)


def test_a_folder_that_may_not_be_read_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    # Root may read everything, so the refusal is the system's in name only.
    def refuse(path: Path, **_: object) -> os.stat_result:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(ModelUnusable, match=r"^model: secret can't be read: Permission denied; check who"):
        require_model("secret")


def test_a_file_in_place_of_a_model_folder_is_told_so() -> None:
    with pytest.raises(ModelUnusable, match=r"expected a folder with config.json, got the file text.txt"):
        require_model(TEXT)


@pytest.mark.parametrize("command", CALLS)
@pytest.mark.parametrize("model", ["nope", "none-such/model"])
def test_a_hub_model_that_is_nowhere_is_told_at_once(
    command: str, model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What loads models would ask a hub that does not answer for half a minute."""
    asked: list[str] = []

    def ask(url: str, **_: object) -> None:
        asked.append(url)
        raise httpx.ConnectError("[Errno -2] Name or service not known")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", ask)
    assert main([command, "--model", model, *CALLS[command]]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    if command in ("serve", "verify"):
        # They read what is here, and nothing else.
        assert line == (
            f"policypatch {command}: model: {model!r} is neither a folder nor a hub model in the local "
            "cache; download it first"
        )
        assert asked == []
        return
    assert line == (
        f"policypatch {command}: model: there is no folder {model}, and no hub model of that name in the "
        "local cache, and the hub can't be reached ([Errno -2] Name or service not known); name a folder"
    )
    assert len(asked) == 1


def refusal(kind: type[huggingface_hub.errors.HfHubHTTPError]) -> Exception:
    request = httpx.Request("HEAD", "https://hub/m/resolve/main/config.json")
    return kind("refused", response=httpx.Response(404, request=request))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (huggingface_hub.errors.OfflineModeIsEnabled("offline"), "unset HF_HUB_OFFLINE to download it"),
        (refusal(huggingface_hub.errors.RepositoryNotFoundError), "the hub shows no m with a config.json"),
        (refusal(huggingface_hub.errors.RemoteEntryNotFoundError), "the hub shows no m with a config.json"),
        (refusal(huggingface_hub.errors.GatedRepoError), "set HF_TOKEN"),
        (httpx.ConnectTimeout("timed out"), r"the hub can't be reached \(timed out\)"),
    ],
    ids=["offline", "no-model", "no-config", "gated", "slow"],
)
def test_what_the_hub_says_of_a_model_is_one_line(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(url: str, **_: object) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", ask)
    for check in (require_model, load_model):
        with pytest.raises(ModelUnusable, match=message):
            check("m")


def test_a_model_in_the_cache_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: "/cache/config.json")
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", None)
    require_model("cached/model")


def test_a_device_that_this_machine_lacks_is_named(tiny_model_folder: Path) -> None:
    with pytest.raises(ModelUnusable, match=r"^device: xpu is unavailable here: .*; leave it out"):
        load_model(tiny_model_folder, device="xpu")
    with pytest.raises(ModelUnusable, match=r"^device: warp is unavailable here"):
        require_device("warp")
