"""What the documents say, the code does: codes, commands, options, links and make targets."""

from __future__ import annotations

import importlib
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from kvstore import errors
from kvstore.client.connection import AGENT
from kvstore.node.node import SERVER

ROOT = Path(__file__).parent.parent
SKIPPED_FOLDERS = {".venv", ".venv-compiled", ".git", "kv-data", ".pytest_cache", "node_modules"}


def documents() -> list[Path]:
    """Every Markdown file of ours, sorted."""
    return sorted(p for p in ROOT.rglob("*.md") if not SKIPPED_FOLDERS & set(p.relative_to(ROOT).parts))


def prose(text: str) -> str:
    """A document without its code blocks."""
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    """The fragment names that a Markdown viewer gives to headings."""
    headings = re.findall(r"^#+ +(.+?)\s*$", prose(text), flags=re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading.replace("`", "")).lower().replace(" ", "-") for heading in headings
    }


def broken_links(document: Path, text: str) -> Iterator[str]:
    """Links to files or headings that are not there. Addresses with a scheme are not followed."""
    for target in re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", prose(text)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, fragment = target.partition("#")
        there = (document.parent / path).resolve() if path else document
        if not there.exists() or (
            fragment and there.suffix == ".md" and fragment not in anchors(there.read_text(encoding="utf-8"))
        ):
            yield target


@pytest.mark.parametrize("document", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    assert list(broken_links(document, document.read_text(encoding="utf-8"))) == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    """The checker's negative control: of these only the first two lead nowhere."""
    other = tmp_path / "other.md"
    other.write_text("## The life of one `put`\n", encoding="utf-8")
    text = (
        "# 2. Words!\n[a](missing.md) [b](other.md#nowhere) [c](other.md#the-life-of-one-put) [d](#2-words) "
        "[e](https://x.invalid/)\n```\n[f](in-a-code-block.md)\n```\n"
    )
    document = tmp_path / "document.md"
    document.write_text(text, encoding="utf-8")
    assert list(broken_links(document, text)) == ["missing.md", "other.md#nowhere"]


def make_targets() -> set[str]:
    return set(
        re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    )


@pytest.mark.parametrize("document", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_make_targets_named_in_the_documents_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    named = set(re.findall(r"(?:`|^\$ |^)make ([a-z0-9-]+)", text, flags=re.MULTILINE))
    assert sorted(named - make_targets()) == []


def test_the_readme_sets_up_with_two_commands() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert {"up", "test"} <= set(re.findall(r"^\$ make ([a-z]+)", readme, flags=re.MULTILINE))


@pytest.mark.parametrize("kind", errors.ALL, ids=lambda kind: kind.name)
def test_every_error_is_in_the_protocol(kind: type[errors.KVError]) -> None:
    """Name, code and definiteness stand in one line of one table."""
    lines = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("|") and f"`{kind.name}`" in line and kind.code in line]
    assert len(rows) == 1, f"{kind.name} ({kind.code}) has {len(rows)} rows in docs/protocol.md"


def commands(group: click.Group, prefix: str = "kv") -> Iterator[tuple[str, click.Command]]:
    """Every command with its full name."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None, f"{prefix} {name} is listed but cannot be loaded"
        if isinstance(command, click.Group):
            yield from commands(command, f"{prefix} {name}")
        elif not command.hidden:
            yield f"{prefix} {name}", command


def command_line() -> click.Group:
    """The root of the command line."""
    main = importlib.import_module("kvstore_cli.main")
    groups = [thing for thing in vars(main).values() if isinstance(thing, click.Group)]
    assert groups, "kvstore_cli.main has no click group"
    return max(groups, key=lambda group: len(group.list_commands(click.Context(group))))


def test_every_command_is_in_operations() -> None:
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    missing = [name for name, _ in commands(command_line()) if not re.search(rf"{re.escape(name)}\b", text)]
    assert missing == []


def test_commands_named_in_the_documents_exist() -> None:
    known = {name.split()[1] for name, _ in commands(command_line())}
    named = {
        word
        for document in documents()
        for word in re.findall(
            r"(?:`|^\$ )kv ([a-z]+)", document.read_text(encoding="utf-8"), flags=re.MULTILINE
        )
    }
    assert sorted(named - known) == []


def test_the_changelog_has_a_place_for_what_is_next() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert "## [Unreleased]" in text or f"## [{version}]" in text


def test_the_version_is_the_same_everywhere() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert (f"kvstore/{version}", f"kvstore-python/{version}") == (SERVER, AGENT)
