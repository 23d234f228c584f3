"""Seeded workloads: which prompts are sent, and in which order the arms take their turns.

Everything is a pure function of its arguments and the seed. Prompts are token ids, so that every arm sends
exactly the same user tokens and lengths are exact.
"""

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass

#: Text whose tokens user prompts are drawn from; only its variety matters. Prompts are not meant to make
#: sense: with a fixed output length, the time an answer takes does not depend on what it says.
VOCABULARY_TEXT = (
    "On a quiet morning the old harbour wakes before the town does. Fishermen untie small green boats, "
    "gulls argue over scraps, and the baker opens her shutters with a long wooden hook. Seven crates of "
    "lemons arrive from the south, each stamped with a blue crown. Nobody asks who ordered them. The "
    "teacher counts her pupils twice, then writes a question about rivers, metals and weather upon the "
    "board. By noon rain falls, warm and thin, while engineers measure how far the bridge moves under a "
    "loaded train. Their notes mention copper, glass, pressure, distance, patience and luck. A doctor "
    "borrows an umbrella; two brothers repair a radio; somebody sings. At night every window shows "
    "another story: maps, letters, soup, chess, a violin, an unfinished kite."
)

_TOPICS = (
    *("the sea", "a bicycle", "bread", "the moon", "a violin"),
    *("tax law", "winter", "honey bees", "a bridge", "chess"),
)
_FORMS = (
    "What is {}?",
    "Write two sentences about {} for a child.",
    "Give me three facts about {}.",
    "Why do people like {}?",
    "Tell me a joke about {}.",
    "What should I never do with {}?",
    "Explain to an engineer how one would measure {}.",
    "Write the first line of a poem about {}.",
)
#: What is asked; plain questions, since the odd ones are seldom what a server is asked.
PROMPTS = tuple(form.format(topic) for topic, form in itertools.product(_TOPICS, _FORMS))


@dataclass(frozen=True)
class UserTurn:
    """The fixed token ids around a user message, and the ids that messages are drawn from.

    Attributes:
        head: ids that open the user turn (empty without a chat template).
        tail: ids that close it and ask for the answer.
        pool: ids of ordinary words.
    """

    head: tuple[int, ...]
    tail: tuple[int, ...]
    pool: tuple[int, ...]


def split_user_turn(first: Sequence[int], second: Sequence[int], pool: Sequence[int]) -> UserTurn:
    """Find the fixed ids around the message from two renderings whose messages have no token in common.

    Raises:
        ValueError: the renderings are equal, so that nothing tells the message apart.
    """
    if list(first) == list(second):
        raise ValueError("second: expected a rendering of another message, got the same token ids")
    shortest = min(len(first), len(second))
    num_head = 0
    while num_head < shortest and first[num_head] == second[num_head]:
        num_head += 1
    num_tail = 0
    while num_tail < shortest - num_head and first[-1 - num_tail] == second[-1 - num_tail]:
        num_tail += 1
    return UserTurn(tuple(first[:num_head]), tuple(first[len(first) - num_tail :]), tuple(pool))


def user_prompts(
    turn: UserTurn, *, count: int, num_tokens: int, unique_within: int, seed: int, label: str
) -> list[list[int]]:
    """Draw ``count`` user prompts of exactly ``num_tokens`` ids.

    No two of them share their first ``unique_within`` ids, so that the prefix cache, whose unit is a block,
    never serves one prompt's tokens to another. Another ``label`` gives other prompts.

    Raises:
        ValueError: ``num_tokens`` leaves no room for a message, or the fixed head is so long that prompts
            cannot differ within ``unique_within`` ids.
    """
    num_drawn = num_tokens - len(turn.head) - len(turn.tail)
    num_distinct = min(unique_within, num_tokens) - len(turn.head)
    if num_drawn < 1:
        raise ValueError(
            f"num_tokens: expected more than the {len(turn.head) + len(turn.tail)} ids around a message, "
            f"got {num_tokens}"
        )
    if num_distinct < 4 or len(set(turn.pool)) < 16:
        raise ValueError(
            f"unique_within: expected at least 4 ids more than the {len(turn.head)} that open a user turn, "
            f"and 16 ids to draw from; got {unique_within} and {len(set(turn.pool))}"
        )
    rng = random.Random(f"{seed}/{label}")
    prompts: list[list[int]] = []
    beginnings: set[tuple[int, ...]] = set()
    while len(prompts) < count:
        prompt = [*turn.head, *rng.choices(turn.pool, k=num_drawn), *turn.tail]
        beginning = tuple(prompt[:unique_within])
        if beginning not in beginnings:
            beginnings.add(beginning)
            prompts.append(prompt)
    return prompts


def patch_names(names: Sequence[str], *, count: int, popularity: str, seed: int, label: str) -> list[str]:
    """Draw which patch each of ``count`` requests names.

    Args:
        names: the patches, most popular first.
        count: number of requests.
        popularity: ``"uniform"``; ``"zipf"``: the n-th is asked for 1/n as often as the first; ``"turns"``:
            one after the other, as evenly as can be.
        seed: decides the draw, together with ``label``.
        label: another one gives another draw.

    Raises:
        ValueError: an unknown popularity.
    """
    if popularity == "turns":
        return [names[i % len(names)] for i in range(count)]
    if popularity not in ("uniform", "zipf"):
        raise ValueError(f"popularity: expected uniform, zipf or turns, got {popularity!r}")
    weights = [1 / rank if popularity == "zipf" else 1.0 for rank in range(1, len(names) + 1)]
    return random.Random(f"{seed}/{label}").choices(names, weights=weights, k=count)


def arm_orders(arms: Sequence[str], *, num_rounds: int, seed: int, label: str) -> list[list[str]]:
    """Order the arms for each round, so that neither position nor neighbour favours one.

    A Williams design under a seeded relabelling: over ``n`` rounds (``2n`` for an odd number of arms) every
    arm takes every position equally often and follows every other arm equally often; fewer rounds are a part
    of it.
    """
    rng = random.Random(f"{seed}/{label}")
    names = list(arms)
    rng.shuffle(names)
    n = len(names)
    # 0, n-1, 1, n-2, 2, ...: successive differences are all distinct modulo n.
    zigzag = [i // 2 if i % 2 == 0 else n - 1 - i // 2 for i in range(n)]
    rows = [[(position + shift) % n for position in zigzag] for shift in range(n)]
    if n % 2:
        rows += [row[::-1] for row in rows]
    rng.shuffle(rows)
    return [[names[i] for i in rows[round_idx % len(rows)]] for round_idx in range(num_rounds)]
