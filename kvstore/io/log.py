"""Structured logs: an event name and fields; for people on a terminal, JSON elsewhere."""

from __future__ import annotations

import logging
import sys
from typing import Any, TextIO

import structlog

LEVELS = {
    "critical": logging.CRITICAL,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


def node_log(*, form: str = "auto", level: str = "info", out: TextIO | None = None, **always: Any) -> Any:
    """A logger for one node. `form` is auto, console or json; `always` goes on every line.

    Keys and client names may hold anything; both forms escape line ends and control characters,
    so one event is one line.
    """
    stream = out or sys.stderr
    console = form == "console" or (form == "auto" and stream.isatty())
    last = (
        structlog.dev.ConsoleRenderer(colors=stream.isatty())
        if console
        else structlog.processors.JSONRenderer()
    )
    processors: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _escape if console else structlog.processors.format_exc_info,
        last,
    ]
    return structlog.wrap_logger(
        structlog.PrintLogger(stream),
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        cache_logger_on_first_use=True,
        **always,
    )


def _escape(_logger: Any, _method: str, event: Any) -> Any:
    for name, value in event.items():
        if isinstance(value, str) and not value.isprintable():
            event[name] = ascii(value)
    return event
