"""Ways to get past a required patch, to a forbidden one, or to another caller's rights: none may work.

A list, group by group. Who sends them has to know which patch answered by other means than the answer's own
word.
"""

from tests.attacks.attempt import Attempt
from tests.attacks.by_body import BODY
from tests.attacks.by_caller import KEYS, TENANTS
from tests.attacks.by_patch import LEAVING_IT_OUT, REACHING_A_FORBIDDEN_ONE
from tests.attacks.by_route import ROUTES
from tests.attacks.by_spelling import HEADERS, SPELLING

GROUPS: dict[str, tuple[Attempt, ...]] = {
    "leaving the required patch out": LEAVING_IT_OUT,
    "reaching a forbidden patch": REACHING_A_FORBIDDEN_ONE,
    "spelling": SPELLING,
    "headers": HEADERS,
    "the body": BODY,
    "somebody else's key": KEYS,
    "somebody else's tenant": TENANTS,
    "routes, paths, methods": ROUTES,
}
ATTEMPTS = tuple(attempt for group in GROUPS.values() for attempt in group)
