"""Asks Prometheus, by its HTTP API, for what all servers of a fleet count."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import httpx
from pydantic import BaseModel, ValidationError

_TIMEOUT_S = 10.0


class PrometheusError(Exception):
    """It can't be asked; the message names it."""


@dataclass(frozen=True, slots=True)
class Value:
    """One time series at this moment."""

    labels: Mapping[str, str]
    value: float


class _Sample(BaseModel):
    metric: dict[str, str]
    value: tuple[float, float]


class _Data(BaseModel):
    result: list[_Sample]


class _Answer(BaseModel):
    data: _Data


class Prometheus:
    """One Prometheus server, or what speaks its protocol."""

    def __init__(self, url: str, matchers: Sequence[str] = ()) -> None:
        """Remember where it is.

        Args:
            url: Its address.
            matchers: Of labels that only the servers of one fleet have, as ``job="chat"``.
        """
        self._url = url.rstrip("/")
        self._matchers = tuple(matchers)

    def select(self, metric: str, *matchers: str) -> str:
        """Return the selector of a metric of the fleet's servers."""
        return f"{metric}{{{','.join((*self._matchers, *matchers))}}}"

    def ask(self, query: str, at_s: float | None = None) -> list[Value]:
        """Return the series of an instant vector that are numbers.

        Args:
            query: In PromQL.
            at_s: Unix time in seconds for which it is asked; ``None`` for now.

        Raises:
            PrometheusError: It is not there, or does not understand.
        """
        try:
            asked = {"query": query} | ({"time": f"{at_s:.3f}"} if at_s is not None else {})
            answer = httpx.post(f"{self._url}/api/v1/query", data=asked, timeout=_TIMEOUT_S)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise PrometheusError(f"{self._url}: {error or type(error).__name__}") from error
        if not answer.is_success:
            raise PrometheusError(f"{self._url}: answered {answer.status_code}: {answer.text[:200]}")
        try:
            samples = _Answer.model_validate_json(answer.content).data.result
        except ValidationError:
            raise PrometheusError(f"{self._url}: answers, but not as Prometheus does") from None
        # NaN is what a quantile of nothing is; of what is infinite, nothing follows either.
        return [Value(s.metric, s.value[1]) for s in samples if math.isfinite(s.value[1])]

    def number(self, query: str, at_s: float | None = None) -> float | None:
        """Return the number that a query comes to; ``None`` where there is none. See ``ask``."""
        values = self.ask(query, at_s)
        return values[0].value if values else None
