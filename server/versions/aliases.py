"""The ``model`` alias ``<served name>:<patch>``, for clients that can't set headers.

A served name may contain colons itself, so the longest served name that fits is the base.
"""

from collections.abc import Sequence

from server.errors import ALIAS_PARAM
from server.versions.selection import Wish, parse_wish


def alias_wish(model: str, served_names: Sequence[str]) -> Wish | None:
    """Read what ``model`` names behind the served name; ``None`` where it is no alias.

    Raises:
        MalformedPatchName: It is an alias, and what follows the colon is no selection.
    """
    if model in served_names:
        return None
    bases = [name for name in served_names if model.startswith(f"{name}:")]
    if not bases:
        return None
    return parse_wish(model[len(max(bases, key=len)) + 1 :], ALIAS_PARAM)
