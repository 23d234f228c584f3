"""Where each server of a fleet stands, as it says itself or as Prometheus knows."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import httpx
from pydantic import BaseModel, ValidationError

from server.fleet.prometheus import Prometheus

_TIMEOUT_S = 5.0

#: A server that Prometheus saw in this time is one of the fleet.
_SEEN = "10m"


@dataclass(frozen=True, slots=True)
class Standing:
    """One server."""

    server: str
    #: In force; ``None`` where it does not say.
    revision: int | None
    #: The newest that it verified.
    heard: int | None = None
    #: Until its lease ends; below 0 where it has.
    lease_seconds: float | None = None
    is_ready: bool | None = None
    problem: str | None = None

    def is_at(self, revision: int) -> bool:
        """Return whether nothing older is in force there."""
        return self.revision is not None and self.revision >= revision

    def described(self) -> dict[str, Any]:
        """Return it for programs."""
        return asdict(self)


class _Fleet(BaseModel):
    revision: int
    heard: int
    lease_seconds: float
    problem: str | None


class _Patches(BaseModel):
    fleet: _Fleet | None


def ask_server(url: str, api_key: str | None) -> Standing:
    """Ask one server; what keeps it from answering is in ``problem``."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key is not None else {}
    try:
        with httpx.Client(base_url=url, headers=headers, timeout=_TIMEOUT_S) as client:
            is_ready = client.get("/ready").is_success
            answer = client.get("/v1/patches")
        if not answer.is_success:
            return Standing(url, None, is_ready=is_ready, problem=f"answered {answer.status_code}")
        fleet = _Patches.model_validate_json(answer.content).fleet
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return Standing(url, None, problem=f"does not answer: {str(error) or type(error).__name__}")
    except ValidationError:
        return Standing(url, None, problem="answers, but not as a policypatch server does")
    if fleet is None:
        return Standing(url, None, is_ready=is_ready, problem="follows no catalog")
    return Standing(url, fleet.revision, fleet.heard, fleet.lease_seconds, is_ready, fleet.problem)


def ask_prometheus(prometheus: Prometheus) -> Sequence[Standing]:
    """Return every server that was seen in the last ten minutes, by its ``instance``.

    Raises:
        PrometheusError: It can't be asked.
    """

    def by_instance(metric: str) -> dict[str, float]:
        seen = f"last_over_time({prometheus.select(metric)}[{_SEEN}])"
        found = prometheus.ask(f"max by (instance) ({seen})")
        return {one.labels.get("instance", ""): one.value for one in found}

    revisions = by_instance("policy_patch_catalog_revision")
    heard = by_instance("policy_patch_catalog_heard_revision")
    ends_s = by_instance("policy_patch_catalog_lease_end_timestamp_seconds")
    now = prometheus.ask(prometheus.select("policy_patch_catalog_revision"))
    alive = {one.labels.get("instance", "") for one in now}
    return [
        Standing(
            instance,
            int(revision),
            int(heard[instance]) if instance in heard else None,
            round(ends_s[instance] - time.time(), 1) if instance in ends_s else None,
            problem=None if instance in alive else "not scraped any more",
        )
        for instance, revision in sorted(revisions.items())
        # 0 is what a server without a catalog has.
        if revision > 0
    ]
