"""Prometheus' programs are found, or unpacked from Debian's packages, or their absence is explained."""

import subprocess
from pathlib import Path

import pytest

from tools.debian_programs import FOLDER_VARIABLE, PROGRAMS, ProgramsMissing, programs, working_folder

SCRIPT = "#!/bin/sh\n"
#: Stands for apt: makes an archive of what is asked for, where it has lists of packages.
APT_GET = """#!/bin/sh
for word in "$@"; do last=$word; done
case "$*" in
  *update*) exit 0 ;;
  *Dir::State::Lists*) ;;
  *) [ -n "$APT_HAS_LISTS" ] || { echo "E: Unable to locate package $last" >&2; exit 100; } ;;
esac
echo "$last" > "$last.deb"
"""
DPKG_DEB = """#!/bin/sh
mkdir -p "$3/usr/bin" "$3/usr/share/prometheus"
case "$(cat "$2")" in
  prometheus) names="prometheus promtool" ;;
  *) names="prometheus-alertmanager amtool" ;;
esac
for name in $names; do
  printf '#!/bin/sh\\ncat /usr/share/prometheus/text' > "$3/usr/bin/$name"
  chmod +x "$3/usr/bin/$name"
done
"""


def put(folder: Path, **scripts: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in scripts.items():
        path = folder / name.replace("_", "-")
        path.write_text(text)
        path.chmod(0o755)
    return folder


def all_programs(folder: Path) -> Path:
    return put(folder, **{debian_name.replace("-", "_"): SCRIPT for debian_name, _ in PROGRAMS.values()})


def test_a_folder_that_is_named_is_used_and_nothing_else(tmp_path: Path) -> None:
    folder, other = all_programs(tmp_path / "named"), all_programs(tmp_path / "other")
    found = programs({FOLDER_VARIABLE: str(folder), "PATH": str(other)})
    assert {path.parent for path in found.values()} == {folder}


def test_a_folder_that_lacks_a_program_is_refused_by_name(tmp_path: Path) -> None:
    folder = put(tmp_path / "named", prometheus=SCRIPT, amtool=SCRIPT)
    with pytest.raises(
        ProgramsMissing, match=rf"^{FOLDER_VARIABLE}: expected .* without alertmanager, promtool;"
    ):
        programs({FOLDER_VARIABLE: str(folder)})


def test_programs_on_the_path_are_used_before_any_is_fetched(tmp_path: Path) -> None:
    folder = all_programs(tmp_path / "bin")
    found = programs({"PATH": str(folder), "XDG_CACHE_HOME": str(tmp_path / "cache")})
    assert {path.parent for path in found.values()} == {folder}
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("lists", ["yes", ""], ids=["with lists of packages", "without"])
def test_what_is_missing_is_unpacked_once_into_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lists: str
) -> None:
    bin_folder = put(tmp_path / "bin", apt_get=APT_GET, dpkg_deb=DPKG_DEB)
    monkeypatch.setenv("PATH", f"{bin_folder}:/usr/bin:/bin")
    monkeypatch.setenv("APT_HAS_LISTS", lists)
    environment = {"PATH": str(bin_folder), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    found = programs(environment)
    assert found.keys() == PROGRAMS.keys()
    assert {path.parent for path in found.values()} == {tmp_path / "cache/policypatch/debian/usr/bin"}
    (bin_folder / "apt-get").unlink()
    assert programs(environment) == found


def test_an_unpacked_program_finds_its_files_without_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bin_folder = put(tmp_path / "bin", apt_get=APT_GET, dpkg_deb=DPKG_DEB)
    monkeypatch.setenv("PATH", f"{bin_folder}:/usr/bin:/bin")
    monkeypatch.setenv("APT_HAS_LISTS", "yes")
    found = programs({"PATH": str(bin_folder), "XDG_CACHE_HOME": str(tmp_path / "cache")})
    folder = working_folder(found["alertmanager"])
    (folder / "text").write_text("a template")
    assert subprocess.check_output([found["alertmanager"]], cwd=folder, text=True) == "a template"


def test_without_apt_the_message_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ProgramsMissing, match=f"expected apt-get .* got none; install .* {FOLDER_VARIABLE}$"):
        programs({"PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")})


def test_an_apt_that_fails_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = "#!/bin/sh\necho 'E: no such mirror' >&2; exit 100\n"
    bin_folder = put(tmp_path / "bin", apt_get=failing, dpkg_deb=DPKG_DEB)
    monkeypatch.setenv("PATH", f"{bin_folder}:/usr/bin:/bin")
    with pytest.raises(ProgramsMissing, match="update: E: no such mirror; install"):
        programs({"PATH": str(bin_folder), "XDG_CACHE_HOME": str(tmp_path / "cache")})
