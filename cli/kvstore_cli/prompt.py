"""Lines typed at a terminal, with history and completion (prompt_toolkit)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from click.shell_completion import ShellComplete
from prompt_toolkit import PromptSession
from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, History, InMemoryHistory

OWN = ("\\consistency", "\\output", "\\timing", "\\help", "\\quit")


def history_file() -> Path:
    """Where typed lines are kept: KV_HISTORY, or the user's state directory."""
    named = os.environ.get("KV_HISTORY")
    if named:
        return Path(named)
    state = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(state) / "kv" / "history"


def _history() -> History:
    path = history_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch(mode=0o600)
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(path))


class CommandCompleter(Completer):
    """Completes as the command line does: commands, flags and their values."""

    def __init__(self) -> None:
        from kvstore_cli.main import cli

        self._complete = ShellComplete(cli, {}, "kv", "_KV_COMPLETE")

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """What may stand at the cursor."""
        del complete_event
        before = document.text_before_cursor
        words = before.split()
        unfinished = "" if not words or before[-1].isspace() else words.pop()
        if not words and unfinished.startswith("\\"):
            names: Iterable[tuple[str, str]] = ((name, "") for name in OWN if name.startswith(unfinished))
        elif words and words[0].startswith("\\"):
            names = ()
        else:
            found = self._complete.get_completions(words, unfinished)
            names = [(str(item.value), item.help or "") for item in found if item.type == "plain"]
        for name, about in names:
            yield Completion(name, start_position=-len(unfinished), display_meta=about)


def prompted_lines(prompt: Callable[[], str]) -> Iterator[str]:
    """Yield lines until Ctrl-D. Ctrl-C drops the line that is being typed."""
    typing: PromptSession[str] = PromptSession(
        history=_history(), completer=CommandCompleter(), auto_suggest=AutoSuggestFromHistory()
    )
    while True:
        try:
            yield typing.prompt(prompt)
        except KeyboardInterrupt:
            continue
        except EOFError:
            return
