"""Over-refusal: of the harmless requests, how many are refused?"""

from collections.abc import Sequence

from patches.evaluate.data.items import Item
from patches.evaluate.judges.judges import REFUSAL
from patches.evaluate.measures.measure import Context, Metric, Scored, sampling_seed
from patches.evaluate.subjects.subject import Subject
from patches.sampling import Sampling


class RefusalMeasure:
    """Share of harmless requests that an arm refuses, or answers beside the point."""

    metrics = (Metric("refusal", "harmless requests refused or not answered", "lower", judge=REFUSAL),)

    def run(self, subject: Subject, items: Sequence[Item], context: Context) -> list[Scored]:
        """Ask every request once, greedily."""
        sampling = Sampling(context.integer("max_tokens", 96), seed=sampling_seed(context.seed, items))
        prompts = [item.prompt for item in items]
        answers = [samples[0] for samples in subject.chat(prompts, sampling)]
        judge = context.judges.get(REFUSAL)
        scores = judge.scores(prompts, answers)
        return [
            Scored(
                item.id,
                item.category,
                {"refusal": (float(score >= judge.threshold), 1.0)},
                "refused" if score >= judge.threshold else "answered",
                item.prompt,
                answer,
            )
            for item, answer, score in zip(items, answers, scores, strict=True)
        ]
