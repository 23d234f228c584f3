"""keygen, sign, and what verify and inspect say about signatures, through the command line."""

import json
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from patches.format import Patch, write_patch
from server.cli import main

ROOT = Path(__file__).resolve().parents[2]
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    assert main(["keygen", str(tmp_path / "keys"), "--name", "alice"]) == 0
    return tmp_path / "keys"


@pytest.fixture
def patch_file(make: Callable[..., Patch], tmp_path: Path) -> Path:
    return write_patch(make(), tmp_path / "out")


def sign(path: Path, keys: Path, *more: str) -> int:
    return main(["sign", str(path), "--key", str(keys / "alice.key"), *more])


def test_a_signed_patch_verifies(patch_file: Path, keys: Path, capsys: Capture) -> None:
    assert sign(patch_file, keys, "--minimum-version", "1.0.0") == 0
    assert main(["verify", str(patch_file), "--trusted-keys", str(keys)]) == 0
    out = capsys.readouterr().out
    assert "pirate-1.0.0.safetensors.sig: pirate@1.0.0 sha256:" in out
    assert "signature: by alice (" in out
    assert "nothing below 1.0.0" in out


def test_an_unsigned_patch_is_good_until_keys_are_asked_for(
    patch_file: Path, keys: Path, capsys: Capture
) -> None:
    assert main(["verify", str(patch_file)]) == 0
    assert main(["verify", str(patch_file), "--trusted-keys", str(keys)]) == 1
    assert "unsigned: not signed: there is no pirate-1.0.0.safetensors.sig" in capsys.readouterr().err


def test_a_signature_by_another_key_does_not_verify(
    patch_file: Path, keys: Path, tmp_path: Path, capsys: Capture
) -> None:
    sign(patch_file, keys)
    main(["keygen", str(tmp_path / "others"), "--name", "bob"])
    assert main(["verify", str(patch_file), "--trusted-keys", str(tmp_path / "others")]) == 1
    assert "untrusted_signer: " in capsys.readouterr().err


def test_a_signature_does_not_verify_beside_another_file(
    make: Callable[..., Patch], patch_file: Path, keys: Path, tmp_path: Path, capsys: Capture
) -> None:
    sign(patch_file, keys)
    other = write_patch(make(seed=5), tmp_path / "other")
    shutil.copy(f"{patch_file}.sig", f"{other}.sig")
    assert main(["verify", str(other), "--trusted-keys", str(keys)]) == 1
    assert "signature_mismatch: " in capsys.readouterr().err


def test_a_signature_is_replaced_only_by_force(patch_file: Path, keys: Path, capsys: Capture) -> None:
    assert sign(patch_file, keys) == 0
    assert sign(patch_file, keys) == 2
    assert "--force replaces it" in capsys.readouterr().err
    assert sign(patch_file, keys, "--force") == 0


def test_no_file_is_signed_where_one_is_bad(patch_file: Path, keys: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.safetensors"
    bad.write_text("nothing like it")
    assert main(["sign", str(patch_file), str(bad), "--key", str(keys / "alice.key")]) == 2
    assert not Path(f"{patch_file}.sig").exists()


def test_a_bound_above_the_patch_itself_is_a_mistake(patch_file: Path, keys: Path, capsys: Capture) -> None:
    assert sign(patch_file, keys, "--minimum-version", "1.0.1") == 2
    assert "minimum_version: expected at most 1.0.0" in capsys.readouterr().err


def test_a_key_that_others_can_read_is_warned_about(patch_file: Path, keys: Path, capsys: Capture) -> None:
    (keys / "alice.key").chmod(0o644)
    assert sign(patch_file, keys) == 0
    assert "others can read this private key" in capsys.readouterr().err


def test_keygen_makes_a_private_file_once(keys: Path, capsys: Capture) -> None:
    before = (keys / "alice.key").read_bytes()
    assert stat.S_IMODE((keys / "alice.key").stat().st_mode) == 0o600
    assert main(["keygen", str(keys), "--name", "alice"]) == 2
    assert "a key is never overwritten" in capsys.readouterr().err
    assert (keys / "alice.key").read_bytes() == before


def test_an_encrypted_key_signs_with_its_password(patch_file: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "password").write_text("correct horse\n")
    password = ["--password-file", str(tmp_path / "password")]
    assert main(["keygen", str(tmp_path / "keys"), "--name", "alice", *password]) == 0
    assert sign(patch_file, tmp_path / "keys") == 2
    assert "needs a password" in capsys.readouterr().err
    assert sign(patch_file, tmp_path / "keys", *password) == 0


def test_a_revoked_patch_does_not_verify(
    make: Callable[..., Patch], patch_file: Path, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "revoked.txt").write_text(f"{make().digest}  # leaked\n")
    assert main(["verify", str(patch_file), "--revoked", str(tmp_path / "revoked.txt")]) == 1
    assert f"revoked: {make().digest} is on the list" in capsys.readouterr().err


def test_inspect_tells_the_states_of_a_signature_apart(
    patch_file: Path, keys: Path, tmp_path: Path, capsys: Capture
) -> None:
    def signature(*more: str) -> str:
        assert main(["inspect", str(patch_file), *more]) == 0
        card = capsys.readouterr().out
        return next(line for line in card.splitlines() if "signature" in line)

    assert "not signed: there is no " in signature()
    sign(patch_file, keys)
    capsys.readouterr()
    assert "not checked: --trusted-keys DIR does" in signature()
    assert "good, by alice (" in signature("--trusted-keys", str(keys))
    main(["keygen", str(tmp_path / "others")])
    capsys.readouterr()
    assert "REFUSED: signature: by no trusted key" in signature("--trusted-keys", str(tmp_path / "others"))


def test_inspect_names_no_signer_that_nobody_checked(patch_file: Path, keys: Path, capsys: Capture) -> None:
    sign(patch_file, keys)
    capsys.readouterr()
    main(["inspect", "--json", str(patch_file)])
    assert json.loads(capsys.readouterr().out)["signature"] == {
        "state": "unchecked",
        "reason": None,
        "signer": None,
    }
    main(["inspect", "--json", str(patch_file), "--trusted-keys", str(keys)])
    signature = json.loads(capsys.readouterr().out)["signature"]
    assert (signature["state"], signature["signer"], len(signature["key_id"])) == ("trusted", "alice", 64)


@pytest.mark.parametrize("command", ["keygen", "sign"])
def test_help_shows_examples_and_does_not_wait_for_torch(command: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    assert f"examples:\n  policypatch {command} " in capsys.readouterr().out
    script = f"import sys, server.commands.{command}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False, cwd=ROOT).returncode == 0
