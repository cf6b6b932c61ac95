"""`kv up`: a durable cluster on this machine with one command."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import click

from kvstore import errors
from kvstore_cli import health
from kvstore_cli.commands import KvCommand, pass_session
from kvstore_cli.problems import ClusterRuns, NodeDidNotStart, NotConfirmed, UsageProblem
from kvstore_cli.session import Session

if TYPE_CHECKING:
    from kvstore.client.client import Client
    from kvstore.config import NodeConfig
    from kvstore_cli.local_cluster import LocalCluster, Member
    from kvstore_cli.supervisor import Supervisor

READY_S = 60.0
_ASK_S = 1.0
_BASE_PORT = 7401
_NODES = 3


def say(text: str) -> None:
    """A line about the nodes, for whoever watches; results go to standard output."""
    click.echo(text, err=True)


@dataclass(frozen=True, slots=True)
class _Wish:
    """What the flags of `kv up` ask for."""

    directory: Path
    nodes: int | None
    base_port: int | None
    config: str | None


@click.command(cls=KvCommand)
@click.option("--nodes", "-n", type=click.IntRange(1, 64), metavar="N", help="How many; 3 for a new cluster.")
@click.option("--dir", "directory", envvar="KV_DIR", default="./kv-data", metavar="DIR", show_default=True,
              help="Where the data is.")  # fmt: skip
@click.option("--base-port", type=click.IntRange(1, 65_000), metavar="PORT",
              help="First client port; peers use ports 100 above. 7401 for a new cluster.")  # fmt: skip
@click.option(
    "--config", envvar="KV_CONFIG", metavar="FILE", help="Options for all nodes, as `kv server` takes them."
)
@click.option("--fresh", is_flag=True, help="Forget the cluster and its data, and begin anew. Asks first.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@click.option(
    "--detach", "-d", is_flag=True, help="Leave the nodes running and return; `kv down` stops them."
)
@pass_session
def up_command(
    session: Session,
    /,
    *,
    nodes: int | None,
    directory: str,
    base_port: int | None,
    config: str | None,
    fresh: bool,
    yes: bool,
    detach: bool,
) -> None:
    r"""Start a durable cluster here.

    Ctrl-C stops it, the next start finds all data. KV_* variables and --config reach every node. A node
    that dies is started again (not with --detach).

    \b
      kv up
      kv up --nodes 5 --dir /var/tmp/kv5 --base-port 9401 --detach
    """
    from kvstore.io.disk import SystemFiles
    from kvstore_cli.supervisor import Supervisor, our_mark

    wish = _Wish(Path(directory), nodes, base_port, config)
    options = _checked_options(config)
    if fresh:
        _forget(wish.directory, confirmed=yes)
    wish.directory.mkdir(parents=True, exist_ok=True)
    release = SystemFiles().lock(str(wish.directory / "up.lock"))
    if release is None:
        _already_looked_after(wish.directory)
        return
    try:
        cluster = _settle(wish, options)
        running = cluster.running()
        missing = [member for member in cluster.members if member not in running]
        if running:
            say(f"{_names(running)} already run" + ("s" if len(running) == 1 else ""))
        supervisor = Supervisor(cluster, config=config, say=say)
        _start(supervisor, cluster, missing, session, options)
        if detach or not missing:
            _screen(cluster, stays=False)
            return
        mark = wish.directory / "up.json"
        try:
            our_mark().save(mark)
            _screen(cluster, stays=True)
            supervisor.stand_by()
        finally:
            say("stopping the nodes")
            supervisor.stop()
            mark.unlink(missing_ok=True)
            say(f"stopped; the data is in {directory}, `kv up` brings it back")
    finally:
        release()


def _checked_options(config: str | None) -> NodeConfig:
    """What every node will be told; mistakes are told here, once, and not three times in logs."""
    from kvstore_cli.server import examined_or_raise

    return examined_or_raise(config, {})


def _forget(directory: Path, *, confirmed: bool) -> None:
    from kvstore_cli.local_cluster import erase, load_cluster

    if not (directory / "cluster.json").exists():
        return
    cluster = load_cluster(directory)
    if cluster.supervisor() is not None or cluster.running():
        raise ClusterRuns(directory=str(directory), what="--fresh")
    what = f"deleting all data of {len(cluster.members)} nodes in {directory}"
    if not confirmed and not (sys.stdin.isatty() and click.confirm(f"{what}: go on?", err=True)):
        raise NotConfirmed(what=what)
    erase(cluster)


def _already_looked_after(directory: Path) -> None:
    """Another `kv up` holds the lock: say which."""
    from kvstore_cli.processes import load_mark

    mark = load_mark(directory / "up.json")
    by = (
        f"process {mark.pid}"
        if mark is not None and mark.is_alive()
        else "another `kv up` that is starting it"
    )
    say(f"the cluster in {directory} is looked after by {by}; `kv status` shows how it is")


def _settle(wish: _Wish, options: NodeConfig) -> LocalCluster:
    """The cluster of the directory, new or as it was, on the ports asked for."""
    from kvstore_cli.local_cluster import found, load_cluster, moved

    if not (wish.directory / "cluster.json").exists():
        return found(
            wish.directory,
            count=wish.nodes or _NODES,
            base_port=wish.base_port or _BASE_PORT,
            replicas=options.cluster.replicas,
            partitions=options.cluster.partitions,
        )
    cluster = load_cluster(wish.directory)
    count = len(cluster.members)
    if wish.nodes is not None and wish.nodes != count:
        raise UsageProblem(
            problem=f"the cluster in {wish.directory} has {count} nodes, and this version cannot change that",
            hint=f"--nodes {count}, another --dir, or --fresh to begin anew without its data",
        )
    if wish.base_port is not None and wish.base_port != cluster.base_port:
        if cluster.running():
            raise ClusterRuns(directory=str(wish.directory), what="a change of ports")
        return moved(cluster, wish.base_port)
    return cluster


def _start(
    supervisor: Supervisor,
    cluster: LocalCluster,
    missing: Sequence[Member],
    session: Session,
    options: NodeConfig,
) -> None:
    """Start what is missing and wait until all serve; if one cannot, stop those just started."""
    from kvstore_cli.local_cluster import check_ports

    if not missing:
        return
    check_ports(missing)
    settings = session.settings.merged({"url": cluster.url, "token": options.security.client_token or None})
    begun = perf_counter()
    try:
        supervisor.start(missing)
        _wait(supervisor, cluster, session.with_flags(settings_flags(settings)), begun)
    except BaseException:
        supervisor.stop()
        raise


def settings_flags(settings: object) -> dict[str, object]:
    """The flags that matter for a connection."""
    return {name: getattr(settings, name) for name in ("url", "token")}


def _wait(supervisor: Supervisor, cluster: LocalCluster, session: Session, begun: float) -> None:
    """Until every node says ready and has its links; a line tells how far it is."""
    live = sys.stderr.isatty()
    while True:
        supervisor.check_started()
        found = _ask(session)
        ready = [node for node in found if node.is_ready]
        done = len(ready) == len(cluster.members) and not any(node.row()["reason"] for node in ready)
        if live:
            line = "" if done else f"{len(ready)} of {len(cluster.members)} nodes are ready"
            click.echo(f"\r\x1b[K{line}", err=True, nl=False)
        if done:
            return
        if perf_counter() - begun > READY_S:
            late = next((node for node in found if not node.is_ready), None)
            name = late.name if late is not None else cluster.members[0].name
            reason = (late.reason if late is not None else "") or f"not ready within {READY_S:g} s"
            raise NodeDidNotStart(node=name, reason=reason, log=str(cluster.directory / name / "node.log"))
        time.sleep(0.05)


def _ask(session: Session) -> list[health.NodeHealth]:
    async def work(kv: Client) -> list[health.NodeHealth]:
        return await health.examine(kv, await kv.topology(), timeout_s=_ASK_S)

    try:
        return session.with_flags({"call_timeout_ms": int(_ASK_S * 1000)}).call(work)
    except errors.AuthFailed:
        raise
    except errors.KVError:
        return []


def _names(members: Sequence[Member]) -> str:
    return ", ".join(member.name for member in members)


def _screen(cluster: LocalCluster, *, stays: bool) -> None:
    """What is there, and three commands to try."""
    count = len(cluster.members)
    many = "s" if count > 1 else ""
    kv = _kv_command()
    local = Path(cluster.directory).resolve() == Path("kv-data").resolve()
    lines = [
        f"kvstore: {count} node{many} ready, each key on {cluster.copies}, data in {cluster.directory}",
        "",
        f"  {'node':6}{'clients':22}{'peers':22}log",
    ]
    lines += [
        f"  {m.name:6}{m.address:22}{f'{m.host}:{m.peer_port}':22}{cluster.log(m)}" for m in cluster.members
    ]
    lines += ["", "Try (in another terminal):" if stays else "Try:"]
    if not local:
        lines.append(f"  export KV_URL={cluster.url}")
    lines += [
        f"  {kv} set hello world --ttl 1h",
        f"  {kv} get hello",
        f"  {kv} status",
        "",
        f'From Python:  kv = kvstore.sync.connect("kv://{cluster.members[0].address}")',
    ]
    lines += (
        ["Ctrl-C stops all nodes; the data stays."]
        if stays
        else [f"Stop: {kv} down{_dir_flag(cluster, local=local)}"]
    )
    click.echo("\n".join(lines))


def _dir_flag(cluster: LocalCluster, *, local: bool) -> str:
    return "" if local else f" --dir {cluster.directory}"


def _kv_command() -> str:
    """How this very `kv` is called from here: `make up` installs it where no PATH leads."""
    own = Path(sys.argv[0])
    on_path = shutil.which("kv")
    if own.name != "kv" or (on_path is not None and Path(on_path).resolve() == own.resolve()):
        return "kv"
    try:
        return os.path.relpath(own) if own.is_relative_to(Path.cwd()) else str(own)
    except ValueError:
        return str(own)
