"""The way most visitors go: a plain code, a redirect, nothing else; without routing, models or templates.

`follow` answers what it can answer with a redirect and leaves everything else to the application: other
names, previews, QR codes, links with limited clicks, and every problem. A failure it met is handed on with
the request, so that the store is not asked twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import NamedTuple

from starlette.types import Scope

from kvstore import errors
from kvstore.apps.shortener import visitors
from kvstore.apps.shortener.aliases import RESERVED
from kvstore.apps.shortener.counting import Click, hour_of
from kvstore.apps.shortener.link import Link
from kvstore.apps.shortener.problems import Problem
from kvstore.apps.shortener.service import Service

FAILURE = "shortener.failure"
"""Where in the scope a failure is handed on."""
RawHeaders = list[tuple[bytes, bytes]]
_PLAIN = re.compile(r"/([0-9A-Za-z][0-9A-Za-z_-]{2,63})")
_METHODS = ("GET", "HEAD")
_ALWAYS: RawHeaders = [
    (b"referrer-policy", b"no-referrer"),
    (b"x-robots-tag", b"noindex, nofollow"),
    (b"x-content-type-options", b"nosniff"),
    (b"content-length", b"0"),
]
_NOT_STORED = (b"cache-control", b"no-store")


class Redirect(NamedTuple):
    """An answer without a body."""

    status: int
    headers: RawHeaders


async def follow(scope: Scope, service: Service) -> Redirect | None:
    """The redirect that a request asks for; None: the application answers it."""
    plain = _PLAIN.fullmatch(scope["path"])
    if plain is None or scope["method"] not in _METHODS or plain[1] in RESERVED:
        return None
    try:
        link = await service.links.resolve(plain[1])
    except (Problem, errors.KVError) as failure:
        scope[FAILURE] = failure
        return None
    if link.max_clicks is not None:
        return None
    if scope["method"] == "GET":
        service.clicks.note(click_of(link, scope["headers"], service))
    return redirect_to(link, service)


def redirect_to(link: Link, service: Service) -> Redirect:
    """302, or 301 when the link is permanent."""
    # Stored addresses are ASCII: see targets.check_url.
    where = (b"location", link.url.encode("ascii"))
    if not link.permanent:
        return Redirect(HTTPStatus.FOUND, [where, _NOT_STORED, *_ALWAYS])
    age_s = service.options.permanent_age_s
    if link.expires_ms is not None:
        age_s = min(age_s, (link.expires_ms - service.now_ms()) // 1000)
    kept = (b"cache-control", b"public, max-age=%d" % max(age_s, 0))
    return Redirect(HTTPStatus.MOVED_PERMANENTLY, [where, kept, *_ALWAYS])


def click_of(link: Link, headers: Iterable[tuple[bytes, bytes]], service: Service) -> Click:
    """What is told apart about this visit. Names of headers are in lower case, as ASGI has them."""
    referrer = country = agent = None
    country_name = service.options.country_header.lower().encode()
    for name, value in headers:
        if name == b"user-agent":
            agent = value.decode("latin-1")
        elif name == b"referer":
            referrer = value.decode("latin-1")
        elif name == country_name:
            country = value.decode("latin-1")
    return Click(
        link.id,
        hour_of(service.now_ms()),
        visitors.referrer_host(referrer),
        visitors.country(country),
        visitors.device(agent),
    )
