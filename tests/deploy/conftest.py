"""The real programs that the files of ``deploy/`` are for."""

from pathlib import Path

import pytest

from tools.debian_programs import programs


@pytest.fixture(scope="session")
def real_programs() -> dict[str, Path]:
    """Prometheus, Alertmanager, promtool and amtool, fetched from Debian where they are missing."""
    return programs()
