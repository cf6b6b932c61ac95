"""The web page: shorten, copy, see the QR code, list, look at clicks, delete. Works without JavaScript.

Forms carry a token made from the visitor's cookie; creating also carries a random key, so that a form sent
twice makes one link.
"""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote, urlsplit

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import RedirectResponse, Response

from kvstore.apps.shortener.access import COOKIE, Visitor, new_key
from kvstore.apps.shortener.charts import columns, lines
from kvstore.apps.shortener.pages import page
from kvstore.apps.shortener.problems import BadField, Problem, WrongOrigin
from kvstore.apps.shortener.service import ByVisitor, InService, Service, client_address
from kvstore.apps.shortener.visitors import UNKNOWN
from kvstore.apps.shortener.wishes import Wish

router = APIRouter(include_in_schema=False)
LIFETIMES = {"": "for ever", "3600": "an hour", "86400": "a day", "604800": "a week", "2592000": "30 days"}
_PAGE_LINKS = 20
_COUNTRIES = {UNKNOWN: "not known"}
_COOKIE_S = 365 * 86_400
_TEXT_MAX = 5_000
Text = Annotated[str, Form(max_length=_TEXT_MAX)]
Token = Annotated[str, Form(max_length=100)]


@router.api_route("/", methods=["GET", "HEAD"])
async def home(
    service: InService, visitor: ByVisitor, cursor: Annotated[str | None, Query(max_length=20)] = None
) -> Response:
    """The form, and the visitor's links."""
    return await _home(service, visitor, cursor=cursor)


@router.post("/links")
async def create(
    request: Request,
    service: InService,
    visitor: ByVisitor,
    token: Token = "",
    once: Token = "",
    url: Text = "",
    alias: Text = "",
    lifetime: Token = "",
) -> Response:
    """Make a link and show it; or the form again, with what is wrong."""
    _check_form(request, service, visitor, token)
    given = {"url": url, "alias": alias, "lifetime": lifetime}
    try:
        if lifetime not in LIFETIMES:
            raise BadField("choose how long it lives", field="lifetime")
        await service.creations.admit(f"address {client_address(request, service.options)}")
        wish = Wish(
            url=url.strip(),
            alias=alias.strip() or None,
            ttl_s=float(lifetime) if lifetime else None,
        )
        made = await service.links.create(visitor.owner, wish, idempotency_key=once or None)
    except Problem as problem:
        return await _home(service, visitor, problem=problem, given=given)
    return RedirectResponse(f"/links/{quote(made.link.code)}", 303)


@router.api_route("/links/{code}", methods=["GET", "HEAD"])
async def show(code: str, service: InService, visitor: ByVisitor) -> Response:
    """One link with its QR code and its clicks."""
    link, stats = await service.links.stats(visitor.owner, code)
    charts = [
        columns(stats.days, title="Last 30 days"),
        columns(stats.hours, title="Last 48 hours"),
        *(
            lines(rows[:10], title=title)
            for title, rows in (
                ("Where from", stats.referrers),
                ("Countries", [(_COUNTRIES.get(name, name), n) for name, n in stats.countries]),
                ("Devices", stats.devices),
            )
            if rows
        ),
    ]
    return page(
        "link.html",
        link=link,
        short_url=service.options.short_url(link.code),
        path=quote(link.code),
        total=stats.total,
        charts=charts,
        token=visitor.form_token,
    )


@router.post("/links/{code}/delete")
async def delete(
    code: str, request: Request, service: InService, visitor: ByVisitor, token: Token = ""
) -> Response:
    """Take it away and go home."""
    _check_form(request, service, visitor, token)
    await service.links.delete(visitor.owner, code)
    return RedirectResponse("/", 303)


async def _home(
    service: Service,
    visitor: Visitor,
    *,
    cursor: str | None = None,
    problem: Problem | None = None,
    given: dict[str, Any] | None = None,
) -> Response:
    links, following = (
        ([], None)
        if visitor.new
        else await service.links.owned(visitor.owner, cursor=cursor, limit=_PAGE_LINKS)
    )
    answer = page(
        "home.html",
        status=200 if problem is None else problem.status,
        rows=[(link, service.options.short_url(link.code), quote(link.code)) for link in links],
        following=following,
        problem=problem,
        given=given or {"url": "", "alias": "", "lifetime": ""},
        lifetimes=LIFETIMES,
        token=visitor.form_token,
        once=new_key(),
    )
    if visitor.new:
        secure = service.options.base_url.startswith("https:")
        answer.set_cookie(
            COOKIE, visitor.cookie, max_age=_COOKIE_S, httponly=True, samesite="lax", secure=secure
        )
    return answer


def _check_form(request: Request, service: Service, visitor: Visitor, token: str) -> None:
    """Raises WrongOrigin unless the form is one of ours, given to this visitor."""
    origin = request.headers.get("origin")
    ours = {urlsplit(service.options.base_url).netloc, request.headers.get("host", "")}
    # Cut, not parsed: an origin has nothing behind its host, and what is no origin is not ours.
    if (origin is not None and origin.partition("://")[2] not in ours) or not visitor.gave_out(token):
        raise WrongOrigin("go back to the first page and try again; cookies must be allowed")
