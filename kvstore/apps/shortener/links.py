"""Short links over the public client: make, find, edit, delete, list, follow.

The life of a link: its entry goes into the owner's list, then its code is claimed by `put_if_absent`, which
exactly one of many wins, whatever nodes they ask and on whichever side of a partition a majority is. A code
that is taken is replaced by another; an alias that is taken is told. Edits are compare-and-set on the
version that was read. An expired link is kept for a day, so that visitors hear that it has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

import kvstore
from kvstore import errors
from kvstore.apps.shortener import aliases, codes, stats
from kvstore.apps.shortener.cache import Found, LinkCache
from kvstore.apps.shortener.link import Link, decode, encode, link_key, spent_key
from kvstore.apps.shortener.options import ShortenerOptions
from kvstore.apps.shortener.owned import OwnedLists
from kvstore.apps.shortener.problems import AliasTaken, LinkGone, NoSuchLink
from kvstore.apps.shortener.reservations import Reservations, found_at, settled
from kvstore.apps.shortener.wishes import Edit, Wish, drafted, edited

GRACE_S = 86_400.0
"""How long an expired link is known as such; after that its code is free again."""
_USED_UP = "all clicks it was made for are used up"
_CODES_TRIED = 5
_EDITS_TRIED = 10


@dataclass(frozen=True, slots=True)
class Made:
    """A link somebody asked for."""

    link: Link
    new: bool
    """Not one that `dedupe` found."""


class Links:
    """All links. One for a process: the cache is shared."""

    def __init__(
        self,
        kv: kvstore.Client,
        options: ShortenerOptions,
        *,
        now_ms: Callable[[], int],
        monotonic: Callable[[], float],
    ) -> None:
        self._kv = kv
        self._rules = options.rules()
        self._length = options.code_length
        self._now_ms = now_ms
        self._owned = OwnedLists(kv)
        self._reservations = Reservations(kv)
        self.cache = LinkCache(
            self._read,
            monotonic=monotonic,
            ttl_s=options.cache_ttl_s,
            verify_s=options.verify_s,
            links_max=options.cache_links,
        )

    # --- owners -------------------------------------------------------------------------

    async def create(self, owner: str, wish: Wish, *, idempotency_key: str | None = None) -> Made:
        """Make a link. Raises Problem, errors.KVError."""
        draft = drafted(
            wish,
            code=codes.new_code(self._length),
            link_id=codes.new_id(),
            owner=owner,
            rules=self._rules,
            length=self._length,
            now_ms=self._now_ms(),
        )
        make = self._shared if wish.dedupe else self._make
        if idempotency_key is None:
            link = await make(draft)
        else:
            link = await self._reservations.once(owner, idempotency_key, draft, wish.fingerprint(), make)
            return Made(link, new=True)
        return Made(link, new=link.id == draft.id)

    async def get(self, owner: str, code: str) -> Link:
        """An owner's link as it is now. Raises NoSuchLink."""
        link, _ = await self._current(owner, code)
        return link

    async def edit(self, owner: str, code: str, edit: Edit) -> Link:
        """Change a link. Raises Problem, errors.KVError."""
        for _ in range(_EDITS_TRIED):
            link, version = await self._current(owner, code)
            changed = edited(link, edit, rules=self._rules, now_ms=self._now_ms())
            if changed.max_clicks is not None and (link.max_clicks is None or _outlives(changed, link)):
                await self._keep_spent(changed)
            change = self._kv.cas(
                link_key(code), new=encode(changed), expected_version=version, expires_at=_kept_until(changed)
            )
            try:
                done = await settled(self._kv, change)
            finally:
                self.cache.forget(code)
            if done:
                return changed
        raise errors.Contended(key=repr(code), timeout_ms=0)

    async def delete(self, owner: str, code: str) -> None:
        """Take a link away, with its clicks. Raises Problem, errors.KVError."""
        for _ in range(_EDITS_TRIED):
            link, version = await self._current(owner, code)
            try:
                done = await settled(self._kv, self._kv.delete_if(link_key(code), expected_version=version))
            finally:
                self.cache.forget(code)
            if done:
                with suppress(errors.KVError):  # the link is gone; a list entry without it is skipped
                    await self._owned.remove(owner, link.page, (code, link.id))
                    await stats.forget_stats(self._kv, link, self._now_ms())
                return
        raise errors.Contended(key=repr(code), timeout_ms=0)

    async def owned(self, owner: str, *, cursor: str | None, limit: int) -> tuple[list[Link], str | None]:
        """An owner's links, newest first, and the cursor of the next page. Raises BadField."""
        listed, following = await self._owned.read(owner, cursor, limit)
        keys: dict[str | bytes, tuple[str, str]] = {link_key(code): (code, i) for code, i in listed}
        found = await self._kv.get_many(keys)
        links = [decode(entry.value) for entry in found.values() if entry is not None]
        ids = {link_id for _, link_id in listed}
        return [link for link in links if link.id in ids], following

    async def stats(self, owner: str, code: str) -> tuple[Link, stats.Stats]:
        """An owner's link with its clicks. Raises NoSuchLink."""
        link = await self.get(owner, code)
        return link, await stats.read_stats(self._kv, link, self._now_ms())

    # --- visitors -----------------------------------------------------------------------

    async def resolve(self, code: str) -> Link:
        """Where a code leads. Raises NoSuchLink, LinkGone, errors.KVError."""
        link = await self.cache.get(code)
        if link is None:
            raise NoSuchLink("no link has this code")
        if link.is_over(self._now_ms()):
            raise LinkGone("it was made for a time that is over")
        return link

    async def spend(self, link: Link) -> None:
        """Take one of the clicks that a limited link has. Raises LinkGone when there is none left."""
        if link.max_clicks is None:
            return
        done = await settled(
            self._kv,
            self._kv.incr(spent_key(link.id), maximum=link.max_clicks, expires_at=_kept_until(link)),
        )
        if not done:
            raise LinkGone(_USED_UP)

    async def check_left(self, link: Link) -> None:
        """For who only looks: raises LinkGone when no click is left, and takes none."""
        if await self._is_used_up(link):
            raise LinkGone(_USED_UP)

    # --- parts --------------------------------------------------------------------------

    async def _current(self, owner: str, code: str) -> tuple[Link, int]:
        # What no alias can be is no key for the store either.
        found = await found_at(self._kv, link_key(code)) if len(code) <= aliases.LENGTH_MAX else None
        link = None if found is None else decode(found[0])
        if found is None or link is None or link.owner != owner:
            raise NoSuchLink("you have no link with this code")
        return link, found[1]

    async def _is_used_up(self, link: Link) -> bool:
        if link.max_clicks is None:
            return False
        spent = await found_at(self._kv, spent_key(link.id))
        return spent is not None and int(spent[0]) >= link.max_clicks

    async def _keep_spent(self, link: Link) -> None:
        """Let the count live as long as a link that is about to live longer, lest it begins again.

        It is begun here if it was not: a service that has the old link in memory would give it the old end.
        """
        key, until = spent_key(link.id), _kept_until(link)
        if await settled(self._kv, self._kv.put_if_absent(key, b"0", expires_at=until)):
            return
        if until is None:
            await self._kv.persist(key, consistency="linearizable")
        else:
            await self._kv.touch(key, expires_at=until, consistency="linearizable")

    async def _read(self, code: str, verify: bool) -> Found:
        """For the cache: one replica first; a quorum for what that misses, or where the cache asks."""
        key = link_key(code)
        if not verify:
            entry = await self._kv.get(key, consistency="one")
            if entry is not None:
                return Found(decode(entry.value), entry.version, verified=False)
        try:
            entry = await self._kv.get(key)
        except (errors.NotNow, errors.Unresolved):
            if not verify:
                raise
            # Cut off from the quorum: an old answer is better than none, a miss would be a guess.
            entry = await self._kv.get(key, consistency="one")
            if entry is None:
                raise
            return Found(decode(entry.value), entry.version, verified=False)
        return (
            Found(None, 0, verified=True)
            if entry is None
            else Found(decode(entry.value), entry.version, verified=True)
        )

    async def _shared(self, draft: Link) -> Link:
        return await self._reservations.same(draft.owner, draft, self._make, self._is_live)

    async def _is_live(self, link: Link) -> bool:
        found = await found_at(self._kv, link_key(link.code))
        if found is None:
            return False
        now = decode(found[0])
        leads = now.id == link.id and now.url == link.url and not now.is_over(self._now_ms())
        return leads and not await self._is_used_up(now)

    async def _make(self, draft: Link) -> Link:
        """Claim the draft's code, or find that it was claimed with this draft before."""
        for _ in range(_CODES_TRIED):
            entry = (draft.code, draft.id)
            page = await self._owned.add(draft.owner, entry)
            link = replace(draft, page=page)
            claim = self._kv.put_if_absent(link_key(link.code), encode(link), expires_at=_kept_until(link))
            if await settled(self._kv, claim):
                return link
            found = await found_at(self._kv, link_key(link.code))
            if found is not None and (there := decode(found[0])).id == draft.id:
                return there
            with suppress(errors.KVError):
                await self._owned.remove(draft.owner, page, entry)
            if draft.custom:
                raise AliasTaken(f"{draft.code} is taken; choose another one")
            draft = replace(draft, code=codes.new_code(self._length))
        raise errors.Contended(key=repr(draft.code), timeout_ms=0)


def _kept_until(link: Link) -> float | None:
    """When the store may forget it, in seconds since 1970."""
    return None if link.expires_ms is None else link.expires_ms / 1000 + GRACE_S


def _outlives(changed: Link, link: Link) -> bool:
    return link.expires_ms is not None and (
        changed.expires_ms is None or changed.expires_ms > link.expires_ms
    )


async def create_many(
    links: Links, owner: str, wishes: list[Wish], *, idempotency_key: str | None
) -> list[Made | Exception]:
    """Make many links, each for itself: what became of each, in order. Errors are values here."""
    outcomes: list[Made | Exception | None] = [None] * len(wishes)
    left = iter(enumerate(wishes))

    async def work() -> None:
        for at, wish in left:
            key = None if idempotency_key is None else f"{idempotency_key}#{at}"
            try:
                outcomes[at] = await links.create(owner, wish, idempotency_key=key)
            except Exception as error:  # noqa: BLE001  told to the caller, one by one
                outcomes[at] = error

    async with asyncio.TaskGroup() as tasks:
        for _ in range(8):
            tasks.create_task(work())
    return [outcome for outcome in outcomes if outcome is not None]
