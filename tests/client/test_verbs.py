"""What the verbs send, what they give back, and what they refuse before anything is sent."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_node import Connect, ScriptedCluster

import kvstore
from kvstore import errors, limits
from kvstore.client import codecs

YEAR_10000 = 253_402_300_800


def last(cluster: ScriptedCluster, method: str) -> tuple[Any, ...]:
    """The params of the last call of a method (keys of these tests are one each)."""
    return [params for node in cluster.nodes.values() for name, params in node.calls if name == method][-1]


async def test_put_and_get(cluster: ScriptedCluster, connect: Connect) -> None:
    kv = await connect()
    receipt = await kv.put("schlüssel", b"\0\xff")
    assert (receipt.existed, receipt.superseded, receipt.attempts) == (False, False, 1)
    assert receipt.durability is kvstore.Durability.ALWAYS
    entry = await kv.get("schlüssel".encode())
    assert entry is not None
    assert (entry.key, entry.value, entry.expires_at) == ("schlüssel".encode(), b"\0\xff", None)
    assert entry.version == receipt.version
    assert entry.receipt.answered == (receipt.coordinator,)
    assert (await kv.put("schlüssel", b"2")).existed
    assert await kv.get("nothing") is None
    assert cluster.shared.values.keys() == {"schlüssel".encode()}


async def test_delete_exists_ttl_touch_persist(connect: Connect) -> None:
    kv = await connect()
    assert not (await kv.delete("k")).existed
    assert await kv.ttl("k") is None
    assert await kv.touch("k", 5) is None
    assert await kv.persist("k") is None
    assert not await kv.exists("k")
    await kv.put("k", b"")
    assert await kv.exists("k")
    assert await kv.ttl("k") == math.inf
    instant = datetime.now(UTC) + timedelta(seconds=50)
    assert await kv.touch("k", expires_at=instant) is not None
    left = await kv.ttl("k")
    assert left is not None
    assert 48 < left <= 50
    entry = await kv.get("k")
    assert entry is not None
    assert entry.expires_at == pytest.approx(instant.timestamp(), abs=0.001)
    assert entry.ttl(instant.timestamp() - 7) == pytest.approx(7, abs=0.01)
    assert entry.ttl(instant.timestamp() + 7) == 0
    assert (await kv.delete("k")).existed


async def test_where_a_key_lives(cluster: ScriptedCluster, connect: Connect) -> None:
    kv = await connect()
    location = await kv.locate("somekey")
    assert location.slot == 11058
    assert [owner.number for owner in location.owners] == [node.number for node in cluster.owners(b"somekey")]
    assert (await kv.topology()).epoch == 1


OPTIONS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("put", {}, {}),
    ("put", {"consistency": "one"}, {"c": "one"}),
    ("put", {"consistency": kvstore.Consistency.ALL}, {"c": "all"}),
    ("put", {"consistency": "quorum"}, {}),
    ("put", {"w": 1}, {"w": 1}),
    ("put", {"durability": "always"}, {"d": "always"}),
    ("put", {"ttl": 1.5}, {"ttl": 1_500}),
    ("put", {"ttl": 0.0001}, {"ttl": 1}),
    ("put", {"expires_at": 4_000_000_000.5}, {"exp": 4_000_000_000_500}),
    ("put", {"expires_at": datetime(2100, 1, 1, tzinfo=UTC)}, {"exp": 4_102_444_800_000}),
    ("get", {"r": 3}, {"r": 3}),
    ("exists", {}, {"head": True}),
    ("ttl", {"consistency": "one"}, {"head": True, "c": "one"}),
    ("delete", {"w": 2}, {"w": 2}),
    ("touch", {"ttl": 7}, {"ttl": 7_000}),
    ("persist", {"consistency": "all"}, {"c": "all"}),
]


@pytest.mark.parametrize(("verb", "terms", "sent"), OPTIONS)
async def test_terms_become_options(
    cluster: ScriptedCluster, connect: Connect, verb: str, terms: dict[str, Any], sent: dict[str, Any]
) -> None:
    kv = await connect()
    await getattr(kv, verb)("k", *([b"v"] if verb == "put" else []), **terms)
    options = dict(last(cluster, {"exists": "get", "ttl": "get"}.get(verb, verb))[-2])
    assert 1_500 < options.pop("t") <= 1_950, "what is left of two seconds, less a margin for the answer"
    assert options == sent


async def test_a_clients_own_level_is_the_default(cluster: ScriptedCluster, connect: Connect) -> None:
    kv = await connect(consistency="one", timeout=1.0)
    await kv.get("k")
    options = dict(last(cluster, "get")[1])
    assert 200 < options.pop("t") <= 360
    assert options == {"c": "one"}
    await kv.get("k", consistency="quorum")
    assert "c" not in last(cluster, "get")[1]


BAD: list[tuple[str, dict[str, Any], type[errors.KVError]]] = [
    ("put", {"key": ""}, errors.BadKey),
    ("put", {"key": b"k" * 481}, errors.BadKey),
    ("put", {"key": "ü" * 241}, errors.BadKey),
    ("put", {"key": 7}, errors.BadOption),
    ("put", {"key": None}, errors.BadOption),
    ("put", {"key": "\ud800"}, errors.BadOption),
    ("put", {"value": "text"}, errors.BadOption),
    ("put", {"value": None}, errors.BadOption),
    ("put", {"value": bytes(limits.VALUE_BYTES_CEILING + 1)}, errors.BadValue),
    ("put", {"ttl": 0}, errors.BadTtl),
    ("put", {"ttl": -1}, errors.BadTtl),
    ("put", {"ttl": math.nan}, errors.BadTtl),
    ("put", {"ttl": math.inf}, errors.BadTtl),
    ("put", {"ttl": "60"}, errors.BadTtl),
    ("put", {"ttl": True}, errors.BadTtl),
    ("put", {"ttl": YEAR_10000}, errors.BadTtl),
    ("put", {"expires_at": YEAR_10000}, errors.BadTtl),
    ("put", {"expires_at": -5}, errors.BadTtl),
    ("put", {"expires_at": math.nan}, errors.BadTtl),
    ("put", {"expires_at": datetime(2100, 1, 1)}, errors.BadTtl),  # noqa: DTZ001  that is the case
    ("put", {"expires_at": "tomorrow"}, errors.BadTtl),
    ("put", {"ttl": 1, "expires_at": 4e9}, errors.BadOption),
    ("put", {"consistency": "most"}, errors.BadConsistency),
    ("put", {"consistency": 2}, errors.BadConsistency),
    ("put", {"consistency": "linearizable", "w": 2}, errors.BadConsistency),
    ("put", {"w": 0}, errors.BadConsistency),
    ("put", {"w": limits.REPLICAS_MAX + 1}, errors.BadConsistency),
    ("put", {"w": True}, errors.BadConsistency),
    ("put", {"w": 1.0}, errors.BadConsistency),
    ("put", {"durability": "never"}, errors.BadOption),
    ("put", {"timeout": 0}, errors.BadOption),
    ("put", {"timeout": -1}, errors.BadOption),
    ("put", {"timeout": math.nan}, errors.BadOption),
    ("put", {"timeout": 601}, errors.BadOption),
    ("put", {"timeout": "5"}, errors.BadOption),
    ("get", {"r": 0}, errors.BadConsistency),
    ("get", {"key": ""}, errors.BadKey),
    ("touch", {}, errors.BadTtl),
    ("touch", {"ttl": 0}, errors.BadTtl),
    ("touch", {"ttl": 1, "expires_at": 4e9}, errors.BadOption),
    ("get_many", {"keys": ["k", ""]}, errors.BadKey),
    ("get_many", {"keys": "abc"}, errors.BadOption),
    ("get_many", {"keys": None}, errors.BadOption),
    ("put_many", {"items": [("k", b"v")]}, errors.BadOption),
    ("put_many", {"items": None}, errors.BadOption),
    ("put_many", {"items": {"k": "text"}}, errors.BadOption),
    ("put_many", {"items": {"": b"v"}}, errors.BadKey),
    ("put_many", {"items": {"k": b"v"}, "ttl": -1}, errors.BadTtl),
    ("delete_many", {"keys": [7]}, errors.BadOption),
    ("delete_many", {"keys": b"abc"}, errors.BadOption),
    ("put", {"ttl": 10**400}, errors.BadTtl),
    ("put", {"ttl": 10**306}, errors.BadTtl),
    ("put", {"expires_at": 10**400}, errors.BadTtl),
    ("cas", {"new": b"v", "expected_version": 1 << 64}, errors.BadOption),
    ("cas", {"new": b"v", "expected_version": -1}, errors.BadOption),
    ("extend", {"ttl": 5, "expected_version": 1 << 64}, errors.BadOption),
    ("extend", {"ttl": 5, "expected_version": "1"}, errors.BadOption),
    ("resolve", {"operation": 5}, errors.BadOption),
    ("resolve", {"operation": "00 " * 10 + "00:61"}, errors.BadOption),
    ("status", {"node": "nowhere"}, errors.BadOption),
    ("status", {"node": "h:"}, errors.BadOption),
    ("status", {"node": "h:port"}, errors.BadOption),
    ("status", {"node": "h:70000"}, errors.BadOption),
    ("status", {"node": "\udcff:1"}, errors.BadOption),
    ("status", {"node": f"{'a' * 64}.com:1"}, errors.BadOption),
    ("ping", {"node": 7}, errors.BadOption),
]
NO_KEY = ("put_many", "get_many", "delete_many", "resolve", "status", "ping")


@pytest.mark.parametrize(("verb", "terms", "kind"), BAD, ids=lambda x: str(x)[:40])
async def test_what_is_wrong_is_refused_before_anything_is_sent(
    cluster: ScriptedCluster, connect: Connect, verb: str, terms: dict[str, Any], kind: type[errors.KVError]
) -> None:
    kv = await connect()
    given_terms: dict[str, Any] = {} if verb in NO_KEY else {"key": "k"}
    if verb == "put":
        given_terms["value"] = b"v"
    with pytest.raises(kind) as refused:
        await getattr(kv, verb)(**{**given_terms, **terms})
    assert refused.value.definite
    assert len(refused.value.message) < 300
    assert sum(cluster.asked()) == 0


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"consistency": "most"}, errors.BadConsistency),
        ({"timeout": 0}, errors.BadOption),
        ({"retries": -1}, errors.BadOption),
        ({"retries": True}, errors.BadOption),
        ({"codec": "pickle"}, errors.BadOption),
        ({"token": 5}, errors.BadOption),
        ({"token": "\udcff"}, errors.BadOption),
    ],
)
async def test_a_client_with_wrong_options_is_not_made(
    connect: Connect, options: dict[str, Any], kind: type[errors.KVError]
) -> None:
    with pytest.raises(kind):
        await connect(**options)


# --- codecs ---------------------------------------------------------------------------------------

DEEP: list[Any] = []
for _ in range(100_000):
    DEEP = [DEEP]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 60), 1 << 60) | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(json_values)
def test_json_and_msgpack_come_back_as_they_went(value: Any) -> None:
    for codec in (codecs.JsonCodec(), codecs.MsgpackCodec()):
        assert codec.decode(codec.encode(value)) == value


@given(st.text(st.characters(codec="utf-8")))
def test_text_comes_back_as_it_went(value: str) -> None:
    assert codecs.TextCodec().decode(codecs.TextCodec().encode(value)) == value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("raw", "text"),
        ("raw", 7),
        ("text", b"bytes"),
        ("text", "\ud800"),
        ("json", b"bytes"),
        ("json", math.nan),
        ("json", {1, 2}),
        ("json", "\ud800"),
        ("json", DEEP),
        ("msgpack", {1, 2}),
        ("msgpack", 1 << 64),
        ("msgpack", "\ud800"),
    ],
)
def test_a_codec_refuses_what_it_cannot_hold(name: str, value: Any) -> None:
    with pytest.raises(errors.BadOption):
        codecs.codec_named(name).encode(value)


@pytest.mark.parametrize("name", ["json", "msgpack", "text"])
async def test_a_value_that_the_codec_did_not_write_is_named(connect: Connect, name: str) -> None:
    await (await connect()).put("k", b"\xc1\xff")
    with pytest.raises(errors.BadOption, match="stored value"):
        await (await connect(codec=name)).get("k")


def test_a_stored_value_that_is_too_deep_is_named() -> None:
    with pytest.raises(errors.BadOption, match="stored value"):
        codecs.JsonCodec().decode(b"[" * 200_000)


@pytest.mark.parametrize(
    ("terms", "kind"),
    [
        ({"name": b"a"}, errors.BadOption),
        ({"name": "\ud800"}, errors.BadOption),
        ({"name": "x" * 480}, errors.BadKey),
        ({"name": "a", "wait": "5"}, errors.BadOption),
        ({"name": "a", "wait": math.nan}, errors.BadOption),
        ({"name": "a", "wait": 10**400}, errors.BadOption),
        ({"name": "a", "ttl": 10**400}, errors.BadTtl),
    ],
    ids=lambda x: str(x)[:40],
)
async def test_a_wrong_lock_is_not_made(
    connect: Connect, terms: dict[str, Any], kind: type[errors.KVError]
) -> None:
    kv = await connect()
    with pytest.raises(kind):
        kv.lock(**terms)


@pytest.mark.parametrize(
    ("codec", "value"), [("json", {"a": [1, None]}), ("msgpack", {1: b"x"}), ("text", "ü"), (None, b"\0")]
)
async def test_a_clients_codec_is_used_by_all_verbs(connect: Connect, codec: Any, value: Any) -> None:
    kv = await connect(codec=codec)
    await kv.put("one", value)
    await kv.put_many({"two": value})
    entry = await kv.get("one")
    assert entry is not None
    assert entry.value == value
    two = (await kv.get_many(["two"]))["two"]
    assert two is not None
    assert two.value == value
    assert [entry.value async for entry in kv.scan()] == [value, value]


async def test_a_codec_may_be_ones_own(connect: Connect) -> None:
    class Reversed:
        def encode(self, value: str) -> bytes:
            return value[::-1].encode()

        def decode(self, data: bytes) -> str:
            return data.decode()[::-1]

    kv = await connect(codec=Reversed())
    await kv.put("k", "abc")
    entry = await kv.get("k")
    assert entry is not None
    assert entry.value == "abc"
    raw = await (await connect()).get("k")
    assert raw is not None
    assert raw.value == b"cba"
