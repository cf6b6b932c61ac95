"""The judge on somebody else's system: three etcd members, one killed, and no false alarm."""

from __future__ import annotations

import base64
import json
import os
import random
import shutil
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import stores
from jepsen_lite import search
from jepsen_lite.history import Operation
from jepsen_lite.models import Register
from jepsen_lite.verdict import Word

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("etcd") is None, reason="etcd is not installed"),
]
KEYS = ("a", "b", "c")
SECONDS = 6.0
CLIENTS = 5
_TIMEOUT_S = 1.0


def _b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _post(address: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        f"http://{address}/v3/kv/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:  # noqa: S310
        plain: dict[str, Any] = json.load(answer)
    return plain


def _value(ranged: dict[str, Any]) -> str | None:
    found = ranged.get("kvs", [])
    return base64.b64decode(found[0]["value"]).decode() if found else None


def _read(address: str, op: Operation) -> None:
    op.value = _value(_post(address, "range", {"key": _b64(op.key)}))


def _write(address: str, op: Operation) -> None:
    _post(address, "put", {"key": _b64(op.key), "value": _b64(str(op.value))})


def _cas(address: str, op: Operation) -> None:
    key = _b64(op.key)
    done = _post(
        address,
        "txn",
        {
            "compare": [{"key": key, "target": "VALUE", "result": "EQUAL", "value": _b64(str(op.expected))}],
            "success": [{"request_put": {"key": key, "value": _b64(str(op.value))}}],
            "failure": [{"request_range": {"key": key}}],
        },
    )
    if not done.get("succeeded"):
        op.outcome = "fail"
        op.observed, op.seen = True, _value(done["responses"][0]["response_range"])


_ASK: dict[str, Callable[[str, Operation], None]] = {"read": _read, "write": _write, "cas": _cas}


class _Client(threading.Thread):
    """One client at one member."""

    def __init__(self, number: int, address: str, until: float) -> None:
        super().__init__(daemon=True)
        self.process, self.address, self.until = number, address, until
        self.dice = random.Random(number)
        self.history: list[Operation] = []
        self.seen: dict[str, str] = {}

    def run(self) -> None:
        while (began := time.monotonic()) < self.until:
            key, kind = self.dice.choice(KEYS), self.dice.choice(("read", "read", "write", "cas"))
            if kind == "cas" and key not in self.seen:
                kind = "read"
            value = None if kind == "read" else f"{self.process}-{len(self.history)}"
            op = Operation(self.process, kind, key, began, None, "unknown", value)
            op.expected = self.seen.get(key) if kind == "cas" else None
            self.history.append(op)
            try:
                op.outcome = "ok"
                _ASK[kind](self.address, op)
            except (OSError, urllib.error.URLError, KeyError, ValueError):
                op.outcome = "fail" if kind == "read" else "unknown"
                self.process += CLIENTS  # an unknown outcome ends a process
            op.ended = time.monotonic()
            last = op.seen if op.outcome == "fail" else op.value
            if op.outcome != "unknown" and isinstance(last, str):
                self.seen[key] = last
            time.sleep(self.dice.random() * 0.01)


def _kill_member(directory: Path) -> None:
    """End, by its id, the member whose data is there."""
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found = str(directory).encode() in entry.read_bytes()
        except OSError:
            continue
        if found:
            os.kill(int(entry.parent.name), signal.SIGKILL)


def test_etcd_with_a_member_killed_is_linearizable(tmp_path: Path) -> None:
    with stores.etcd(tmp_path) as target:
        until = time.monotonic() + SECONDS
        clients = [_Client(number, target.addresses[number % 3], until) for number in range(CLIENTS)]
        for client in clients:
            client.start()
        time.sleep(SECONDS / 2)
        _kill_member(tmp_path / "etcd2")
        for client in clients:
            client.join(SECONDS + 10)
    history = sorted((op for client in clients for op in client.history), key=lambda op: op.began)
    assert sum(op.outcome == "ok" for op in history) > 200
    verdict = search.check_keys(history, Register(initial=None), max_steps=3_000_000)
    assert verdict.word is Word.OK, verdict
    # The judge was not asleep: the same history with one stale read is convicted.
    reads = [op for op in history if op.kind == "read" and op.outcome == "ok" and op.value is not None]
    reads[-1].value = next(
        op.value for op in reads if op.key == reads[-1].key and op.value != reads[-1].value
    )
    assert search.check_keys(history, Register(initial=None), max_steps=3_000_000).word is Word.ILLEGAL
