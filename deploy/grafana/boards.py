"""The dashboards by the names of their files."""

from pathlib import Path

from deploy.grafana import fleet, overview, patch, rollout
from deploy.grafana.frame import patch_variable, variable, window_variable, write
from deploy.grafana.queries import PATCH, SERVERS

FOLDER = Path(__file__).parent / "dashboards"


def documents() -> dict[str, str]:
    """Return each dashboard's JSON by the name of its file."""
    one_patch = patch_variable(several=False)
    versions = f"label_values(policy_patch_resident_bytes{{{SERVERS}, {PATCH}}}, version)"
    version = variable("version", "Version", versions, several=True)
    return {
        "overview": write("overview", overview.TITLE, overview.ABOUT, overview.dashboard_rows()),
        "patch": write(
            "patch",
            patch.TITLE,
            patch.ABOUT,
            patch.dashboard_rows(),
            variables=[one_patch, version],
            patch=PATCH,
        ),
        "fleet": write(
            "fleet",
            fleet.TITLE,
            fleet.ABOUT,
            fleet.dashboard_rows(),
            variables=[patch_variable(several=True)],
            patch='patch=~"$patch"',
        ),
        "rollout": write(
            "rollout",
            rollout.TITLE,
            rollout.ABOUT,
            rollout.dashboard_rows(),
            variables=[one_patch, window_variable()],
            patch=PATCH,
        ),
    }
