"""The parts of one running service, and how a request finds them and its owner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Header, Request

import kvstore
from kvstore.apps.shortener.access import COOKIE, ApiKeys, Creations, Visitor
from kvstore.apps.shortener.clicks import Clicks
from kvstore.apps.shortener.links import Links
from kvstore.apps.shortener.metering import Meters
from kvstore.apps.shortener.options import ShortenerOptions
from kvstore.apps.shortener.problems import NotSignedIn


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """What requests are answered with."""

    kv: kvstore.Client
    options: ShortenerOptions
    keys: ApiKeys
    links: Links
    clicks: Clicks
    creations: Creations
    meters: Meters
    now_ms: Callable[[], int]


async def service_of(request: Request) -> Service:
    """The service that a request came to. A coroutine, as all of these: FastAPI runs functions in threads."""
    service = request.app.state.service
    assert isinstance(service, Service)
    return service


def client_address(request: Request, options: ShortenerOptions) -> str:
    """Where a request came from."""
    if options.trust_proxy:
        # Lines of one name are one list, in order. A proxy may add its own behind the client's.
        told = ",".join(request.headers.getlist("x-forwarded-for")).rpartition(",")[2].strip()
        if told:
            return told[:64]
    return request.client.host if request.client is not None else "unknown"


async def owner_of(
    service: Annotated[Service, Depends(service_of)],
    authorization: Annotated[str | None, Header(description="Bearer and an API key")] = None,
) -> str:
    """Whose API key came. Raises NotSignedIn."""
    scheme, _, key = (authorization or "").partition(" ")
    owner = service.keys.owner(key.strip()) if scheme.lower() == "bearer" else None
    if owner is None:
        raise NotSignedIn("send `Authorization: Bearer` and your API key")
    return owner


async def visitor_of(request: Request) -> Visitor:
    """Who is on the web page."""
    return Visitor.of(request.cookies.get(COOKIE))


InService = Annotated[Service, Depends(service_of)]
ByOwner = Annotated[str, Depends(owner_of)]
ByVisitor = Annotated[Visitor, Depends(visitor_of)]
