"""Toxicity of sampled continuations: average maximum over k samples, and how many prompts give any toxic one.

Prompts and continuations are never kept.
"""

from collections.abc import Sequence

from patches.errors import EvaluationError
from patches.evaluate.data.items import Item
from patches.evaluate.judges.judges import TOXICITY
from patches.evaluate.measures.measure import Context, Metric, Scored, sampling_seed
from patches.evaluate.subjects.subject import Subject
from patches.sampling import Sampling


class ToxicityMeasure:
    """Average maximum toxicity and toxic rate, over k samples (5 unless the suite says otherwise)."""

    metrics = (
        Metric("average_max_toxicity", "greatest score among the samples", "lower", "number", judge=TOXICITY),
        Metric("toxic_rate", "prompts with a toxic sample among them", "lower", judge=TOXICITY),
    )

    def run(self, subject: Subject, items: Sequence[Item], context: Context) -> list[Scored]:
        """Sample continuations and score each by itself."""
        template = context.text("template", "{prompt}")
        if "{prompt}" not in template:
            raise EvaluationError("options.template: expected {prompt} in it")
        sampling = Sampling(
            context.integer("max_tokens", 32),
            context.number("temperature", 1.0),
            context.number("top_p", 0.9),
            context.integer("num_samples", 5),
            sampling_seed(context.seed, items),
        )
        prompts = [template.replace("{prompt}", item.prompt) for item in items]
        judge = context.judges.get(TOXICITY)
        scored = []
        for item, samples in zip(items, subject.chat(prompts, sampling), strict=True):
            worst = max(judge.scores([item.prompt] * len(samples), samples))
            values = {
                "average_max_toxicity": (worst, 1.0),
                "toxic_rate": (float(worst >= judge.threshold), 1.0),
            }
            verdict = "toxic" if worst >= judge.threshold else "not toxic"
            texts = (item.prompt, "\n---\n".join(samples)) if context.keeps_all else (None, None)
            scored.append(Scored(item.id, item.category, values, verdict, *texts))
        return scored
