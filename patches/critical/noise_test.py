"""S under noise: on the weights of the largest scores, of the smallest, and on as many at random."""

from patches.critical.gradient import Tell, linear_parameters, value_of
from patches.critical.noise import noise_changes
from patches.critical.report import NoiseResult, NoiseTest
from patches.critical.scorer import Scorer
from patches.critical.scores import Scores
from patches.critical.selection import select
from patches.deltas.applied import at_work
from patches.deltas.sides import SIDES
from patches.model import LoadedModel


def noise_test(
    model: LoadedModel,
    scores: Scores,
    scorer: Scorer,
    share: float,
    scale: float,
    num_seeds: int,
    tell: Tell = lambda done, total: None,
) -> NoiseTest:
    """Compute S as it is, and under each noise; the model is as it was afterwards.

    Args:
        model: Whose weights were scored.
        scores: Theirs.
        scorer: S, best on prompts that the scores have not seen.
        share: Of the weights that get noise.
        scale: Standard deviations of a weight's tensor.
        num_seeds: Times that noise is drawn, and random weights are.
        tell: Told how far it is.

    Raises:
        ScoresError: A number is out of range.
    """
    network, weights = model.network, linear_parameters(model.network)
    total, done = 1 + len(SIDES) * num_seeds, 1
    without = value_of(network, scorer)
    tell(done, total)
    results = []
    for side in SIDES:
        values = []
        for seed in range(num_seeds):
            changes = noise_changes(select(scores, share, side, seed), weights, scale, seed)
            with at_work(network, changes):
                values.append(value_of(network, scorer))
            done += 1
            tell(done, total)
        results.append(NoiseResult(side, values))
    return NoiseTest(scale, without, results)
