"""Bars as inline SVG, with the numbers for those who do not see them. Pure: rows in, markup out."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from kvstore.apps.shortener.stats import Row

_WIDTH, _HEIGHT, _BASE = 640, 140, 120
_ROW, _LABEL = 26, 190


def columns(rows: Sequence[Row], *, title: str) -> Markup:
    """Upright bars over time, oldest left."""
    most = max((n for _, n in rows), default=0)
    step = _WIDTH / max(len(rows), 1)
    bars = [
        Markup(
            '<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"><title>{}: {}</title></rect>'
        ).format(
            at * step + 1, _BASE - _scaled(n, most, 110), max(step - 2, 1), _scaled(n, most, 110), name, n
        )
        for at, (name, n) in enumerate(rows)
    ]
    ends = [
        Markup('<text x="{}" y="136" text-anchor="{}">{}</text>').format(x, anchor, name)
        for x, anchor, name in (((0, "start", rows[0][0]), (_WIDTH, "end", rows[-1][0])) if rows else ())
    ]
    return _figure(title, _HEIGHT, [*bars, *ends], rows)


def lines(rows: Sequence[Row], *, title: str) -> Markup:
    """Lying bars with names, most first."""
    most = max((n for _, n in rows), default=0)
    marks: list[Markup] = []
    for at, (name, n) in enumerate(rows):
        length = _scaled(n, most, _WIDTH - _LABEL - 80)
        y = at * _ROW
        marks += [
            Markup('<text x="0" y="{}">{}</text>').format(y + 17, _short(name)),
            Markup('<rect x="{}" y="{}" width="{:.1f}" height="18"/>').format(_LABEL, y + 3, length),
            Markup('<text x="{:.1f}" y="{}">{}</text>').format(_LABEL + length + 6, y + 17, n),
        ]
    return _figure(title, max(len(rows), 1) * _ROW + 4, marks, rows)


def _figure(title: str, height: int, marks: Sequence[Markup], rows: Sequence[Row]) -> Markup:
    """The picture, and the same as a table that anybody can open."""
    head = Markup('<figure><figcaption>{}</figcaption><svg viewBox="0 0 {} {}" role="img" aria-label="{}">')
    body = Markup("").join(
        Markup("<tr><th scope=row>{}</th><td>{}</td></tr>").format(name, n) for name, n in rows if n
    )
    table = Markup("<details><summary>{} as a table</summary><table>{}</table></details>").format(title, body)
    summary = f"{title}: {sum(n for _, n in rows)} clicks"
    picture = head.format(title, _WIDTH, height, summary) + Markup("").join(marks) + Markup("</svg>")
    return picture + table + Markup("</figure>")


def _scaled(n: int, most: int, length: int) -> float:
    return n / most * length if most > 0 and n > 0 else 0.0


def _short(name: str) -> str:
    return name if len(name) <= 24 else name[:23] + "…"
