"""What somebody wants of a link, checked into what a link holds."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from kvstore.apps.shortener.aliases import check_alias
from kvstore.apps.shortener.link import TAG_LENGTH_MAX, TAGS_MAX, Link
from kvstore.apps.shortener.problems import BadField
from kvstore.apps.shortener.targets import TargetRules, check_url

LIFE_MS_MAX = 100 * 366 * 86_400_000
CLICKS_MAX = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """A link that does not exist yet."""

    url: str
    alias: str | None = None
    ttl_s: float | None = None
    expires_ms: int | None = None
    permanent: bool = False
    max_clicks: int | None = None
    tags: tuple[str, ...] = ()
    dedupe: bool = False
    """Give the link this owner has for the url, if there is one."""

    def fingerprint(self) -> str:
        """The same for the same wish."""
        plain = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(plain.encode("utf-8", "surrogatepass")).hexdigest()


class _Keep:
    """An edit leaves this field as it is."""


KEEP: Final = _Keep()


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """Changes to a link; what is KEEP stays, None takes a limit away."""

    url: str | _Keep = KEEP
    ttl_s: float | _Keep = KEEP
    expires_ms: int | _Keep | None = KEEP
    permanent: bool | _Keep = KEEP
    max_clicks: int | _Keep | None = KEEP
    tags: tuple[str, ...] | _Keep = KEEP


def drafted(
    wish: Wish, *, code: str, link_id: str, owner: str, rules: TargetRules, length: int, now_ms: int
) -> Link:
    """The link that is wished for. `code` is used when no alias is. Raises Problem."""
    alias = None if wish.alias is None else check_alias(wish.alias)
    if alias is not None and wish.dedupe:
        raise BadField("an alias and dedupe together say nothing clear", field="dedupe")
    assert alias is not None or len(code) == length
    link = Link(
        code=alias or code,
        id=link_id,
        url=check_url(wish.url, rules),
        owner=owner,
        created_ms=now_ms,
        expires_ms=_ends(wish.ttl_s, wish.expires_ms, now_ms),
        permanent=wish.permanent,
        max_clicks=wish.max_clicks,
        tags=_checked_tags(wish.tags),
        custom=alias is not None,
    )
    _check_together(link)
    return link


def edited(link: Link, edit: Edit, *, rules: TargetRules, now_ms: int) -> Link:
    """The link after an edit. Raises Problem."""
    changes: dict[str, Any] = {}
    if not isinstance(edit.url, _Keep):
        changes["url"] = check_url(edit.url, rules)
    if not isinstance(edit.ttl_s, _Keep):
        given = None if isinstance(edit.expires_ms, _Keep) else edit.expires_ms
        changes["expires_ms"] = _ends(edit.ttl_s, given, now_ms)
    elif not isinstance(edit.expires_ms, _Keep):
        changes["expires_ms"] = _ends(None, edit.expires_ms, now_ms)
    if not isinstance(edit.permanent, _Keep):
        changes["permanent"] = edit.permanent
    if not isinstance(edit.max_clicks, _Keep):
        changes["max_clicks"] = edit.max_clicks
    if not isinstance(edit.tags, _Keep):
        changes["tags"] = _checked_tags(edit.tags)
    changed = replace(link, **changes)
    _check_together(changed)
    return changed


def _ends(ttl_s: float | None, expires_ms: int | None, now_ms: int) -> int | None:
    if ttl_s is not None and expires_ms is not None:
        raise BadField("give ttl or expires_at, not both", field="ttl")
    if ttl_s is not None:
        if not 0 < ttl_s <= LIFE_MS_MAX / 1000:
            raise BadField("ttl is a number of seconds above 0, at most a hundred years", field="ttl")
        return now_ms + int(ttl_s * 1000)
    if expires_ms is not None and not now_ms < expires_ms <= now_ms + LIFE_MS_MAX:
        raise BadField("expires_at lies in the future, at most a hundred years", field="expires_at")
    return expires_ms


def _checked_tags(tags: Sequence[str]) -> tuple[str, ...]:
    clean = tuple(dict.fromkeys(unicodedata.normalize("NFC", tag).strip() for tag in tags))
    bad = [tag for tag in clean if not 1 <= len(tag) <= TAG_LENGTH_MAX or not tag.isprintable()]
    if len(clean) > TAGS_MAX or bad:
        raise BadField(f"at most {TAGS_MAX} tags of 1 to {TAG_LENGTH_MAX} printable characters", field="tags")
    return clean


def _check_together(link: Link) -> None:
    if link.max_clicks is None:
        return
    if not 1 <= link.max_clicks <= CLICKS_MAX:
        raise BadField(f"max_clicks is 1 to {CLICKS_MAX}", field="max_clicks")
    if link.permanent:
        # Browsers keep a 301 and come back no more, so nobody could count what they do.
        raise BadField("a permanent link cannot have max_clicks", field="max_clicks")
