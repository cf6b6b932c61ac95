"""Charts as markup that grows with the page: bars are drawn, all text is text. Pure: rows in, markup out."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from kvstore.apps.shortener.stats import Row

_WIDTH, _HEIGHT = 640, 110


def columns(rows: Sequence[Row], *, title: str) -> Markup:
    """Upright bars over time, oldest left; and the same as a table that anybody can open."""
    most = max((n for _, n in rows), default=0)
    step = _WIDTH / max(len(rows), 1)
    bars = [
        Markup(
            '<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"><title>{}: {}</title></rect>'
        ).format(
            at * step + 1,
            _HEIGHT - _share(n, most, _HEIGHT),
            max(step - 2, 1),
            _share(n, most, _HEIGHT),
            name,
            n,
        )
        for at, (name, n) in enumerate(rows)
        if n
    ]
    first, last = (rows[0][0], rows[-1][0]) if rows else ("", "")
    total = sum(n for _, n in rows)
    summary = f"{title}: {total} {'click' if total == 1 else 'clicks'}"
    return (
        Markup("<figure><figcaption>{}</figcaption>").format(title)
        + Markup('<svg class="columns" viewBox="0 0 {} {}" preserveAspectRatio="none" ').format(
            _WIDTH, _HEIGHT
        )
        + Markup('role="img" aria-label="{}">{}</svg>').format(summary, Markup("").join(bars))
        + Markup('<p class="ends"><small>{}</small><small>at most {}</small><small>{}</small></p>').format(
            first, most, last
        )
        + Markup("<details><summary>{} as a table</summary><table>{}</table></details></figure>").format(
            title,
            Markup("").join(
                Markup("<tr><th scope=row>{}</th><td>{}</td></tr>").format(name, n) for name, n in rows if n
            ),
        )
    )


def lines(rows: Sequence[Row], *, title: str) -> Markup:
    """A table with lying bars, most first."""
    most = max((n for _, n in rows), default=0)
    body = Markup("").join(
        Markup(
            '<tr><th scope=row>{}</th><td class="bar"><svg aria-hidden="true">'
            '<rect width="{:.1f}%" height="100%"/></svg></td><td class="number">{}</td></tr>'
        ).format(name, _share(n, most, 100), n)
        for name, n in rows
    )
    return Markup('<table class="lines"><caption>{}</caption>{}</table>').format(title, body)


def _share(n: int, most: int, whole: int) -> float:
    return n / most * whole if most > 0 and n > 0 else 0.0
