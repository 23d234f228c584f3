"""The words for which weights are chosen by their scores, and how many may be."""

#: Those of the largest scores, of the smallest, or any.
TOP, BOTTOM, RANDOM = "top", "bottom", "random"
SIDES = (TOP, BOTTOM, RANDOM)
#: The paper's share of all weights.
DEFAULT_SHARE = 0.01
MAX_SHARE = 0.25
