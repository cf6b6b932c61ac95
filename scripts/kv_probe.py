#!/usr/bin/env python3
"""Ask the node in this container how it is: `kv-probe ready|alive`, for HEALTHCHECK and Kubernetes.

ready   it serves: state ready                          exit 0, else 1 with the state in one line
alive   it answers, whatever its state, unless failed   exit 0, else 1

It reads the node's own variables: KV_CLIENT_PORT, KV_LISTEN_HOST, KV_CLIENT_TOKEN or KV_CLIENT_TOKEN_FILE.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvstore import errors
from kvstore.client.connection import Connection

TIMEOUT_S = 2.0
_EVERYWHERE = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104  what it means to listen there


def address_of(environment: Mapping[str, str]) -> str:
    """Where the node of this environment takes clients."""
    host = environment.get("KV_LISTEN_HOST", "")
    return f"{_EVERYWHERE.get(host, host)}:{environment.get('KV_CLIENT_PORT') or '7401'}"


def token_of(environment: Mapping[str, str]) -> str:
    """What clients must show it."""
    path = environment.get("KV_CLIENT_TOKEN_FILE")
    return Path(path).read_text(encoding="utf-8").strip() if path else environment.get("KV_CLIENT_TOKEN", "")


def verdict(question: str, status: Mapping[str, Any]) -> bool:
    """Whether a node of this status is what was asked."""
    state = status.get("state")
    return state == "ready" if question == "ready" else state != "failed"


async def ask(address: str, token: str) -> Mapping[str, Any]:
    """The node's status."""
    async with asyncio.timeout(TIMEOUT_S):
        connection = await Connection.open(address, token=token, timeout=TIMEOUT_S)
        try:
            status: Mapping[str, Any] = await connection.call("status", ())
            return status
        finally:
            connection.close()


def main() -> int:
    """Answer by exit status."""
    if sys.argv[1:] not in (["ready"], ["alive"]):
        sys.stderr.write("usage: kv-probe ready|alive\n")
        return 2
    try:
        status = asyncio.run(ask(address_of(os.environ), token_of(os.environ)))
    except (errors.KVError, OSError, TimeoutError) as error:
        sys.stdout.write(f"no answer: {error}\n")
        return 1
    waits = f", waits for {status['waits_for']}" if "waits_for" in status else ""
    sys.stdout.write(f"{status.get('name')}: {status.get('state')}{waits}\n")
    return 0 if verdict(sys.argv[1], status) else 1


if __name__ == "__main__":
    sys.exit(main())
