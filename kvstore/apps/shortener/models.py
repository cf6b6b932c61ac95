"""Bodies of the API: JSON in and out. What they hold is checked further in `wishes`."""

from __future__ import annotations

import datetime as dt
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field

from kvstore.apps.shortener.link import Link
from kvstore.apps.shortener.stats import Row, Stats
from kvstore.apps.shortener.wishes import Edit, Wish

BULK_MAX = 100


class NewLink(BaseModel):
    """A link to make."""

    model_config = ConfigDict(extra="forbid")

    url: str = Field(examples=["https://example.com/a/long/path"])
    alias: str | None = Field(None, description="3 to 64 letters and digits of one script, - and _ between")
    ttl: float | None = Field(None, description="seconds it lives")
    expires_at: dt.datetime | None = Field(None, description="when it ends; with a time zone")
    permanent: bool = Field(default=False, description="301 instead of 302: browsers stop asking")
    max_clicks: int | None = Field(None, description="exactly so many visits, then 410")
    tags: list[str] = Field(default_factory=list)
    dedupe: bool = Field(default=False, description="the link there is for this url, if there is one")

    def wish(self) -> Wish:
        """For the library."""
        return Wish(
            url=self.url,
            alias=self.alias,
            ttl_s=self.ttl,
            expires_ms=_millis(self.expires_at),
            permanent=self.permanent,
            max_clicks=self.max_clicks,
            tags=tuple(self.tags),
            dedupe=self.dedupe,
        )


class LinkEdit(BaseModel):
    """Changes; what is left out stays, null takes a limit away."""

    model_config = ConfigDict(extra="forbid")

    url: str = ""
    ttl: float = 0
    expires_at: dt.datetime | None = None
    permanent: bool = False
    max_clicks: int | None = None
    tags: list[str] = Field(default_factory=list)

    def edit(self) -> Edit:
        """For the library."""
        given: dict[str, Any] = {
            "url": self.url,
            "ttl_s": self.ttl,
            "expires_ms": _millis(self.expires_at),
            "permanent": self.permanent,
            "max_clicks": self.max_clicks,
            "tags": tuple(self.tags),
        }
        names = {"ttl": "ttl_s", "expires_at": "expires_ms"}
        return Edit(**{names.get(name, name): given[names.get(name, name)] for name in self.model_fields_set})


class BulkLinks(BaseModel):
    """Many links to make, each for itself."""

    model_config = ConfigDict(extra="forbid")

    links: list[NewLink] = Field(min_length=1, max_length=BULK_MAX)


class LinkOut(BaseModel):
    """A link."""

    code: str
    short_url: str
    url: str
    created_at: dt.datetime
    expires_at: dt.datetime | None
    permanent: bool
    max_clicks: int | None
    tags: list[str]

    @classmethod
    def of(cls, link: Link, short_url: str) -> Self:
        """As its owner sees it."""
        return cls(
            code=link.code,
            short_url=short_url,
            url=link.url,
            created_at=_instant(link.created_ms),
            expires_at=None if link.expires_ms is None else _instant(link.expires_ms),
            permanent=link.permanent,
            max_clicks=link.max_clicks,
            tags=list(link.tags),
        )


class LinkPage(BaseModel):
    """Links of an owner, newest first."""

    links: list[LinkOut]
    next: str | None = Field(description="the cursor of the next page")


class BulkItem(BaseModel):
    """What became of one link."""

    status: int
    link: LinkOut | None = None
    problem: dict[str, Any] | None = None


class BulkOut(BaseModel):
    """What became of each, in order."""

    results: list[BulkItem]


class Count(BaseModel):
    """A bar of a chart."""

    name: str
    clicks: int


class StatsOut(BaseModel):
    """Clicks of a link."""

    code: str
    total: int
    days: list[Count]
    hours: list[Count]
    referrers: list[Count]
    countries: list[Count]
    devices: list[Count]

    @classmethod
    def of(cls, code: str, stats: Stats) -> Self:
        """As JSON."""
        return cls(
            code=code,
            total=stats.total,
            days=_counts(stats.days),
            hours=_counts(stats.hours),
            referrers=_counts(stats.referrers),
            countries=_counts(stats.countries),
            devices=_counts(stats.devices),
        )


class ProblemOut(BaseModel):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str


def _counts(rows: tuple[Row, ...]) -> list[Count]:
    return [Count(name=name, clicks=n) for name, n in rows]


def _instant(ms: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(ms / 1000, dt.UTC)


def _millis(at: dt.datetime | None) -> int | None:
    if at is None:
        return None
    return int((at if at.tzinfo else at.replace(tzinfo=dt.UTC)).timestamp() * 1000)
