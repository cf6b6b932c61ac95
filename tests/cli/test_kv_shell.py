"""`kv shell`: many commands, one connection."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

from kvstore import errors

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import FakeCluster, RunKv


def test_lines_from_a_pipe_are_commands_over_one_connection(kv: RunKv, cluster: FakeCluster) -> None:
    result = kv(
        "shell", stdin=b"set a 'two words'\n\n# a note\nkv get a\nget a -o json # and more\nscan -k\n"
    )
    assert result.status == 0
    lines = result.text.splitlines()
    assert lines[:2] == ["OK", "two words"]
    assert '"value": "two words"' in lines[2]
    assert lines[3] == "a"
    assert cluster.connections == 1


def test_an_error_ends_a_script_with_its_status(kv: RunKv, cluster: FakeCluster) -> None:
    result = kv("shell", stdin=b"get nothing\nset a 1\ngte a\nset a 2\n")
    assert result.status == 2
    assert "there is no command 'gte'" in result.err
    assert cluster.held[b"a"][0] == b"1"


def test_keep_going_goes_on_and_remembers_the_first_failure(kv: RunKv, cluster: FakeCluster) -> None:
    cluster.refused_keys = {b"full"}
    result = kv("shell", "--keep-going", stdin=b"set full 1\ngte a\nset a 'open\nset a 2\n")
    assert result.status == errors.DiskFull.exit_status
    assert result.err.count("error[") == 3
    assert cluster.held[b"a"][0] == b"2"


def test_a_value_is_never_read_from_the_commands(kv: RunKv, cluster: FakeCluster) -> None:
    for line in (b"set a -\nset b 1\n", b"set a\nset b 1\n", b"import\nset b 1\n", b"set a -f -\nset b 1\n"):
        result = kv("shell", stdin=line)
        assert result.status == 2, line
        assert not cluster.held


def test_the_level_of_a_shell_holds_until_it_is_changed(kv: RunKv, cluster: FakeCluster) -> None:
    lines = ("get a", "\\consistency one", "get a", "get a -c all", "get a")
    more = ("\\consistency quorum", "get a", "\\consistency linearizable", "get a")
    kv("shell", stdin="\n".join((*lines, *more)).encode())
    assert cluster.levels == [None, "one", "all", "one", "quorum", "linearizable"]


def test_the_form_of_output_can_be_set(kv: RunKv) -> None:
    result = kv("shell", stdin=b"set a 1\n\\output json\nget a\n\\output raw\nget a\n")
    assert '"value": "1"' in result.text
    assert result.text.endswith("}\n1")


def test_timing_shows_how_long_a_command_took(kv: RunKv) -> None:
    result = kv("shell", stdin=b"\\timing\nget a\n\\timing\nget a\n")
    assert result.err.count(" ms)") == 1


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"\\nope\n", "there is no \\nope"),
        (b"\\consistency most\n", "KV-A04"),
        (b"\\output xml\n", "KV-A05"),
        (b"server\n", "does not work in the shell"),
        (b"shell\n", "does not work in the shell"),
    ],
)
def test_what_cannot_be_done_is_told(kv: RunKv, line: bytes, said: str) -> None:
    result = kv("shell", stdin=line)
    assert result.status == 2
    assert said in result.err


def test_help_and_quit(kv: RunKv, cluster: FakeCluster) -> None:
    result = kv("shell", stdin=b"help get\nhelp\n\\help\nquit\nset a 1\n")
    assert result.status == 0
    assert "Read a key." in result.text
    assert "\\consistency" in result.text
    assert not cluster.held


def test_the_prompt_completes_commands_flags_and_its_own_words() -> None:
    from kvstore_cli.prompt import OWN, CommandCompleter
    from kvstore_cli.session import Session
    from kvstore_cli.shell import Shell

    def completed(text: str) -> set[str]:
        return {c.text for c in CommandCompleter().get_completions(Document(text), CompleteEvent())}

    assert completed("ex") >= {"exists", "expire"}
    assert completed("get k --miss") == {"--missing-ok"}
    assert completed("\\co") == {"\\consistency"}
    assert completed("\\consi on") == completed("nonsense --x") == set()
    assert set(OWN) <= set(Shell(Session())._own)


def test_history_is_kept_where_it_is_asked_for_and_private(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kvstore_cli.prompt import _history, history_file

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert history_file() == tmp_path / "state" / "kv" / "history"
    monkeypatch.setenv("KV_HISTORY", str(tmp_path / "h" / "lines"))
    _history().store_string("get a")
    assert "+get a" in (tmp_path / "h" / "lines").read_text()
    assert (tmp_path / "h" / "lines").stat().st_mode & 0o077 == 0
