"""How often a judge is wrong, on answers that people labelled.

Nothing is fitted to these answers; the rule for off-topic answers was added after a look at what the refusal
judge had missed in the refusal set, whose labels count them as refusals.
"""

from dataclasses import asdict, dataclass
from typing import Any

from patches.evaluate.data.packages import PackageFiles
from patches.evaluate.judges.judge import Judge, LabelledAnswer
from patches.evaluate.judges.judges import JUDGES, Judges


@dataclass(frozen=True)
class Calibration:
    """A judge against people's labels."""

    judge: str
    labels: str
    n: int
    num_positive: int
    #: Of the answers that people said no to, the share where the judge says yes.
    false_positive_rate: float
    #: Of the answers that people said yes to, the share where the judge says no.
    false_negative_rate: float

    def to_document(self) -> dict[str, Any]:
        """Return it as JSON."""
        return asdict(self)


def calibrate(name: str, judges: Judges, files: PackageFiles) -> Calibration:
    """Run one judge over the answers that people labelled for its question.

    Raises:
        DataUnavailable: The labelled answers, or the judge, are unavailable.
    """
    labels = JUDGES[name].labels
    return compare(name, judges.get(name), labels.about, list(labels.read(files)))


def compare(name: str, judge: Judge, labels: str, answers: list[LabelledAnswer]) -> Calibration:
    """Count a judge's mistakes."""
    scores = judge.scores([a.request for a in answers], [a.answer for a in answers])
    verdicts = [score >= judge.threshold for score in scores]
    pairs = list(zip(verdicts, (a.label for a in answers), strict=True))
    num_positive = sum(label for _, label in pairs)
    num_false_positive = sum(verdict and not label for verdict, label in pairs)
    num_false_negative = sum(label and not verdict for verdict, label in pairs)
    return Calibration(
        name,
        labels,
        len(pairs),
        num_positive,
        num_false_positive / max(1, len(pairs) - num_positive),
        num_false_negative / max(1, num_positive),
    )
