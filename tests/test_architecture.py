"""The rules of the house as checks: who may import whom, how large things get, what an import may load.

Each rule runs over this repository, and over a small checkout that breaks it: it has to notice.
"""

import ast
from pathlib import Path

import pytest

from tests.architecture import import_rules, shape_rules, word_rules
from tests.architecture.source import RULES, imported_names, module_level

ROOT = Path(__file__).resolve().parent.parent


def test_every_file_of_rules_is_read() -> None:
    files = {import_rules, shape_rules, word_rules}
    assert {rule.check.__module__ for rule in RULES.values()} == {file.__name__ for file in files}


@pytest.mark.parametrize("name", RULES)
def test_this_repository_keeps_the_rule(name: str) -> None:
    violations = RULES[name].check(ROOT)
    assert not violations, "\n".join(violations)


@pytest.mark.parametrize("name", RULES)
def test_the_rule_notices_a_violation(name: str, tmp_path: Path) -> None:
    for file, text in RULES[name].violation.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
    assert len(RULES[name].check(tmp_path)) == 1


def test_type_checking_imports_and_function_bodies_are_no_imports() -> None:
    tree = ast.parse(
        "if TYPE_CHECKING:\n    import vllm\nelse:\n    import a\ndef f():\n    import b\nimport c\n"
    )
    names = {
        name
        for node in module_level(tree)
        if isinstance(node, ast.Import)
        for _, name in imported_names(node)
    }
    assert names == {"a", "c"}
