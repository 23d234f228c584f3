"""Fluency: does the patch disturb reading and writing of ordinary text?

*Perplexity* is what neutral text costs the model under an arm. *Outputs* are an arm's own answers to harmless
requests: their perplexity under the base model, and how far they repeat themselves.
"""

from collections.abc import Sequence

from patches.evaluate.data.items import Item
from patches.evaluate.measures.measure import Context, Metric, Scored, sampling_seed
from patches.evaluate.subjects.subject import Reading, Renderer, Subject
from patches.sampling import Sampling

_MIN_TOKENS = 2


class PerplexityMeasure:
    """Perplexity of neutral text under an arm."""

    metrics = (Metric("perplexity", "of neutral text under the arm", "lower", "number", is_exponential=True),)

    def run(self, subject: Subject, items: Sequence[Item], context: Context) -> list[Scored]:
        """Read the first tokens of each text; the very first is context, in every arm."""
        max_tokens = context.integer("max_tokens", 128)
        renderer: Renderer = subject.renderer
        readings = []
        for item in items:
            ids = renderer.ids(item.prompt)[: max_tokens + 1]
            context_ids = renderer.raw_ids(item.prompt)[: -len(renderer.ids(item.prompt))]
            readings.append(Reading((*context_ids, ids[0]), ids[1:]))
        return [
            Scored(item.id, item.category, {"perplexity": (-sum(steps), float(len(steps)))})
            for item, steps in zip(items, subject.score(readings), strict=True)
        ]


class OutputsMeasure:
    """An arm's answers to harmless requests, read by the base model."""

    metrics = (
        Metric("perplexity", "of the arm's answers under the base", "lower", "number", is_exponential=True),
        Metric("trigram_overlap", "word trigrams that the answer had before", "lower"),
        Metric("num_words", "words of an answer", "none", "number"),
    )

    def run(self, subject: Subject, items: Sequence[Item], context: Context) -> list[Scored]:
        """Answer greedily, then have the base read question and answer."""
        sampling = Sampling(context.integer("max_tokens", 96), seed=sampling_seed(context.seed, items))
        answers = [samples[0] for samples in subject.chat([item.prompt for item in items], sampling)]
        renderer: Renderer = context.base.renderer
        readings = [
            Reading(renderer.chat_ids(item.prompt), renderer.ids(answer))
            for item, answer in zip(items, answers, strict=True)
        ]
        read = iter(context.base.score([r for r in readings if len(r.tokens) >= _MIN_TOKENS]))
        steps = [next(read) if len(r.tokens) >= _MIN_TOKENS else [] for r in readings]
        return [
            Scored(item.id, item.category, _values(answer, row), "", item.prompt, answer)
            for item, answer, row in zip(items, answers, steps, strict=True)
        ]


def _values(answer: str, steps: Sequence[float]) -> dict[str, tuple[float, float]]:
    num_repeated, num_trigrams = trigram_overlap(answer)
    return {
        "perplexity": (-sum(steps), float(len(steps))),
        "trigram_overlap": (num_repeated / num_trigrams if num_trigrams else 0.0, float(num_trigrams > 0)),
        "num_words": (float(len(answer.split())), 1.0),
    }


def trigram_overlap(text: str) -> tuple[int, int]:
    """Count the word trigrams that a text had before, and all of them.

    ``a b c a b c`` has four trigrams, one of which (``a b c``) comes again: (1, 4).
    """
    words = text.lower().split()
    trigrams = list(zip(words, words[1:], words[2:], strict=False))
    return len(trigrams) - len(set(trigrams)), len(trigrams)
