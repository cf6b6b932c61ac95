"""kvstore: a replicated key-value store you can read, run on three machines, and trust.

    async with await kvstore.connect("kv://127.0.0.1:7401") as kv:
        await kv.put("user:1", b"Ada", ttl=60)

`kvstore.sync` has the same verbs, blocking; `kvstore.errors` everything that can go wrong.
"""

from kvstore import errors
from kvstore.api import connect, local_cluster
from kvstore.client.change import Applied, Change, NotApplied
from kvstore.client.client import Client
from kvstore.client.codecs import Codec
from kvstore.client.locks import Lock
from kvstore.client.receipt import Entry, Location, Receipt
from kvstore.errors import KVError, Refused, Unresolved
from kvstore.types import Consistency, Durability, Operation

__all__ = [
    "Applied",
    "Change",
    "Client",
    "Codec",
    "Consistency",
    "Durability",
    "Entry",
    "KVError",
    "Location",
    "Lock",
    "NotApplied",
    "Operation",
    "Receipt",
    "Refused",
    "Unresolved",
    "connect",
    "errors",
    "local_cluster",
]
