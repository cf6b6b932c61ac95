"""The same client without `await`, for scripts, threads and frameworks that block.

    with kvstore.sync.connect("kv://127.0.0.1:7401") as kv:
        kv.put("user:1", b"Ada", ttl=60)
        with kv.lock("job", ttl=10) as lease:
            work(fenced_by=lease.token)

One private event loop runs in one daemon thread for each client; the calls of any thread are handed to
it and waited for, so a client may be shared between threads. After a fork the child connects anew at its
first call; locks that are held and scans that are under way stay with the parent.
"""

from kvstore.sync.client import Client, connect
from kvstore.sync.locks import Lock
from kvstore.sync.resident import Resident

__all__ = ["Client", "Lock", "Resident", "connect"]
