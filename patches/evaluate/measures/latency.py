"""Latency: one request at a time, answers of a fixed length. Load is what ``policypatch bench`` is for."""

from collections.abc import Sequence

from patches.evaluate.data.items import Item
from patches.evaluate.measures.measure import Context, Metric, Scored
from patches.evaluate.subjects.subject import Subject


class LatencyMeasure:
    """Time to the first token, and tokens a second after it."""

    metrics = (
        Metric("first_token_ms", "until the first token", "lower", "ms"),
        Metric("token_ms", "for each token after the first", "lower", "ms"),
    )

    def run(self, subject: Subject, items: Sequence[Item], context: Context) -> list[Scored]:
        """Time each item once; the first of a chunk is asked twice, so that what is cached is warm."""
        num_tokens = context.integer("num_tokens", 32)
        prompts = [item.prompt for item in items]
        subject.time(prompts[:1], num_tokens)
        scored = []
        for item, timing in zip(items, subject.time(prompts, num_tokens), strict=True):
            rest_s, num_rest = timing.total_s - timing.first_token_s, float(max(0, timing.num_tokens - 1))
            values = {
                "first_token_ms": (timing.first_token_s * 1000, 1.0),
                "token_ms": (rest_s * 1000, num_rest),
            }
            scored.append(Scored(item.id, item.category, values))
        return scored
