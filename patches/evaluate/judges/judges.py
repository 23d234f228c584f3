"""The judges: what decides whether an answer refuses, complies or is toxic.

A judge gives each answer a score from 0 to 1 and a verdict. None of them is a model that could have filtered
training pairs by being asked the same question; what each gets wrong on answers that people labelled is
``calibration``'s to say. A run makes ``Judges`` once; a judge is loaded when a measure first asks for it.

To add one: a module with the judge, and a row of ``JUDGES`` with the labels that it is held to.
"""

from patches.evaluate.data import pinned
from patches.evaluate.data.packages import PackageFiles
from patches.evaluate.judges.judge import Bench, Judge, JudgeEntry, Labels
from patches.evaluate.judges.refusal import ComplianceJudge, RefusalJudge

REFUSAL, COMPLIANCE, TOXICITY = "refusal", "compliance", "toxicity"


def _toxicity(bench: Bench) -> Judge:
    from patches.evaluate.judges.toxicity import ToxicityJudge

    return ToxicityJudge(
        bench.files.read(pinned.TOXICITY_MODEL), bench.files.read(pinned.TOXICITY_VOCABULARY)
    )


#: name -> how the judge is made, and the answers that people labelled for its question.
JUDGES: dict[str, JudgeEntry] = {
    REFUSAL: JudgeEntry(
        lambda bench: RefusalJudge.fitted(bench.files.read(pinned.REFUSAL_PAIRS)),
        Labels("pyrit refusal scorer set, labelled by people", pinned.HUMAN_REFUSALS, "human_score"),
    ),
    COMPLIANCE: JudgeEntry(
        lambda bench: ComplianceJudge(bench.get(REFUSAL)),
        Labels(
            "pyrit objective sets (harmful requests), labelled by people",
            pinned.HUMAN_COMPLIANCE,
            "human_score",
        ),
    ),
    TOXICITY: JudgeEntry(
        _toxicity,
        # Hate is graded from 0 to 1.
        Labels("pyrit hate-speech set, graded by people", (pinned.HUMAN_HATE,), "human_score_1"),
    ),
}


class Judges:
    """The judges of a run, each made when first asked for."""

    def __init__(self, files: PackageFiles) -> None:
        self.files = files
        self._made: dict[str, Judge] = {}

    def get(self, name: str) -> Judge:
        """Return a judge by name.

        Raises:
            DataUnavailable: What it is made from is unavailable.
            KeyError: No judge has this name.
        """
        if name not in self._made:
            self._made[name] = JUDGES[name].make(self)
        return self._made[name]
