"""Statistics over what a client saw: quantiles of a cell, and ratios of arms within one round.

A *cell* is one arm at one concurrency in one round. Cells of different rounds are never compared with each
other: a machine drifts, and only the ratio of two cells that ran within the same round cancels that. All
times are in seconds on one monotonic clock. Nothing here knows HTTP or files.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

#: One cell's place: (run, round, concurrency).
CellKey = tuple[str, int, int]


@dataclass(frozen=True)
class RequestTrace:
    """When the parts of one streamed answer reached the client.

    Attributes:
        sent_s: just before the request was sent.
        token_times_s: arrival of each stream event that carried output tokens, ascending.
        done_s: when the stream had ended.
        num_output_tokens: tokens in the answer. Larger than ``len(token_times_s)`` where the server put
            several tokens into one event.
    """

    sent_s: float
    token_times_s: tuple[float, ...]
    done_s: float
    num_output_tokens: int


@dataclass(frozen=True)
class Summary:
    """The distribution of a list of samples, without the samples."""

    count: int
    mean: float
    minimum: float
    p25: float
    p50: float
    p75: float
    p90: float
    p99: float
    maximum: float


@dataclass(frozen=True)
class CellResult:
    """What one cell measured. A summary is ``None`` where no sample exists (one output token has no gaps)."""

    num_requests: int
    num_output_tokens: int
    duration_s: float
    output_tokens_per_s: float
    requests_per_s: float
    #: Tokens per stream event: above 1 the server bundled tokens, and inter-token latency counts bundles.
    tokens_per_event: float
    ttft_s: Summary
    #: Gaps between successive stream events of one answer.
    itl_s: Summary | None
    #: Time per output token after the first, one sample per request.
    tpot_s: Summary | None
    latency_s: Summary


def quantile(samples: Sequence[float], q: float) -> float:
    """Return the ``q`` quantile, interpolating linearly between the two nearest samples.

    Raises:
        ValueError: no samples, or ``q`` outside [0, 1].
    """
    if not samples:
        raise ValueError("samples: expected at least one, got none")
    if not 0 <= q <= 1:
        raise ValueError(f"q: expected a number in [0, 1], got {q}")
    ordered = sorted(samples)
    position = q * (len(ordered) - 1)
    below = math.floor(position)
    above = math.ceil(position)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def summarise(samples: Sequence[float]) -> Summary:
    """Summarise a non-empty list of samples.

    Raises:
        ValueError: no samples.
    """
    p25, p50, p75, p90, p99 = (quantile(samples, q) for q in (0.25, 0.5, 0.75, 0.9, 0.99))
    mean = math.fsum(samples) / len(samples)
    return Summary(len(samples), mean, min(samples), p25, p50, p75, p90, p99, max(samples))


def measure_cell(traces: Sequence[RequestTrace]) -> CellResult:
    """Reduce the traces of a cell to its result.

    The duration runs from the first request sent to the last stream ended, so ramp-up and drain are inside
    it, alike for every arm.

    Raises:
        ValueError: no traces, or one without an output token.
    """
    if any(not trace.token_times_s for trace in traces):
        raise ValueError("traces: expected at least one token in every answer, got an empty answer")
    ttfts = [trace.token_times_s[0] - trace.sent_s for trace in traces]
    gaps = [later - earlier for trace in traces for earlier, later in pairwise(trace.token_times_s)]
    per_token = [
        (trace.token_times_s[-1] - trace.token_times_s[0]) / (trace.num_output_tokens - 1)
        for trace in traces
        if trace.num_output_tokens > 1
    ]
    ttft = summarise(ttfts)
    duration_s = max(trace.done_s for trace in traces) - min(trace.sent_s for trace in traces)
    num_tokens = sum(trace.num_output_tokens for trace in traces)
    return CellResult(
        num_requests=len(traces),
        num_output_tokens=num_tokens,
        duration_s=duration_s,
        output_tokens_per_s=num_tokens / duration_s,
        requests_per_s=len(traces) / duration_s,
        tokens_per_event=num_tokens / sum(len(trace.token_times_s) for trace in traces),
        ttft_s=ttft,
        itl_s=summarise(gaps) if gaps else None,
        tpot_s=summarise(per_token) if per_token else None,
        latency_s=summarise([trace.done_s - trace.sent_s for trace in traces]),
    )


def paired_ratios(arm: Mapping[CellKey, float], reference: Mapping[CellKey, float]) -> dict[CellKey, float]:
    """Divide an arm's cells by the reference's cell of the same run, round and concurrency.

    Cells that only one of the two has (the last round of a run that was cut off) give no ratio, nor do those
    whose reference is 0 (a gap between events that arrived together).
    """
    return {key: value / reference[key] for key, value in arm.items() if reference.get(key)}
