"""The use of each patch in words: most of the lines of a page, so they are filled into templates.

1,000 patches that were all used have 41,000 lines here, which take ``prometheus_client`` 240 ms, and this a
tenth of that (one x86 core). It writes the same, which a test holds this to.
"""

from collections.abc import Iterable, Iterator, Sequence

from prometheus_client.samples import Exemplar
from prometheus_client.utils import floatToGoString

from server.metrics.latency import FIRST_TOKEN_BOUNDS_S, INTER_TOKEN_BOUNDS_S, LatencyHistogram
from server.metrics.use import PatchUse

#: Name, help. In the order of a page.
FIRST_TOKEN = (
    "policy_patch_time_to_first_token_seconds",
    "From a generation's admission to its first token.",
)
INTER_TOKEN = (
    "policy_patch_inter_token_latency_seconds",
    "Between two tokens; a step with several tokens counts each with its share.",
)
PROMPT_TOKENS = (
    "policy_patch_prompt_tokens",
    "Tokens of prompts as they were sent, without the prefix.",
)
GENERATION_TOKENS = ("policy_patch_generation_tokens", "Tokens that were generated.")

Uses = Sequence[tuple[str, PatchUse]]


class _HistogramText:
    """Writes the lines of one patch: a bucket each, then count and sum."""

    def __init__(self, name: str, bounds_s: Sequence[float]) -> None:
        bounds = [*map(str, bounds_s), "+Inf"]
        lines = [f'{name}_bucket{{le="{bound}",patch="\0"}} %s\n' for bound in bounds]
        self._template = "".join(
            [*lines, f'{name}_count{{patch="\0"}} %s\n', f'{name}_sum{{patch="\0"}} %s\n']
        )

    def lines(self, patch: str, histogram: LatencyHistogram, *, has_exemplars: bool) -> str:
        """Return them; names of patches hold nothing that would have to be escaped."""
        counts: list[object] = [*map(float, histogram.cumulative())]
        total = counts[-1]
        if has_exemplars:
            for position, exemplar in histogram.exemplars().items():
                counts[position] = f"{counts[position]}{_written(exemplar)}"
        return self._template.replace("\0", patch) % (*counts, total, _number(histogram.sum_s))


_FIRST = _HistogramText(FIRST_TOKEN[0], FIRST_TOKEN_BOUNDS_S)
_INTER = _HistogramText(INTER_TOKEN[0], INTER_TOKEN_BOUNDS_S)


def use_text(uses: Uses, *, is_openmetrics: bool) -> str:
    """Return all lines, in either form of the exposition."""
    return "".join(_lines(uses, is_openmetrics=is_openmetrics))


def _lines(uses: Uses, *, is_openmetrics: bool) -> Iterator[str]:
    yield _head(*FIRST_TOKEN, "histogram")
    for name, use in uses:
        yield _FIRST.lines(name, use.first_token, has_exemplars=is_openmetrics)
    yield _head(*INTER_TOKEN, "histogram")
    for name, use in uses:
        yield _INTER.lines(name, use.inter_token, has_exemplars=is_openmetrics)
    suffix = "" if is_openmetrics else "_total"
    prompts = ((name, use.num_prompt_tokens) for name, use in uses)
    yield from _counter(PROMPT_TOKENS, suffix, prompts)
    generated = ((name, use.num_generated_tokens) for name, use in uses)
    yield from _counter(GENERATION_TOKENS, suffix, generated)


def _counter(about: tuple[str, str], suffix: str, counts: Iterable[tuple[str, int]]) -> Iterator[str]:
    name, meaning = about
    yield _head(f"{name}{suffix}", meaning, "counter")
    for patch, count in counts:
        yield f'{name}_total{{patch="{patch}"}} {_number(count)}\n'


def _head(name: str, meaning: str, kind: str) -> str:
    return f"# HELP {name} {meaning}\n# TYPE {name} {kind}\n"


def _number(value: float) -> str:
    return str(floatToGoString(value))  # type: ignore[no-untyped-call]


def _written(exemplar: Exemplar) -> str:
    labels = ",".join(f'{key}="{value}"' for key, value in sorted(exemplar.labels.items()))
    return f" # {{{labels}}} {_number(exemplar.value)} {exemplar.timestamp}"
