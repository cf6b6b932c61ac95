"""`--help` teaches, completion completes, and `kv get` loads nothing it does not need."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import click
import pytest
from click.shell_completion import ShellComplete

from kvstore_cli.main import TABLE, cli

if TYPE_CHECKING:
    from tests.cli.conftest import RunKv

ISSUE_COMMANDS = (
    "set get del exists cas incr getset resolve ttl expire persist mset mget scan locate lock "
    "import export shell "
    "up down status server bench config wal explain completion options version"
)


def _paths() -> list[tuple[str, ...]]:
    paths: list[tuple[str, ...]] = []
    ctx = click.Context(cli)
    for name in cli.list_commands(ctx):
        command = cli.get_command(ctx, name)
        if isinstance(command, click.Group):
            paths += [(name, inner) for inner in command.list_commands(ctx)]
        else:
            paths.append((name,))
    return paths


def test_the_help_lists_every_command_under_a_heading(kv: RunKv) -> None:
    text = kv("--help").text
    assert [f"{heading}:" in text for heading in TABLE] == [True] * 3
    for name in ISSUE_COMMANDS.split():
        assert f"\n  {name} " in text, name


@pytest.mark.parametrize("path", _paths(), ids=" ".join)
def test_every_help_shows_two_examples_and_fits_a_screen(kv: RunKv, path: tuple[str, ...]) -> None:
    result = kv(*path, "--help")
    assert result.status == 0
    _, _, after = result.text.partition("Examples:\n")
    examples = [line for line in after.splitlines()[:8] if "kv " in line]
    assert len(examples) >= 2, result.text
    assert "--token" not in result.text, "global flags are for `kv options`"
    assert max(len(line) for line in result.text.splitlines()) <= 100
    if path not in {("server",), ("bench",)}:
        assert len(result.text.splitlines()) <= 40


@pytest.mark.parametrize("path", _paths(), ids=" ".join)
def test_the_first_line_of_a_help_stands_whole_in_the_list(path: tuple[str, ...]) -> None:
    command: click.Command | None = cli
    for name in path:
        assert isinstance(command, click.Group)
        command = command.get_command(click.Context(cli), name)
    assert command is not None
    assert not command.get_short_help_str(limit=90).endswith("...")


def test_kv_alone_shows_the_help_and_is_a_usage_error(kv: RunKv) -> None:
    result = kv()
    assert result.status == 2
    assert "Data:" in result.text + result.err


def test_options_tells_of_flags_variables_and_exit_codes(kv: RunKv) -> None:
    text = kv("options").text
    for word in ("--url", "KV_URL", "--timeout", "KV_TOKEN_FILE", "NO_COLOR", "jsonl", "130"):
        assert word in text, word


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_for_the_shell(kv: RunKv, shell: str) -> None:
    result = kv("completion", shell)
    assert (result.status, result.err) == (0, "")
    assert f"_KV_COMPLETE={shell}_complete" in result.text


@pytest.mark.parametrize(
    ("words", "unfinished", "expected"),
    [
        ([], "ex", {"exists", "expire", "export", "explain"}),
        (["config"], "", {"show", "check", "init"}),
        (["get", "k"], "--miss", {"--missing-ok"}),
        (["set", "k", "v"], "--if", {"--if-absent", "--if-version", "--if-value"}),
        (["cas", "k", "v"], "--exp", {"--expect", "--expect-version", "--expect-absent"}),
        (["export"], "--format", {"--format"}),
        (["export", "--format"], "c", {"csv"}),
        (["completion"], "z", {"zsh"}),
    ],
)
def test_completion_knows_commands_flags_and_values(
    words: list[str], unfinished: str, expected: set[str]
) -> None:
    complete = ShellComplete(cli, {}, "kv", "_KV_COMPLETE")
    assert {item.value for item in complete.get_completions(words, unfinished)} == expected


@pytest.mark.e2e
def test_completion_answers_as_a_process() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from kvstore_cli.main import main; main()"],
        env={**os.environ, "_KV_COMPLETE": "bash_complete", "COMP_WORDS": "kv per", "COMP_CWORD": "1"},
        capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    assert done.stdout == "plain,persist\n"
    assert done.stderr == ""


BANNED = {
    "rich", "prompt_toolkit", "structlog", "uvloop", "lmdb", "aiofiles", "textual", "pydantic", "fastapi",
    "tomllib", "multiprocessing", "csv", "http", "urllib.request", "importlib.metadata",
    "kvstore.node", "kvstore.storage", "kvstore.config", "kvstore.server", "kvstore.io.disk",
    "kvstore_cli.up", "kvstore_cli.shell", "kvstore_cli.importing", "kvstore_cli.registers",
    "kvstore_cli.locking", "kvstore_cli.conditions",
}  # fmt: skip

IMPORTS_OF_GET = """
import sys
from kvstore_cli.main import run
status = run(["get", "k", "--url", sys.argv[1], "--timeout", "2s"])
print(status, *sorted(sys.modules))
"""


@pytest.mark.e2e
@pytest.mark.xdist_group("real")
def test_get_loads_nothing_it_does_not_need(real_url: str) -> None:
    """Each of these costs more than all the rest of `kv get`, which must start in 250 ms."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS_OF_GET, real_url],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    status, *modules = done.stdout.split()
    assert status in ("0", "1")
    loaded = {name for name in modules if any(name == b or name.startswith(b + ".") for b in BANNED)}
    assert not loaded


def test_the_ban_would_notice() -> None:
    """A list of names that no module has would never fail."""
    import importlib.util

    known = [name for name in BANNED if importlib.util.find_spec(name.partition(".")[0]) is not None]
    assert len(known) >= 20
