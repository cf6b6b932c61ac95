"""How nodes become one cluster: every order of looks, late news and crashes, up to a bound.

A node's life while it forms, as `kvstore.founding` carries it out: it looks around, and what it decides is on
the disk before it is shown. A crash between two steps forgets what is not on the disk; so here a decision may
stay unshown for as long as it likes, and news of any age may be what a look finds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations, product

import pytest

from kvstore import errors
from kvstore.core.forming import (
    Newcomer,
    everybody,
    founders,
    look_around,
    place_in,
    pledged,
    the_cluster,
    waits_for,
)
from kvstore.core.topology import NodeInfo, Topology
from kvstore.types import Epoch, NodeId

Look = Callable[[Newcomer, list[Newcomer | Topology], int], Topology | list[NodeInfo] | Newcomer]


def newcomer(name: str, pledge: str = "", *, uuid: str = "") -> Newcomer:
    return Newcomer(NodeInfo(NodeId(0), uuid or name, name, name, 7401, 7501), pledge)


@cache
def cluster_of(founder: str, names: tuple[str, ...]) -> Topology:
    members = [replace(newcomer(name).info, number=NodeId(n)) for n, name in enumerate(names, 1)]
    return Topology.create(f"cluster of {founder}", members, partitions=16)


# --- every interleaving -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class One:
    """A node: what is on its disk, and what others may have heard of it, ever."""

    pledge: str = ""
    shown: frozenset[str] = frozenset({""})
    """The pledges that it was seen with."""
    cluster: Topology | None = None
    serves: bool = False
    """Whether others may have heard of the cluster from it."""


State = tuple[One, ...]


def right_look(
    me: Newcomer, found: list[Newcomer | Topology], expected: int
) -> Topology | list[NodeInfo] | Newcomer:
    return look_around(me, found, expected, "/data")


def changed(state: State, at: int, one: One) -> State:
    return (*state[:at], one, *state[at + 1 :])


def news(state: State, names: str, at: int) -> Iterator[list[Newcomer | Topology]]:
    """Everything that a look of a node may find: any of the others, with news of any age."""
    others = [other for other in range(len(state)) if other != at]
    for count in range(len(others) + 1):
        for some in combinations(others, count):
            kinds: list[list[Newcomer | Topology]] = []
            for other in some:
                heard: list[Newcomer | Topology] = [
                    newcomer(names[other], pledge) for pledge in sorted(state[other].shown)
                ]
                cluster = state[other].cluster
                kinds.append([*heard, cluster] if cluster is not None and state[other].serves else heard)
            yield from (list(each) for each in product(*kinds))


def steps(state: State, names: str, expected: int, look: Look, *, keeps: bool) -> Iterator[State]:
    """Every state that may come next."""
    for at, one in enumerate(state):
        if one.cluster is not None:
            yield changed(state, at, replace(one, serves=True))
            continue
        yield changed(state, at, replace(one, shown=one.shown | {one.pledge}))
        if not keeps:
            yield changed(state, at, replace(one, pledge=""))  # a restart
        for found in news(state, names, at):
            try:
                decided = look(newcomer(names[at], one.pledge), found, expected)
            except errors.KVError:
                continue  # it ends, and may be started again
            match decided:
                case Topology():
                    yield changed(state, at, replace(one, cluster=decided))
                case Newcomer():
                    yield changed(state, at, replace(one, pledge=decided.pledge))
                case members:
                    founded = cluster_of(names[at], tuple(each.name for each in members))
                    yield changed(state, at, replace(one, cluster=founded))


def reachable(names: str, expected: int, look: Look = right_look, *, keeps: bool = True) -> set[State]:
    """All states there are. Fails at the first with two clusters that share a node."""
    todo: list[State] = [tuple(One() for _ in names)]
    known = set(todo)
    while todo:
        state = todo.pop()
        for after in steps(state, names, expected, look, keeps=keeps):
            if after not in known:
                clusters = {one.cluster.cluster_id: one.cluster for one in after if one.cluster is not None}
                taken = [node.uuid for cluster in clusters.values() for node in cluster.nodes]
                assert len(taken) == len(set(taken)), f"two clusters share a node: {sorted(clusters)}"
                known.add(after)
                todo.append(after)
    return known


@pytest.mark.parametrize(("names", "expected"), [("ab", 2), ("abc", 2), ("abc", 3), ("abcd", 3)])
@pytest.mark.slow
def test_no_crash_and_no_late_news_makes_two_clusters_that_share_a_node(names: str, expected: int) -> None:
    states = reachable(names, expected)
    ends = {frozenset(one.cluster.cluster_id for one in state if one.cluster) for state in states}
    if len(names) == expected:
        assert ends == {frozenset(), frozenset({"cluster of a"})}
    else:
        assert len(ends) > 2, "with one node too many it is open who founds"


@pytest.mark.parametrize("names", ["ab", "abc"])
def test_wherever_they_were_interrupted_they_end_as_one_cluster(names: str) -> None:
    """Everybody shows and sees everything from then on: three rounds are enough."""
    for start in reachable(names, len(names)):
        state = start
        for at in list(range(len(names))) * 4:
            state = tuple(
                replace(one, shown=frozenset({one.pledge}), serves=one.cluster is not None) for one in state
            )
            one = state[at]
            if one.cluster is None:
                found = [each.cluster or newcomer(names[i], each.pledge) for i, each in enumerate(state)]
                match right_look(newcomer(names[at], one.pledge), found, len(names)):
                    case Topology() as joined:
                        state = changed(state, at, replace(one, cluster=joined))
                    case Newcomer() as me:
                        state = changed(state, at, replace(one, pledge=me.pledge))
                    case members:
                        whole = cluster_of(names[at], tuple(each.name for each in members))
                        state = changed(state, at, replace(one, cluster=whole))
        assert {one.cluster for one in state} == {cluster_of("a", tuple(names))}


def fickle(
    me: Newcomer, found: list[Newcomer | Topology], expected: int
) -> Topology | list[NodeInfo] | Newcomer:
    """Pledges itself anew at every look."""
    decided = right_look(me, found, expected)
    if isinstance(decided, Newcomer):
        seen = [each for each in found if isinstance(each, Newcomer)]
        return pledged(replace(me, pledge=""), seen, expected)
    return decided


def hasty(
    me: Newcomer, found: list[Newcomer | Topology], expected: int
) -> Topology | list[NodeInfo] | Newcomer:
    """Founds as soon as enough are there and it is the first of them, whatever they pledged."""
    seen = [replace(each, pledge=me.info.uuid) for each in found if isinstance(each, Newcomer)]
    decided = right_look(me, found, expected)
    if (
        isinstance(decided, Newcomer)
        and len(seen) == expected - 1
        and me.info == everybody(me, seen, 9)[0].info
    ):
        return founders(replace(me, pledge=me.info.uuid), seen, expected) or decided
    return decided


@pytest.mark.parametrize(
    ("look", "keeps"),
    [
        pytest.param(right_look, False, id="a pledge is forgotten in a restart"),
        pytest.param(fickle, True, id="a pledge is changed"),
        pytest.param(hasty, True, id="nobody is asked for a pledge"),
    ],
)
def test_the_search_convicts_rules_that_are_broken(look: Look, *, keeps: bool) -> None:
    with pytest.raises(AssertionError, match="two clusters share a node"):
        reachable("abc", 2, look, keeps=keeps)


# --- one decision at a time -------------------------------------------------------------


def test_what_a_node_waits_for_is_said_step_by_step() -> None:
    a, b = newcomer("a"), newcomer("b")
    assert waits_for(a, [], 2) == "1 more nodes (a of 2 are here)"
    assert waits_for(newcomer("b", "a"), [a], 2) == "a, which founds the cluster when all of 2 ask it to"
    lost = waits_for(newcomer("b", "gone"), [a], 2)
    assert lost.startswith("node gone, which it left the founding to and which is not here")
    assert lost.endswith("empty this node's directory: it holds nothing yet")
    assert pledged(newcomer("b", "gone"), [a], 2).pledge == "gone"
    assert founders(b, [a], 2) is None


def test_the_newest_word_about_the_cluster_counts_and_two_clusters_are_refused() -> None:
    old = cluster_of("a", ("a", "b"))
    new = replace(old, epoch=Epoch(2))
    assert the_cluster([]) is None
    assert the_cluster([old, new, old]) is new
    with pytest.raises(errors.ConfigInvalid, match="different clusters"):
        the_cluster([old, cluster_of("b", ("a", "b"))])


def test_a_place_is_known_by_its_uuid_and_taken_places_are_refused() -> None:
    topology = cluster_of("a", ("a", "b"))
    assert place_in(topology, newcomer("elsewhere", uuid="b").info, "/data").number == 2
    for thief in (newcomer("b", uuid="new").info, replace(newcomer("x").info, host="b")):
        with pytest.raises(errors.DataDirForeign, match="whose data is not here"):
            place_in(topology, thief, "/data")
    with pytest.raises(errors.ConfigInvalid, match="c is none of them"):
        place_in(topology, newcomer("c").info, "/data")


def test_names_decide_the_order_and_must_differ() -> None:
    found = everybody(newcomer("kv-10"), [newcomer("kv-2"), newcomer("kv-1")], 3)
    assert [each.info.name for each in found] == ["kv-1", "kv-2", "kv-10"]
    with pytest.raises(errors.ConfigInvalid, match="two new nodes are called a"):
        everybody(newcomer("a"), [newcomer("a", uuid="other")], 3)
    with pytest.raises(errors.ConfigInvalid, match=r"3 new nodes \(a, b, c\) want to found a cluster of 2"):
        everybody(newcomer("a"), [newcomer("b"), newcomer("c")], 2)


def test_a_newcomer_survives_the_wire_and_nothing_else_does() -> None:
    me = newcomer("a", "b")
    assert Newcomer.from_plain(me.to_plain()) == me
    for plain in (None, {}, {"info": {}, "pledge": ""}, me.to_plain() | {"pledge": 1}):
        with pytest.raises(errors.Malformed):
            Newcomer.from_plain(plain)
