"""A process that makes something, forks, and uses it on both sides: `fork_program.py KIND URL...`.

Prints what came of it in the parent and the child, as JSON: a value, or the name of an error.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import kvstore.sync
from kvstore import errors

_PATIENCE_S = 20
"""A child that hangs is what this is about."""


def outcome(work: Callable[[], Any]) -> Any:
    """What it returns, or the name of the error that it raises."""
    try:
        return work()
    except errors.KVError as error:
        return error.name


def in_child(work: Callable[[], Any]) -> Any:
    """What `work` returns in a child; how the child ended, if it ended in another way."""
    receiving, sending = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receiving)
        signal.alarm(_PATIENCE_S)
        with os.fdopen(sending, "w", encoding="ascii") as pipe:
            json.dump(work(), pipe)
        sys.exit(0)  # in the usual way: what is left of the parent ends here, too
    os.close(sending)
    with os.fdopen(receiving, encoding="ascii") as pipe:
        told = pipe.read()
    status = os.waitpid(child, 0)[1]
    return json.loads(told) if status == 0 else f"ended with {status}"


def client(urls: list[str]) -> Any:
    """Counting, a lock and a scan that began before the fork, and ends of both."""
    with kvstore.sync.connect(urls, timeout=10) as kv:
        counted = [kv.incr("forked").value]
        kv.put_many({f"forked:{number:04}": b"v" for number in range(900)})
        scan = kv.scan("forked:")
        next(scan)
        lock = kv.lock("forked", ttl=30)
        lock.acquire()

        def child() -> Any:
            seen = [kv.incr("forked").value for _ in range(3)]
            old = [lock.held, outcome(lock.release), outcome(lock.acquire), outcome(lambda: len(list(scan)))]
            kv.close()
            return [seen, *old, outcome(lambda: kv.get("forked"))]

        came = in_child(child)
        unused = in_child(kv.close)
        counted += [kv.incr("forked").value, lock.held, len(list(scan))]
        lock.release()
        return [came, unused, counted]


def limiter(urls: list[str]) -> Any:
    """One limit on both sides."""
    from kvstore.apps.ratelimit import Algorithm, BlockingLimiter, Limit, Rule

    limit = Limit(algorithm=Algorithm.FIXED_WINDOW, amount=5, period_us=10**12)
    with BlockingLimiter(urls, {"r": Rule(name="r", limits=(limit,))}) as made:

        def allowed() -> list[bool]:
            return [made.check("r", "forked").allowed for _ in range(2)]

        return [allowed(), in_child(allowed), allowed()]


def storage(urls: list[str]) -> Any:
    """The same through the package `limits`."""
    import limits

    from kvstore.apps.ratelimit.limits_storage import KvstoreStorage

    made = KvstoreStorage("kvstore://" + ",".join(url.removeprefix("kv://") for url in urls))
    strategy, item = limits.strategies.MovingWindowRateLimiter(made), limits.parse("5/day")

    def allowed() -> list[bool]:
        return [strategy.hit(item, "forked") for _ in range(2)]

    try:
        return [allowed(), in_child(allowed), allowed()]
    finally:
        made.close()


if __name__ == "__main__":
    made = {"client": client, "limiter": limiter, "storage": storage}[sys.argv[1]](sys.argv[2:])
    sys.stdout.write(json.dumps(made))
