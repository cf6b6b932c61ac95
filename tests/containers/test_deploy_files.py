"""Dockerfile, compose.yaml and manifests: their linters agree, and they say what the documents promise."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "configs" / "kubernetes"
# Kustomize's own file has no schema in the cluster.
RESOURCES = sorted(path for path in MANIFESTS.glob("*.yaml") if path.name != "kustomization.yaml")


def tool(name: str) -> str:
    """A linter beside this Python, or on the path."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed: pip install --group check")
    return found


def said_by(*command: str) -> tuple[int, str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def documents(path: Path) -> list[dict[str, Any]]:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed: pip install --group test")
    return [each for each in yaml.safe_load_all(path.read_text(encoding="utf-8")) if each]


def resource(kind: str, name: str) -> dict[str, Any]:
    (found,) = (
        each
        for path in RESOURCES
        for each in documents(path)
        if (each["kind"], each["metadata"]["name"]) == (kind, name)
    )
    return found


# --- the linters, and that they see anything ---------------------------------------------


@pytest.mark.slow
def test_the_dockerfile_is_clean() -> None:
    assert said_by(tool("hadolint"), str(ROOT / "Dockerfile")) == (0, "")


@pytest.mark.slow
def test_a_bad_dockerfile_is_not(tmp_path: Path) -> None:
    bad = tmp_path / "Dockerfile"
    bad.write_text('FROM debian:12\nCMD kv "server"\n')
    status, said = said_by(tool("hadolint"), str(bad))
    assert status == 1
    assert "DL3025" in said


@pytest.mark.slow
def test_every_manifest_is_valid_strictly() -> None:
    status, said = said_by(tool("kubernetes-validate"), "--strict", *map(str, RESOURCES))
    assert status == 0, said
    assert said.count(" passed for resource ") == 5


@pytest.mark.slow
def test_a_bad_manifest_is_not(tmp_path: Path) -> None:
    bad = tmp_path / "service.yaml"
    bad.write_text((MANIFESTS / "service.yaml").read_text().replace("port: 7501", 'port: "peers"'))
    status, said = said_by(tool("kubernetes-validate"), "--strict", str(bad))
    assert status == 1, said


def test_kustomize_takes_every_manifest() -> None:
    (kustomization,) = documents(MANIFESTS / "kustomization.yaml")
    assert sorted(kustomization["resources"]) == [path.name for path in RESOURCES]


# --- what they promise --------------------------------------------------------------------


def test_nodes_start_together_and_find_each_other_before_they_are_ready() -> None:
    assert resource("StatefulSet", "kv")["spec"]["podManagementPolicy"] == "Parallel"
    peers = resource("Service", "kv-nodes")["spec"]
    assert (peers["clusterIP"], peers["publishNotReadyAddresses"]) == ("None", True)
    assert resource("StatefulSet", "kv")["spec"]["serviceName"] == "kv-nodes"
    assert "publishNotReadyAddresses" not in resource("Service", "kv")["spec"]


def test_one_node_at_a_time_may_be_taken_away() -> None:
    assert resource("PodDisruptionBudget", "kv")["spec"]["maxUnavailable"] == 1


def pod() -> tuple[dict[str, Any], dict[str, Any]]:
    spec: dict[str, Any] = resource("StatefulSet", "kv")["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    return spec, container


def test_the_three_probes_ask_different_things() -> None:
    _, container = pod()
    asked = {
        name: container[f"{name}Probe"]["exec"]["command"] for name in ("startup", "readiness", "liveness")
    }
    assert asked == {
        "startup": ["kv-probe", "alive"],
        "readiness": ["kv-probe", "ready"],
        "liveness": ["kv-probe", "alive"],
    }
    patience = {
        name: container[f"{name}Probe"]["periodSeconds"] * container[f"{name}Probe"]["failureThreshold"]
        for name in asked
    }
    # Out of the service soon, killed late, and time enough to replay a log before either counts.
    assert patience["readiness"] <= 15
    assert 60 <= patience["liveness"] < patience["startup"]


def test_a_pod_has_time_to_drain() -> None:
    spec, container = pod()
    asleep = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    drain_s = 5
    assert asleep + drain_s + 20 <= spec["terminationGracePeriodSeconds"]


def test_the_container_is_closed() -> None:
    spec, container = pod()
    assert spec["securityContext"]["runAsNonRoot"]
    assert (spec["securityContext"]["runAsUser"], spec["securityContext"]["runAsGroup"]) == (10001, 0)
    closed = container["securityContext"]
    assert closed["readOnlyRootFilesystem"]
    assert not closed["allowPrivilegeEscalation"]
    assert closed["capabilities"] == {"drop": ["ALL"]}
    assert not spec["automountServiceAccountToken"]


def test_only_peers_reach_the_peer_port() -> None:
    policy = resource("NetworkPolicy", "kv")["spec"]
    peers, clients = policy["ingress"]
    assert [each["port"] for each in clients["ports"]] == [7401]
    assert {each["port"] for each in peers["ports"]} == {7401, 7501}
    assert sorted(policy["policyTypes"]) == ["Egress", "Ingress"]


def test_compose_gives_every_node_the_same_configuration_and_waits_for_health() -> None:
    (compose,) = documents(ROOT / "compose.yaml")
    services = compose["services"]
    nodes = [services[f"kv{number}"] for number in range(1, 6)]
    assert all(node["environment"] == nodes[0]["environment"] for node in nodes)
    assert [node.get("profiles") for node in nodes] == [None] * 3 + [["five"]] * 2
    for name in ("shortener", "ratelimit", "cli"):
        assert set(services[name]["depends_on"]) == {"kv1", "kv2", "kv3"}
        assert {each["condition"] for each in services[name]["depends_on"].values()} == {"service_healthy"}
    for service in services.values():
        assert service["read_only"]
