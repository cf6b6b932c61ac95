"""HTML from templates: escaped always, with headers that let a page load nothing but its own style."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

_HERE = Path(__file__).parent
STATIC = _HERE / "static"
_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)


def _instant(ms: int) -> str:
    return dt.datetime.fromtimestamp(ms / 1000, dt.UTC).strftime("%Y-%m-%d %H:%M UTC")


_TEMPLATES = Environment(
    loader=FileSystemLoader(_HERE / "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
)
_TEMPLATES.filters["instant"] = _instant


def page(
    name: str, /, *, status: int = 200, headers: Mapping[str, str] | None = None, **values: Any
) -> HTMLResponse:
    """A page that no search engine keeps and no cache stores."""
    return HTMLResponse(
        _TEMPLATES.get_template(name).render(values),
        status,
        {
            "content-security-policy": _POLICY,
            # Not no-referrer: with that, browsers send `Origin: null` with our own forms.
            "referrer-policy": "same-origin",
            "cache-control": "no-store",
            **(headers or {}),
        },
    )
