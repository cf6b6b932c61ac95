"""Rules no linter knows: sizes, names, docstrings, and what may stand in an `__init__`."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("kvstore", "cli", "jepsen-lite", "tests", "bench")

FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 60
CLASS_METHODS_MAX = 20
VAGUE_NAMES = {"utils", "util", "helpers", "manager", "base", "common", "misc"}

ALLOWED: dict[tuple[str, str], str] = {
    ("kvstore/errors.py", "file"): "the error tree is one table, and a table is read in one piece",
}
"""(file, what) -> why. Small on purpose; an entry that is no longer needed fails."""


def sources() -> list[Path]:
    """Every Python file of ours, sorted."""
    return sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def _lines_of(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function less its docstring."""
    assert node.end_lineno is not None
    lines = node.end_lineno - node.lineno + 1
    if ast.get_docstring(node) is not None:
        docstring = node.body[0]
        assert docstring.end_lineno is not None
        lines -= docstring.end_lineno - docstring.lineno + 1
    return lines


def offences(name: str, text: str) -> Iterator[tuple[str, str]]:
    """Yield (what, sentence) for each rule that the file called `name` breaks."""
    tree = ast.parse(text)
    lines = text.count("\n")
    if lines > FILE_LINES_MAX:
        yield "file", f"{lines} lines; at most {FILE_LINES_MAX}: split it by nouns"
    if text.strip() and ast.get_docstring(tree) is None:
        yield "docstring", "no module docstring"
    if Path(name).stem in VAGUE_NAMES:
        yield "name", "a file is named for what it holds"
    for found in re.finditer(r"\b(TODO|FIXME|XXX)\b(?! ?\(#\d+\))", text):
        # The pattern itself stands here once, which is the only place it may.
        if name != "tests/test_tidy.py":
            yield "todo", f"{found[0]} without an issue number"
    yield from _parts(name, tree)
    if Path(name).name == "__init__.py":
        yield from _own_code(tree)


def _parts(name: str, tree: ast.Module) -> Iterator[tuple[str, str]]:
    """What is wrong with the functions, classes and calls of a file."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() if _lines_of(node) > FUNCTION_LINES_MAX:
                yield node.name, f"function of {_lines_of(node)} lines; at most {FUNCTION_LINES_MAX}"
            case ast.ClassDef():
                methods = sum(isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef) for part in node.body)
                if methods > CLASS_METHODS_MAX:
                    yield node.name, f"class of {methods} methods; at most {CLASS_METHODS_MAX}"
            case ast.Call(func=ast.Name(id="hash")) if name.startswith("kvstore/"):
                yield "hash", "builtin hash() differs between processes: use kvstore.core.hashing"


def _own_code(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """What an `__init__` defines beyond the public names it re-exports."""
    for statement in tree.body:
        match statement:
            case ast.FunctionDef(name="__getattr__" | "__dir__"):
                pass  # PEP 562: how a package makes its public face lazy
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield statement.name, "an __init__ only re-exports"


def test_every_file_keeps_the_rules() -> None:
    found = {
        (str(path.relative_to(ROOT)), what): sentence
        for path in sources()
        for what, sentence in offences(str(path.relative_to(ROOT)), path.read_text(encoding="utf-8"))
    }
    bad = [f"{name}: {what}: {s}" for (name, what), s in sorted(found.items()) if (name, what) not in ALLOWED]
    assert not bad, "\n" + "\n".join(bad)
    stale = sorted(ALLOWED.keys() - found.keys())
    assert not stale, f"no longer needed in ALLOWED: {stale}"


def test_test_files_have_unique_names_and_no_packages() -> None:
    tests = [path for path in sources() if path.is_relative_to(ROOT / "tests")]
    assert not [path for path in tests if path.name == "__init__.py"]
    twice = [n for n, times in Counter(p.name for p in tests if p.name != "conftest.py").items() if times > 1]
    assert not twice, twice


def test_source_folders_are_not_packages() -> None:
    """`cli/` and `jepsen-lite/` hold packages; were they packages, a wheel could ship a module `cli`."""
    assert not (ROOT / "cli" / "__init__.py").exists()
    assert not (ROOT / "jepsen-lite" / "__init__.py").exists()


DOC = '"""Doc."""\n'
LONG_BODY = "".join(f"    x{i} = {i}\n" for i in range(FUNCTION_LINES_MAX))


@pytest.mark.parametrize(
    ("name", "text", "what"),
    [
        ("kvstore/core/a.py", DOC + "x = 1\n" * FILE_LINES_MAX, "file"),
        ("kvstore/core/a.py", "x = 1\n", "docstring"),
        ("kvstore/core/utils.py", DOC, "name"),
        ("kvstore/core/a.py", DOC + "# TO" + "DO later\n", "todo"),
        ("kvstore/core/a.py", DOC + "def f():\n" + LONG_BODY, "f"),
        ("kvstore/core/a.py", DOC + "class C:\n" + "    def m(self): ...\n" * (CLASS_METHODS_MAX + 1), "C"),
        ("kvstore/core/a.py", DOC + "x = hash('a')\n", "hash"),
        ("kvstore/core/__init__.py", DOC + "def f(): ...\n", "f"),
    ],
)
def test_a_planted_offence_is_found(name: str, text: str, what: str) -> None:
    """Without this, a rule that never fires would look like a tidy tree."""
    assert [found for found, _ in offences(name, text)] == [what]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("kvstore/core/a.py", DOC + "x = 1\n" * (FILE_LINES_MAX - 1)),
        ("kvstore/core/a.py", DOC + "# TO" + "DO(#12) later\n"),
        (
            "kvstore/core/a.py",
            DOC + 'def f():\n    """' + "\n" * 30 + '"""\n' + LONG_BODY[: LONG_BODY.rindex("    x")],
        ),
        ("kvstore/__init__.py", DOC + "def __getattr__(name): ...\n"),
        ("kvstore/sim/__init__.py", ""),
    ],
)
def test_what_is_allowed_passes(name: str, text: str) -> None:
    assert not list(offences(name, text))
