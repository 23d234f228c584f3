"""The commands that make patches, through the command line."""

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from patches.compile import compile_text
from patches.format import Patch, read_patch, write_patch
from patches.label import Label
from patches.model import LoadedModel
from server.cli import main

TEXT = "answer politely, never answer rudely"


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    path = tmp_path / "policy.txt"
    path.write_text(TEXT + "\n", "utf-8")
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def compile_args(policy: Path, tiny_model_folder: Path, out: Path) -> list[str]:
    model, label = ["--model", str(tiny_model_folder)], ["--name", "polite", "--version", "1.0.0"]
    return ["compile", "--text", str(policy), *model, *label, "-o", str(out)]


def test_compile_writes_the_patch_of_the_text(
    compile_args: list[str], out: Path, tiny_model: LoadedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(compile_args) == 0
    patch = read_patch(out / "polite-1.0.0.safetensors")
    assert patch.digest == compile_text(tiny_model, TEXT + "\n", Label("polite", "1.0.0")).digest
    captured = capsys.readouterr()
    assert patch.digest in captured.out
    assert "polite-1.0.0.safetensors" in captured.out


def test_compile_warns_of_the_templates_default_system_message(
    compile_args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(compile_args) == 0
    errors = capsys.readouterr().err
    assert "warning: this chat template begins a conversation that has no system message" in errors
    assert "You are tiny." in errors


def test_compile_does_not_warn_where_there_is_no_default(
    compile_args: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    template = tmp_path / "plain.jinja"
    template.write_text("{% for m in messages %}[{{ m.role }}]{{ m.content }}[/]{% endfor %}")
    assert main([*compile_args, "--chat-template", str(template), "--pad-to-multiple"]) == 0
    assert main([*compile_args, "--raw", "--pad-to-multiple", "8", "--name", "raw"]) == 0
    assert "warning" not in capsys.readouterr().err


def test_compile_is_quiet_where_stderr_is_no_terminal(
    compile_args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*compile_args, "--raw", "--pad-to-multiple"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.count("\n") == 1


def test_compile_says_when_the_last_block_is_not_filled(
    compile_args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*compile_args, "--raw"]) == 0
    assert "do not fill the last block of 16" in capsys.readouterr().err


def test_compile_twice_changes_nothing_and_other_content_needs_force(
    compile_args: list[str], policy: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(compile_args) == 0
    assert main(compile_args) == 0
    before = read_patch(out / "polite-1.0.0.safetensors").digest
    policy.write_text("something else")
    assert main(compile_args) == 2
    assert "exists with different content" in capsys.readouterr().err
    assert read_patch(out / "polite-1.0.0.safetensors").digest == before
    assert main([*compile_args, "--force"]) == 0
    assert read_patch(out / "polite-1.0.0.safetensors").digest != before


def test_compile_stores_the_notes(compile_args: list[str], out: Path) -> None:
    notes = ["--license", "MIT", "--changelog", "Kinder.", "--supersedes", "0.9.0", "--keep-text"]
    assert main([*compile_args, *notes, "--dtype", "bfloat16"]) == 0
    manifest = read_patch(out / "polite-1.0.0.safetensors").manifest
    assert (manifest.license, manifest.changelog, manifest.supersedes) == ("MIT", "Kinder.", "0.9.0")
    assert manifest.origin["text"] == TEXT + "\n"
    assert manifest.base_model.dtype == "bfloat16"


def test_compile_reads_standard_input(
    compile_args: list[str], out: Path, monkeypatch: pytest.MonkeyPatch, policy: Path
) -> None:
    compile_args[2] = "-"
    with policy.open() as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        assert main(compile_args) == 0
    assert (out / "polite-1.0.0.safetensors").is_file()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--model": "/nowhere/at-all"}, "there is no folder /nowhere/at-all"),
        ({"--text": "/nowhere/policy.txt"}, "/nowhere/policy.txt: No such file or directory"),
        ({"--name": "Bad Name"}, "name: expected 1 to 64 characters"),
        ({"--name": "none"}, "reserved"),
        ({"--version": "1"}, "version: expected a semantic version"),
        ({"--supersedes": "older"}, "supersedes: expected a version or a digest"),
        ({"--changelog": "two\nlines"}, "changelog: expected one line"),
        ({"--pad-to-multiple": "0"}, "multiple: expected 1 to 4096"),
        ({"--cut-to-multiple": "64"}, "pad instead"),
        ({"--device": "warp"}, "device: warp is unavailable"),
        ({"-o": "/dev/null/out"}, "expected a folder, but a file is there"),
        ({"--chat-template": "/nowhere.jinja"}, "/nowhere.jinja: No such file"),
    ],
)
def test_compile_refuses_bad_arguments_in_one_line(
    compile_args: list[str], changes: dict[str, str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for option, value in changes.items():
        if option in compile_args:
            compile_args[compile_args.index(option) + 1] = value
        else:
            compile_args += [option, value]
    assert main(compile_args) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert "Traceback" not in errors
    assert errors.splitlines()[-1].startswith("policypatch compile: ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe\x00", "expected UTF-8 text"),
        (b"x" * 1_048_577, "at most 1048576 bytes"),
        (b" \n", "white space"),
    ],
)
def test_compile_refuses_what_is_no_policy_text(
    compile_args: list[str], policy: Path, content: bytes, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    policy.write_bytes(content)
    assert main(compile_args) == 2
    assert message in capsys.readouterr().err


def test_a_byte_order_mark_is_no_part_of_the_text(compile_args: list[str], policy: Path, out: Path) -> None:
    assert main(compile_args) == 0
    policy.write_bytes(b"\xef\xbb\xbf" + policy.read_bytes())
    assert main(compile_args) == 0


@pytest.mark.parametrize(
    "option", [["--raw"], ["--keep-text"], ["--pad-to-multiple"], ["--cut-to-multiple", "8"]]
)
def test_text_options_do_not_go_with_an_adapter(
    option: list[str], tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["compile", "--peft", str(tmp_path), "--model", str(tiny_model_folder), *option]
    assert main([*arguments, "--name", "a", "--version", "1.0.0", "-o", str(tmp_path)]) == 2
    assert f"{option[0]} goes with --text" in capsys.readouterr().err


def test_a_source_is_required_and_only_one(
    compile_args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([*compile_args, "--peft", "x"])
    with pytest.raises(SystemExit, match="2"):
        main([argument for argument in compile_args if argument not in compile_args[1:3]])
    assert "not allowed with argument" in capsys.readouterr().err


def test_export_and_import_give_back_the_patch(compile_args: list[str], out: Path, tmp_path: Path) -> None:
    assert main(compile_args) == 0
    patch = read_patch(out / "polite-1.0.0.safetensors")
    for kind in ("prompt-tuning", "prefix-tuning", "cartridge"):
        adapter = tmp_path / kind
        assert main(["export", "--peft", str(out / patch.filename), "--as", kind, "-o", str(adapter)]) == 0
        assert "prompt_embeddings" in load_file(adapter / "adapter_model.safetensors")
        again = ["compile", "--peft", str(adapter), *compile_args[3:5], "--name", kind, "--version", "1.0.0"]
        assert main([*again, "-o", str(out)]) == 0
        imported = read_patch(out / f"{kind}-1.0.0.safetensors")
        assert imported.kv is not None
        assert patch.kv is not None
        assert (imported.kv - patch.kv).abs().max() < 1e-5


def test_export_does_not_overwrite_without_force(
    make: Callable[..., Patch], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_patch(make(), tmp_path)
    arguments = ["export", "--peft", str(path), "-o", str(tmp_path / "adapter")]
    assert main(arguments) == 0
    assert main(arguments) == 2
    assert "already holds an adapter" in capsys.readouterr().err
    assert main([*arguments, "--force"]) == 0
    assert main(["export", "--peft", str(path), "-o", "/dev/null/x"]) == 2
    assert main(["export", "--peft", str(tmp_path), "-o", str(tmp_path / "other")]) == 2


def test_a_bad_adapter_is_a_mistake_of_the_caller(
    tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    label = ["--name", "a", "--version", "1.0.0", "-o", str(tmp_path / "out")]
    assert main(["compile", "--peft", str(tmp_path), "--model", str(tiny_model_folder), *label]) == 2
    assert "a LoRA adapter changes weights" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def compiled(model: LoadedModel, name: str, folder: Path) -> Path:
    return write_patch(compile_text(model, f"answer {name}", Label(name, "1.0.0")), folder)


def test_compose_records_the_parts_under_their_joined_name(
    tiny_model: LoadedModel, tiny_model_folder: Path, tmp_path: Path
) -> None:
    parts = [compiled(tiny_model, name, tmp_path) for name in ("kind", "brief")]
    command = ["compose", *map(str, parts), "--model", str(tiny_model_folder), "-o", str(tmp_path)]
    assert main(command) == 0
    composed = read_patch(tmp_path / "kind.brief-1.0.0.safetensors")
    assert [part.digest for part in composed.manifest.components] == [
        read_patch(path).digest for path in parts
    ]
    assert main([*command, "--name", "house-rules", "--version", "2.0.0"]) == 0
    assert read_patch(tmp_path / "house-rules-2.0.0.safetensors").manifest.components


def test_compose_refuses_what_cannot_be_joined(
    tiny_model: LoadedModel,
    tiny_model_folder: Path,
    tmp_path: Path,
    make: Callable[..., Patch],
    capsys: pytest.CaptureFixture[str],
) -> None:
    good, stranger = compiled(tiny_model, "kind", tmp_path), write_patch(make("stranger"), tmp_path)
    rest = ["--model", str(tiny_model_folder), "-o", str(tmp_path / "out")]
    for files, message in (
        ([good], "at least two"),
        ([good, stranger], "stranger: head_size: expected 8, got 4"),
        ([good, tmp_path / "gone.safetensors"], "gone.safetensors: "),
    ):
        assert main(["compose", *map(str, files), *rest]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
