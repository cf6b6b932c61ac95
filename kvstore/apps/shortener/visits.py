"""What visitors of a short link get: the redirect, a preview, a QR code."""

from __future__ import annotations

import io
import unicodedata

import segno
from fastapi import APIRouter, Request
from fastapi.responses import Response

from kvstore.apps.shortener import aliases
from kvstore.apps.shortener.pages import page
from kvstore.apps.shortener.problems import NoSuchLink
from kvstore.apps.shortener.redirects import FAILURE, click_of, redirect_to
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
    if (failure := request.scope.get(FAILURE)) is not None:
        raise failure
    link = await service.links.resolve(stem)
    if suffix == "+":
        await service.links.check_left(link)
        return page("preview.html", link=link, short_url=service.options.short_url(link.code))
    if suffix:
        return _qr(service.options.short_url(link.code), suffix)
    if request.method == "HEAD":
        await service.links.check_left(link)
    else:
        await service.links.spend(link)
        service.clicks.note(click_of(link, request.scope["headers"], service))
    status, headers = redirect_to(link, service)
    return Response(status_code=status, headers={name.decode(): value.decode() for name, value in headers})


def _qr(short_url: str, suffix: str) -> Response:
    out = io.BytesIO()
    code = segno.make(short_url, error="m", micro=False)
    code.save(out, kind=suffix.removeprefix("."), scale=8, border=4)
    headers = {"cache-control": "public, max-age=3600"}
    return Response(out.getvalue(), headers=headers, media_type=_QR_SUFFIXES[suffix])
