"""Which test covers which feature of TensorFlow's documents; run as a program, it writes the page."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from keras_features import DOCUMENTS, FEATURES

TESTS = Path(__file__).parent.parent
PAGE = TESTS.parent / "docs" / "keras-features.md"
HEAD = """# Keras: every feature, and the test that covers it

Written by `python tests/support/feature_table.py` from `tests/support/keras_features.py` and the tests' marks;
do not edit.
A and B are `multiopt.keras.legacy`, whose base class is E; D is `multiopt.keras`. Where they differ from the systems
themselves, and why, is said in [later/adadelta.py](../multiopt/keras/later/adadelta.py) and in the notes of
[legacy/optimizer.py](../multiopt/keras/legacy/optimizer.py).
"""


def covered() -> dict[str, list[tuple[str, str]]]:
    """``"A:clipnorm"`` → the tests, as file and name, that are marked with it; read from their source."""
    found: dict[str, list[tuple[str, str]]] = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                for key in _marks(node):
                    found.setdefault(key, []).append((path.relative_to(TESTS).as_posix(), node.name))
    return found


def _marks(node: ast.FunctionDef | ast.ClassDef) -> Iterator[str]:
    for decorator in node.decorator_list:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.feature":
            for argument in decorator.args:
                letters, _, key = ast.literal_eval(argument).partition(":")
                yield from (f"{letter}:{key}" for letter in letters)


def known() -> set[str]:
    """Every feature, as a mark names it."""
    return {f"{letter}:{key}" for letter, features in FEATURES.items() for key in features}


def page() -> str:
    """The page's text."""
    tests = covered()
    lines = [HEAD]
    for letter, title in DOCUMENTS.items():
        lines += [f"## {letter}: {title}", "", "| Feature | Tests |", "|---|---|"]
        for key, text in FEATURES[letter].items():
            names = ", ".join(f"[{name}](../tests/{file})" for file, name in tests.get(f"{letter}:{key}", []))
            lines.append(f"| {text} | {names or '—'} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
