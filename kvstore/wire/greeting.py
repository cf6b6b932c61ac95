"""The first call of every connection: which protocol, which cluster, with what token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from kvstore import errors
from kvstore.wire.options import shown

PROTOCOL = 1
_AGENT_CHARACTERS_MAX = 200


class Hello(NamedTuple):
    """A client's. Empty: not given."""

    agent: str
    cluster: str
    token: str


def encode_hello(hello: Hello) -> list[Any]:
    """`[{protocol: [least, most], agent, cluster, token}]`; empty ones are left out."""
    plain = {name: value for name, value in hello._asdict().items() if value}
    return [{"protocol": [PROTOCOL, PROTOCOL], **plain}]


def decode_hello(params: Sequence[Any]) -> Hello:
    """The other way. Raises errors.ProtocolMismatch, errors.BadOption."""
    plain = decode_offer(params)
    return Hello(
        text_of(plain, "agent")[:_AGENT_CHARACTERS_MAX], text_of(plain, "cluster"), text_of(plain, "token")
    )


def decode_offer(params: Sequence[Any]) -> Mapping[str, Any]:
    """The map of a hello, ours or a peer's, whose protocols include ours."""
    if not params or type(params[0]) is not dict:
        raise errors.BadOption(option="hello", given="something else", allowed="a map")
    plain: Mapping[str, Any] = params[0]
    offered = plain.get("protocol")
    if type(offered) is not tuple or len(offered) != 2 or not all(type(n) is int for n in offered):
        raise errors.ProtocolMismatch(offered=shown(offered), supported=str(PROTOCOL))
    if not offered[0] <= PROTOCOL <= offered[1]:
        raise errors.ProtocolMismatch(offered=f"{offered[0]} to {offered[1]}", supported=str(PROTOCOL))
    return plain


def text_of(plain: Mapping[str, Any], name: str) -> str:
    """A field that is text, or not there."""
    value = plain.get(name)
    if value is None:
        return ""
    if type(value) is not str:
        raise errors.BadOption(option=name, given=shown(value), allowed="text")
    return value
