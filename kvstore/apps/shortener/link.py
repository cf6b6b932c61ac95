"""A link, its bytes, and its keys in the store.

    url/l/CODE              register: the link
    url/p/OWNER/PAGE        register: codes of an owner's links; page 0 also knows the last page
    url/r/OWNER/HASH        register: a reservation (Idempotency-Key, or one URL with dedupe)
    url/c/ID/...            PN counters of clicks        (see `counting`)
    url/n/ID                register: which referrers and countries have counters
    url/m/ID                register: clicks spent of `max_clicks`
    url/j/...               clicks that are not counted yet     (see `journal`)

Clicks hang on the link's id, not on its code: who claims a freed alias does not inherit its numbers.
"""

from __future__ import annotations

import json
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

_PREFIX = "url"
FORMAT = 1
TAGS_MAX, TAG_LENGTH_MAX = 20, 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One short link."""

    code: str
    id: str
    url: str
    owner: str
    created_ms: int
    page: int = 0
    """Of the owner's list, so that a deletion need not look for it."""
    expires_ms: int | None = None
    permanent: bool = False
    max_clicks: int | None = None
    tags: tuple[str, ...] = ()
    custom: bool = False
    """The code is an alias that somebody chose."""

    def is_over(self, now_ms: int) -> bool:
        """Whether its time has come."""
        return self.expires_ms is not None and self.expires_ms <= now_ms


_FIELDS = frozenset(each.name for each in fields(Link))
_NEEDED = frozenset(("code", "id", "url", "owner", "created_ms"))
_USUAL = {each.name: each.default for each in fields(Link) if each.default is not MISSING}


def encode(link: Link) -> bytes:
    """A link's bytes; the same for the same link. What is as usual is left out."""
    plain = {"v": FORMAT} | {name: value for name, value in asdict(link).items() if value != _USUAL.get(name)}
    return json.dumps(plain, separators=(",", ":"), sort_keys=True, ensure_ascii=False).encode()


def decode(data: bytes) -> Link:
    """Raises ValueError for what `encode` did not write."""
    plain: Any = json.loads(data)
    if not isinstance(plain, dict) or plain.pop("v", None) != FORMAT:
        raise ValueError("not a link of this format")
    if not plain.keys() <= _FIELDS or not plain.keys() >= _NEEDED:
        raise ValueError("not the fields of a link")
    return Link(**{**plain, "tags": tuple(plain.get("tags", ()))})


def link_key(code: str) -> str:
    """Where a link is."""
    return f"{_PREFIX}/l/{code}"


def page_key(owner: str, page: int) -> str:
    """Where a page of an owner's list is."""
    return f"{_PREFIX}/p/{owner}/{page}"


def reservation_key(owner: str, digest: str) -> str:
    """Where a promise to make one link is."""
    return f"{_PREFIX}/r/{owner}/{digest}"


def counter_key(link_id: str, what: str) -> str:
    """Where a count of clicks is."""
    return f"{_PREFIX}/c/{link_id}/{what}"


def names_key(link_id: str) -> str:
    """Where the names of a link's counters are."""
    return f"{_PREFIX}/n/{link_id}"


def spent_key(link_id: str) -> str:
    """Where the exact count for `max_clicks` is."""
    return f"{_PREFIX}/m/{link_id}"


def journal_key(name: str) -> str:
    """Where a journal's state is; of no name: where the names of all are."""
    return f"{_PREFIX}/j/{name}" if name else f"{_PREFIX}/j"


def record_key(name: str, number: int) -> str:
    """Where a record of a journal is."""
    return f"{_PREFIX}/j/{name}/{number}"
