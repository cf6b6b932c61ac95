"""What visitors of a short link get: the redirect, a preview, a QR code."""

from __future__ import annotations

import io
import unicodedata

import segno
from fastapi import APIRouter, Request
from fastapi.responses import Response

from kvstore.apps.shortener import aliases, visitors
from kvstore.apps.shortener.clicks import Click, hour_of
from kvstore.apps.shortener.link import Link
from kvstore.apps.shortener.pages import page
from kvstore.apps.shortener.problems import NoSuchLink
from kvstore.apps.shortener.service import InService, Service

router = APIRouter(tags=["visits"])
_QR_SUFFIXES = {".png": "image/png", ".svg": "image/svg+xml"}
_NAME_MAX = aliases.LENGTH_MAX + len(".png")


@router.get("/{name}", summary="Follow a link; CODE+ previews it, CODE.png and CODE.svg are QR codes")
async def visit(name: str, request: Request, service: InService) -> Response:
    """302, or 301 when the link is permanent; counted."""
    return await _answer(name, request, service)


@router.head("/{name}", include_in_schema=False)
async def look(name: str, request: Request, service: InService) -> Response:
    """The same without a body; not counted, and it spends no click."""
    return await _answer(name, request, service)


async def _answer(name: str, request: Request, service: Service) -> Response:
    name = unicodedata.normalize("NFKC", name)
    stem, suffix = name, ""
    for each in ("+", *_QR_SUFFIXES):
        if name.endswith(each):
            stem, suffix = name.removesuffix(each), each
    if len(name) > _NAME_MAX or not stem.replace("-", "").replace("_", "").isalnum():
        raise NoSuchLink("no link has this code")
    link = await service.links.resolve(stem)
    if suffix == "+":
        return page("preview.html", link=link, short_url=service.options.short_url(link.code))
    if suffix:
        return _qr(service.options.short_url(link.code), suffix)
    if request.method != "HEAD":
        await service.links.spend(link)
        _note(link, request, service)
    return _redirect(link, service)


def _redirect(link: Link, service: Service) -> Response:
    headers = {"location": link.url, "referrer-policy": "no-referrer", "cache-control": "no-store"}
    if link.permanent:
        age_s = service.options.permanent_age_s
        if link.expires_ms is not None:
            age_s = min(age_s, (link.expires_ms - service.now_ms()) // 1000)
        headers["cache-control"] = f"public, max-age={max(age_s, 0)}"
    return Response(status_code=301 if link.permanent else 302, headers=headers)


def _note(link: Link, request: Request, service: Service) -> None:
    headers = request.headers
    service.clicks.note(
        Click(
            link.id,
            hour_of(service.now_ms()),
            visitors.referrer_host(headers.get("referer")),
            visitors.country(headers.get(service.options.country_header)),
            visitors.device(headers.get("user-agent")),
        )
    )


def _qr(short_url: str, suffix: str) -> Response:
    out = io.BytesIO()
    code = segno.make(short_url, error="m", micro=False)
    code.save(out, kind=suffix.removeprefix("."), scale=8, border=4)
    headers = {"cache-control": "public, max-age=3600"}
    return Response(out.getvalue(), headers=headers, media_type=_QR_SUFFIXES[suffix])
