"""YAML that people wrote, as suites, gates and recipes: data only, and no key twice in one mapping.

YAML's own reader keeps the last of two equal keys, so that a threshold could stand in a file and not count.
"""

from typing import Any

import yaml
from yaml.nodes import MappingNode, ScalarNode


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    # Checked as it is written: what a merge key (``<<``) brings along may be replaced.
    def compose_mapping_node(self, anchor: Any) -> MappingNode:
        node: MappingNode = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if not isinstance(key, ScalarNode):
                continue
            if (key.tag, key.value) in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key.value[:80]!r} appears twice in one mapping",
                    problem_mark=key.start_mark,
                )
            seen.add((key.tag, key.value))
        return node

    def construct_yaml_int(self, node: Any) -> Any:
        try:
            return super().construct_yaml_int(node)
        except ValueError:
            # Python's own message is advice for programmers.
            raise yaml.MarkedYAMLError(
                problem=f"expected an integer that is not too long, got {node.value[:20]!r}",
                problem_mark=node.start_mark,
            ) from None


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def parse_yaml(text: str) -> Any:
    """Return what a text of YAML holds.

    Raises:
        ValueError: It is no YAML, names a key twice in one mapping, holds an integer that is too long, or is
            nested too deeply to be read.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"expected YAML: {' '.join(str(error).split())[:300]}") from None
    except RecursionError:
        raise ValueError("expected YAML, got one that is nested too deeply") from None
