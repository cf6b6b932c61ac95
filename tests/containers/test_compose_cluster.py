"""compose.yaml with a real Docker engine: a cluster, and what containers do to it.

Needs an engine and the image (`make image`; without a registry first scripts/base-image.sh). Everything runs
in a compose project of its own, with its own port, networks and volumes, and all of it is removed at the end.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

import kvstore.sync

ROOT = Path(__file__).parents[2]
IMAGE = os.environ.get("KV_IMAGE", "kvstore:0.1.0")
PATIENCE_S = 60.0


def _run(*command: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | (env or {}),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def _missing() -> str:
    """Why these tests cannot run here, in one line; empty when they can."""
    if shutil.which("docker") is None or _run("docker", "version").returncode:
        return "no Docker engine answers here"
    if not _compose():
        return "neither `docker compose` nor docker-compose is here"
    if _run("docker", "image", "inspect", IMAGE).returncode:
        return f"there is no image {IMAGE}: make image (without a registry, scripts/base-image.sh first)"
    return ""


def _compose() -> list[str]:
    if _run("docker", "compose", "version").returncode == 0:
        return ["docker", "compose"]
    return ["docker-compose"] if shutil.which("docker-compose") else []


@dataclass(frozen=True, slots=True)
class Containers:
    """One compose project."""

    project: str
    port: int
    nodes: int = 3
    profiles: tuple[str, ...] = ()
    more: Mapping[str, object] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        return {
            "COMPOSE_PROJECT_NAME": self.project,
            "KV_HOST_PORT": str(self.port),
            "KV_IMAGE": IMAGE,
            "KV_CLUSTER_NODES": str(self.nodes),
            **{name: str(value) for name, value in self.more.items()},
        }

    @property
    def names(self) -> list[str]:
        return [f"kv{number}" for number in range(1, self.nodes + 1)]

    def compose(self, *arguments: str, check: bool = True) -> str:
        profiles = [part for name in self.profiles for part in ("--profile", name)]
        done = _run(*_compose(), *profiles, *arguments, env=self.environment)
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def docker(self, *arguments: str) -> str:
        done = _run("docker", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def kv(self, node: str, *arguments: str) -> tuple[int, str]:
        """`kv` inside a node's container, asking that node alone at first."""
        done = _run("docker", "exec", "-e", "KV_URL=kv://127.0.0.1:7401", self.id_of(node), "kv", *arguments)
        return done.returncode, (done.stdout + done.stderr).strip()

    def id_of(self, node: str) -> str:
        found = self.docker(
            "ps", "-aq", "--filter", f"label=com.docker.compose.project={self.project}",
            "--filter", f"label=com.docker.compose.service={node}",
        )  # fmt: skip
        assert found, f"{node} has no container"
        return found

    def inspect(self, node: str, what: str) -> str:
        return self.docker("inspect", "--format", what, self.id_of(node))

    def health(self, node: str) -> str:
        return self.inspect(node, "{{.State.Health.Status}}")

    def address(self, node: str) -> str:
        return self.inspect(node, "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}")

    def identity(self, node: str) -> dict[str, object]:
        told: dict[str, object] = json.loads(
            self.docker("exec", self.id_of(node), "cat", "/data/identity.json")
        )
        return told

    def until_whole(self) -> None:
        """Every node ready, and every link up."""

        def whole() -> bool:
            status, said = self.kv(self.names[0], "status", "-o", "json")
            return status == 0 and json.loads(said)["healthy"]

        until(whole)

    def erase(self) -> None:
        _run(*_compose(), "--profile", "five", "--profile", "apps", "down", "--volumes", "--timeout", "5",
             env=self.environment)  # fmt: skip


def until(true: Callable[[], bool]) -> None:
    give_up = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < give_up, "it never came to that"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def engine() -> None:
    """Say why not, when not. Asked late: collecting tests must not talk to an engine."""
    missing = _missing()
    if missing:
        pytest.skip(missing)


@pytest.fixture(scope="module")
def cluster(engine: None) -> Iterator[Containers]:  # noqa: ARG001
    containers = Containers(f"kvtest{os.getpid()}", 21_000 + os.getpid() % 9_000)
    try:
        containers.compose("up", "-d")
        containers.until_whole()
        yield containers
    finally:
        containers.erase()


@pytest.fixture
def whole(cluster: Containers) -> Containers:
    """The cluster, as a test before may not have left it."""
    cluster.compose("up", "-d")
    cluster.until_whole()
    return cluster


pytestmark = [
    pytest.mark.slow,
    pytest.mark.e2e,
    pytest.mark.timeout(300),
    pytest.mark.xdist_group("containers"),
]


def test_what_one_node_wrote_every_node_reads(whole: Containers) -> None:
    assert whole.kv("kv1", "set", "a", "1") == (0, "OK")
    assert [whole.kv(name, "get", "a") for name in whole.names] == [(0, "1")] * 3


def test_client_and_command_line_work_from_outside(whole: Containers) -> None:
    """The names of the table mean nothing out here; the published door does."""
    with kvstore.sync.connect(f"kv://127.0.0.1:{whole.port}") as kv:
        kv.put("outside", b"client")
        entry = kv.get("outside")
        assert entry is not None
        assert entry.value == b"client"


def test_the_container_is_closed(whole: Containers) -> None:
    node = whole.id_of("kv1")
    assert whole.docker("exec", node, "id", "-u") == "10001"
    assert whole.docker("exec", node, "id", "-g") == "0"
    assert _run("docker", "exec", node, "touch", "/opt/kv/x").returncode != 0
    assert _run("docker", "exec", node, "touch", "/data/x").returncode == 0
    assert whole.inspect("kv1", "{{.HostConfig.ReadonlyRootfs}}") == "true"


def test_every_node_has_the_same_configuration(whole: Containers) -> None:
    assert len({whole.inspect(name, "{{json .Config.Env}}") for name in whole.names}) == 1


def test_a_killed_container_loses_nothing_and_is_found_again(whole: Containers) -> None:
    assert whole.kv("kv1", "set", "kept", "yes", "--consistency", "all")[0] == 0
    before = whole.identity("kv2")
    whole.docker("kill", whole.id_of("kv2"))
    assert whole.kv("kv1", "set", "meanwhile", "1") == (0, "OK")
    whole.docker("start", whole.id_of("kv2"))
    whole.until_whole()
    assert whole.identity("kv2") == before
    assert whole.kv("kv2", "get", "kept", "--consistency", "one") == (0, "yes")
    assert whole.kv("kv2", "get", "meanwhile") == (0, "1")


def test_docker_stop_drains_and_ends_with_zero(whole: Containers) -> None:
    begun = time.monotonic()
    whole.docker("stop", whole.id_of("kv3"))
    assert time.monotonic() - begun < 10
    assert whole.inspect("kv3", "{{.State.ExitCode}}") == "0"
    log = _run("docker", "logs", "--tail", "3", whole.id_of("kv3"))
    assert '"event": "draining"' in log.stdout + log.stderr
    assert '"event": "stopped"' in log.stdout + log.stderr


def test_a_container_that_comes_back_elsewhere_keeps_its_identity(whole: Containers) -> None:
    before, address = whole.identity("kv2"), whole.address("kv2")
    whole.docker("stop", whole.id_of("kv2"))
    # It takes the lowest free address, which is that of kv2.
    squatter = whole.docker(
        "run", "-d", "--rm", "--network", f"{whole.project}_cluster", "--tmpfs", "/data", "--entrypoint",
        "sleep", IMAGE, "300",
    )  # fmt: skip
    try:
        whole.docker("start", whole.id_of("kv2"))
        whole.until_whole()
        assert whole.address("kv2") != address
        assert whole.identity("kv2") == before
        assert whole.kv("kv1", "set", "everywhere", "1", "--consistency", "all")[0] == 0
    finally:
        whole.docker("rm", "-f", squatter)


def test_a_container_cut_off_refuses_quorum_and_catches_up(whole: Containers) -> None:
    network, node = f"{whole.project}_cluster", whole.id_of("kv3")
    whole.docker("network", "disconnect", network, node)
    try:
        until(lambda: whole.kv("kv1", "set", "cut", "1")[0] == 0)
        status, said = whole.kv("kv3", "--timeout", "2s", "get", "cut")
        assert status in (4, 5), said
    finally:
        whole.docker("network", "connect", "--alias", "kv", "--alias", "kv3", network, node)
    whole.until_whole()
    assert whole.kv("kv3", "get", "cut") == (0, "1")


def test_five_nodes_by_profile_and_one_that_lost_its_volume(
    engine: None,  # noqa: ARG001
    free_port: Callable[[], int],
) -> None:
    """The one without its data does not pretend to be the old node: it says whose place that is, and ends."""
    five = Containers(f"kvtest{os.getpid()}five", free_port(), nodes=5, profiles=("five",))
    try:
        five.compose("up", "-d")
        five.until_whole()
        assert five.kv("kv5", "set", "a", "5") == (0, "OK")
        assert five.kv("kv2", "get", "a") == (0, "5")
        five.compose("rm", "--stop", "--force", "kv5")
        five.docker("volume", "rm", f"{five.project}_kv5")
        five.compose("up", "-d", "kv5")
        until(lambda: "KV-C04" in five.compose("logs", "kv5"))
        assert "this node is kv5, node 5" in five.compose("logs", "kv5")
        assert five.kv("kv1", "get", "a") == (0, "5")
        assert "4 of 5 nodes are ready" in five.kv("kv1", "status", "-o", "json")[1]
    finally:
        five.erase()


def test_a_node_reports_what_it_waits_for_and_stops_with_zero(engine: None) -> None:  # noqa: ARG001
    """A node alone is alive and not ready; SIGTERM reaches it as process 1."""
    name = f"kvtest{os.getpid()}alone"
    started = _run(
        "docker", "run", "-d", "--name", name, "--read-only", "--hostname", "kv1",
        "-e", "KV_SEEDS=kv1,kv2,kv3", "-e", "KV_INSECURE=true", IMAGE,
    )  # fmt: skip
    try:
        assert started.returncode == 0, started.stderr
        until(lambda: _run("docker", "exec", name, "kv-probe", "alive").returncode == 0)
        ready = _run("docker", "exec", name, "kv-probe", "ready")
        assert (ready.returncode, ready.stdout[:27]) == (1, "kv1: forming, waits for 2 m")
        _run("docker", "stop", name)
        ended = _run("docker", "inspect", "--format", "{{.State.ExitCode}}", name)
        assert ended.stdout.strip() == "0"
    finally:
        _run("docker", "rm", "-f", "-v", name)


def test_both_applications_start_when_the_nodes_are_ready(
    engine: None,  # noqa: ARG001
    free_port: Callable[[], int],
) -> None:
    ports = {name: free_port() for name in ("KV_SHORTENER_PORT", "KV_RATELIMIT_PORT")}
    project = Containers(f"kvtest{os.getpid()}apps", free_port(), profiles=("apps",), more=ports)
    try:
        project.compose("up", "-d")
        until(lambda: project.health("shortener") == project.health("ratelimit") == "healthy")
        shortener, ratelimit = (f"http://127.0.0.1:{port}" for port in ports.values())
        assert httpx.get(f"{shortener}/readyz").json() == {"ready": True}
        checks = [
            httpx.post(f"{ratelimit}/v1/check", json={"rule": "api", "key": "me", "cost": 20}).status_code
            for _ in range(2)
        ]
        assert checks == [200, 429]
        for name in ("shortener", "ratelimit"):
            project.docker("stop", project.id_of(name))
            assert project.inspect(name, "{{.State.ExitCode}}") == "0"
    finally:
        project.erase()
