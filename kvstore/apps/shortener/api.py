"""The JSON API under /api: links of the owner whose key came."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Header, Query, Response

from kvstore.apps.shortener.answers import problem_of
from kvstore.apps.shortener.links import Made, create_many
from kvstore.apps.shortener.models import (
    BulkItem,
    BulkLinks,
    BulkOut,
    LinkEdit,
    LinkOut,
    LinkPage,
    NewLink,
    ProblemOut,
    StatsOut,
)
from kvstore.apps.shortener.service import ByOwner, InService

PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": ProblemOut, "content": {"application/problem+json": {}}}
    for status in (401, 404, 409, 410, 422, 429, 503, 504)
}
router = APIRouter(prefix="/api", tags=["links"], responses=PROBLEMS)
IdempotencyKey = Annotated[str | None, Header(description="Makes one link of all retries, for a day")]


@router.post("/links", status_code=201, summary="Make a link")
async def create_link(
    body: NewLink,
    service: InService,
    owner: ByOwner,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> LinkOut:
    """201 and the link; 200 when `dedupe` found one that was there."""
    await service.creations.admit(f"owner {owner}")
    made = await service.links.create(owner, body.wish(), idempotency_key=idempotency_key)
    response.headers["Location"] = f"/api/links/{quote(made.link.code)}"
    response.status_code = 201 if made.new else 200
    return LinkOut.of(made.link, service.options.short_url(made.link.code))


@router.post("/links/bulk", summary="Make up to a hundred links")
async def create_links(
    body: BulkLinks, service: InService, owner: ByOwner, idempotency_key: IdempotencyKey = None
) -> BulkOut:
    """Each for itself: 200, and the status of each in its place."""
    await service.creations.admit(f"owner {owner}", len(body.links))
    wishes = [link.wish() for link in body.links]
    outcomes = await create_many(service.links, owner, wishes, idempotency_key=idempotency_key)
    results: list[BulkItem] = []
    for outcome in outcomes:
        if isinstance(outcome, Made):
            link = LinkOut.of(outcome.link, service.options.short_url(outcome.link.code))
            results.append(BulkItem(status=201 if outcome.new else 200, link=link))
        else:
            status, document, _ = problem_of(outcome)
            results.append(BulkItem(status=status, problem=document))
    return BulkOut(results=results)


@router.get("/links", summary="List your links, newest first")
async def list_links(
    service: InService,
    owner: ByOwner,
    cursor: Annotated[str | None, Query(max_length=20)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> LinkPage:
    """A page of them; `next` goes on."""
    links, following = await service.links.owned(owner, cursor=cursor, limit=limit)
    shown = [LinkOut.of(link, service.options.short_url(link.code)) for link in links]
    return LinkPage(links=shown, next=following)


@router.get("/links/{code}", summary="One of your links")
async def get_link(code: str, service: InService, owner: ByOwner) -> LinkOut:
    """As it is now, not from a cache."""
    link = await service.links.get(owner, code)
    return LinkOut.of(link, service.options.short_url(code))


@router.patch("/links/{code}", summary="Change a link")
async def edit_link(code: str, body: LinkEdit, service: InService, owner: ByOwner) -> LinkOut:
    """What is left out stays."""
    link = await service.links.edit(owner, code, body.edit())
    return LinkOut.of(link, service.options.short_url(code))


@router.delete("/links/{code}", status_code=204, summary="Delete a link and its clicks")
async def delete_link(code: str, service: InService, owner: ByOwner) -> None:
    """The code is free again."""
    await service.links.delete(owner, code)


@router.get("/links/{code}/stats", summary="Clicks of a link")
async def link_stats(code: str, service: InService, owner: ByOwner) -> StatsOut:
    """Totals, the last 30 days and 48 hours (UTC), referrers, countries, devices."""
    _, stats = await service.links.stats(owner, code)
    return StatsOut.of(code, stats)
