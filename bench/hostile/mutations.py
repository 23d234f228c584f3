"""Patch files made to harm: one seed, one file; equal seeds give equal files.

Every family damages a good file in its own way.
"""

import random

from bench.hostile.damage import DAMAGE, DISGUISES, Mutate
from bench.hostile.forgeries import FORGERIES
from bench.hostile.places import PLACES, Place

MUTATIONS: dict[str, Mutate] = {**DAMAGE, **FORGERIES, **DISGUISES}
#: A seed's family is its remainder here; damage comes four times as often as places, which differ little.
FAMILIES = (*(list(MUTATIONS) * 4), *PLACES)


def mutant(seed: int, good: bytes) -> tuple[str, bytes | Place]:
    """Return the family of a seed, and what it makes: bytes, or a thing to put in the file's place."""
    rng = random.Random(seed)
    name = FAMILIES[seed % len(FAMILIES)]
    if name in PLACES:
        return name, PLACES[name]
    while (data := MUTATIONS[name](rng, good)) == good:
        # A change that happened to change nothing.
        continue
    return name, data
