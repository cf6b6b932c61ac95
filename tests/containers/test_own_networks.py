"""jepsen-lite with a network for every node: containers, or namespaces where there is no engine."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from jepsen_lite import runner
from jepsen_lite.nemesis import CLIENTS, Fault, Plan
from jepsen_lite.runner import Options
from jepsen_lite.targets import TargetError, containers, fences, namespaces, opening
from jepsen_lite.targets.fences import Fences, rules
from jepsen_lite.verdict import Word, worst

HOSTS = {CLIENTS: "10.0.0.1", 1: "10.0.0.11", 2: "10.0.0.12", 3: "10.0.0.13"}


def cut(*pairs: tuple[int, int]) -> Fault:
    return Fault(1.0, 1.0, "one-way", "cut", pairs=pairs)


# --- without any network ------------------------------------------------------------------


def test_one_direction_is_one_rule_at_whoever_it_goes_to() -> None:
    faults = [cut((1, 2))]
    assert "ip saddr 10.0.0.11 counter drop" in rules(2, HOSTS, faults)
    assert "drop" not in rules(1, HOSTS, faults)
    assert "drop" not in rules(3, HOSTS, faults)


def test_what_goes_to_clients_is_dropped_where_it_leaves() -> None:
    told = rules(1, HOSTS, [cut((1, CLIENTS), (CLIENTS, 1))])
    came, goes = told.split("chain output")
    assert "ip saddr 10.0.0.1 counter drop" in came
    assert "ip daddr 10.0.0.1 counter drop" in goes


def test_loss_is_a_share() -> None:
    fault = Fault(1.0, 1.0, "flaky", "flaky", pairs=((2, 1),), amount=0.2)
    assert "ip saddr 10.0.0.12 numgen random mod 1000 < 200 counter drop" in rules(1, HOSTS, [fault])


class Recorded:
    """Networks that write down what is done to them."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.down: set[int] = set()

    async def inside(self, node: int) -> Sequence[str]:
        return () if node in self.down else (f"in{node}",)

    async def unplug(self, node: int) -> None:
        self.done.append(f"unplug {node}")

    async def plug(self, node: int) -> None:
        self.done.append(f"plug {node}")


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    networks = Recorded()

    async def tell(*command: str, text: str = "", patience_s: float = 0) -> str:  # noqa: ARG001
        networks.done.append(f"{command[0]} {text.count(' drop')}")
        return ""

    monkeypatch.setattr(fences, "tell", tell)
    return networks


async def test_only_nodes_whose_cuts_changed_are_told(recorded: Recorded) -> None:
    links = Fences("", recorded, HOSTS)
    one, other = cut((1, 2), (3, 2)), cut((1, 2), (1, 3))
    await links.apply([one])
    await links.apply([one, other])
    await links.apply([one, other])
    await links.apply([other])
    await links.apply([])
    assert recorded.done == ["in2 2", "in2 3", "in3 1", "in2 1", "in2 0", "in3 0"]


async def test_a_network_that_came_back_empty_is_told_again(recorded: Recorded) -> None:
    links = Fences("", recorded, HOSTS)
    recorded.down = {2}
    await links.apply([cut((1, 2))])
    assert recorded.done == []
    recorded.down = set()
    await links.again(2)
    await links.again(3)
    assert recorded.done == ["in2 1"]


async def test_two_faults_pull_the_plug_once_and_the_last_one_gives_it_back(recorded: Recorded) -> None:
    links = Fences("", recorded, HOSTS)
    one, other = (Fault(1.0, 1.0, "disconnect", "disconnect", nodes=nodes) for nodes in ((1,), (1, 2)))
    await links.apply([one])
    await links.apply([one, other])
    await links.apply([other])
    await links.apply([])
    assert recorded.done == ["unplug 1", "unplug 2", "plug 1", "plug 2"]


async def test_a_command_that_fails_or_is_not_there_is_one_line() -> None:
    assert await fences.tell("cat", text="x") == "x"
    with pytest.raises(TargetError, match="no-such-command: No such file"):
        await fences.tell("no-such-command")
    with pytest.raises(TargetError, match=r"^ls /no/such: .*No such file"):
        await fences.tell("ls", "/no/such")
    with pytest.raises(TargetError, match=r"^sleep 9: no end within 0\.05 s$"):
        await fences.tell("sleep", "9", patience_s=0.05)


async def test_without_an_engine_namespaces_take_over_and_say_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    async def no_engine() -> str:
        return "no Docker engine answers"

    def opened(_directory: Path, *, why: str, **_: object) -> object:
        said.append(why)
        raise TargetError("as far as this test goes")

    monkeypatch.setattr(containers, "problem", no_engine)
    monkeypatch.setattr(namespaces, "opened", opened)
    for target in ("docker", "netns"):
        with pytest.raises(TargetError, match="as far as"):
            async with opening.opened(target, tmp_path, nodes=3, replicas=3, kinds=(), links="auto"):
                pass
    assert said == ["no Docker engine answers", ""]
    with pytest.raises(TargetError, match="has no proxies"):
        async with opening.opened("docker", tmp_path, nodes=3, replicas=3, kinds=(), links="proxy"):
            pass


async def test_who_is_not_root_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert namespaces.problem() == "network namespaces need root"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "nft" else name)
    assert namespaces.problem() == "there is no nft: apt-get install iproute2 nftables"
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    assert await containers.problem() == "there is no docker"


# --- for real -----------------------------------------------------------------------------

PLAN = (
    Fault(1.0, 1.5, "one-way", "cut", pairs=((1, 2), (1, 3))),
    Fault(3.5, 1.5, "disconnect", "disconnect", nodes=(2,)),
    Fault(6.0, 0.5, "kill", "kill", nodes=(3,)),
    Fault(8.0, 1.0, "pause", "pause", nodes=(1,)),
    Fault(9.5, 1.0, "client-cut", "cut", pairs=((CLIENTS, 2), (2, CLIENTS))),
)


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.xdist_group("containers")
@pytest.mark.parametrize("target", ["docker", "netns"])
async def test_partitions_between_networks_are_survived(tmp_path: Path, target: str) -> None:
    missing = await containers.problem() if target == "docker" else namespaces.problem()
    if missing:
        pytest.skip(missing)
    options = Options(
        target=target, workload="register", nemesis="none", seconds=12, nodes=3, clients=6, rate=60
    )
    outcome = await runner.run(options, Plan("none", 1, 3, 12, PLAN), tmp_path, say=lambda _text: None)
    told = "\n".join(map(str, outcome.judgement.verdicts))
    # Calls may be late on a machine that has other things to do; everything else may not be.
    assert worst(v for v in outcome.judgement.verdicts if v.check != "deadlines") is Word.OK, told
    assert len(outcome.spans) == len(PLAN)
    place = "nodes are containers of" if target == "docker" else "nodes are processes in network namespaces"
    assert outcome.notes[0].startswith(place)
