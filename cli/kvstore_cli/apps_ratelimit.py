"""`kv app ratelimit`: serve rate limits over HTTP, and check their rules."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kvstore_cli.apps_store import store_of
from kvstore_cli.commands import KvCommand, LazyGroup, pass_session
from kvstore_cli.output import Output
from kvstore_cli.problems import FileProblem, UsageProblem
from kvstore_cli.session import Session

if TYPE_CHECKING:
    from kvstore.apps.ratelimit.rules import Rules

_HERE = "kvstore_cli.apps_ratelimit"


@click.group(
    cls=LazyGroup,
    table={"Commands": {"check": f"{_HERE}:check_command"}},
    invoke_without_command=True,
    subcommand_metavar="[COMMAND ...]",
)
@click.option("--rules", metavar="FILE", help="The rules, in TOML or YAML; read anew when they change.")
@click.option("--url", metavar="URL", help="The cluster. Without it: three nodes here, for trying.")
@click.option("--host", default="127.0.0.1", metavar="HOST", help="Where to listen: 127.0.0.1.")
@click.option("--port", default=8080, type=click.IntRange(0, 65535), metavar="PORT", help="8080; 0: any.")
@click.option(
    "--grpc-port", type=click.IntRange(0, 65535), metavar="PORT", help="Serve Envoy's protocol there."
)
@pass_session
@click.pass_context
def ratelimit_group(
    ctx: click.Context,
    session: Session,
    /,
    *,
    rules: str | None,
    url: str | None,
    host: str,
    port: int,
    grpc_port: int | None,
) -> int | None:
    r"""Serve rate limits over HTTP, and to Envoy over gRPC, until Ctrl-C or SIGTERM.

    Without --url (or KV_URL) it starts a cluster of three nodes in this process, whose data goes with it.

    \b
      kv app ratelimit --rules rules.toml
      kv app ratelimit --rules rules.toml --url kv://10.0.0.1:7401 --host 0.0.0.0 --port 80
      kv app ratelimit --rules rules.yaml --grpc-port 8081
      kv app ratelimit check rules.toml
    """
    if ctx.invoked_subcommand is not None:
        return None
    if rules is None:
        raise UsageProblem(problem="--rules is missing", hint="kv app ratelimit --rules FILE")
    _loaded(rules)
    try:
        from kvstore.apps import serving
        from kvstore.apps.ratelimit import serving as ratelimit
    except ModuleNotFoundError as missing:
        raise UsageProblem(
            problem=f"{missing.name} is not installed", hint="pip install 'kvring[apps]'"
        ) from None
    settings = session.settings.merged({"url": url})
    places = ratelimit.Places(host=host, port=port, grpc_port=grpc_port)

    async def work() -> None:
        async with await store_of(settings) as kv:
            await ratelimit.serve(kv, Path(rules), places, log=ratelimit.json_log())

    with asyncio.Runner(loop_factory=serving.new_event_loop) as runner:
        runner.run(work())
    return 0


@click.command(cls=KvCommand)
@click.argument("file")
@pass_session
def check_command(session: Session, /, *, file: str) -> int:
    r"""Check a file of rules, and say what each limit promises.

    `beyond` is the most that local mode lets through above the limit while the store can be asked.

    \b
      kv app ratelimit check rules.toml
    """
    rows = [
        {
            "rule": rule.name,
            "key": key,
            "algorithm": limit.algorithm.value,
            "limit": limit.amount,
            "per_ms": limit.period_us // 1000,
            "burst": limit.capacity,
            "mode": rule.mode.value,
            "beyond": rule.over_admission_max(limit),
            "on_failure": rule.on_failure.value,
        }
        for rule in _loaded(file).values()
        for key, limits in (("*", rule.limits), *rule.overrides.items())
        for limit in limits
    ]
    Output(session.settings).rows(list(rows[0]), rows)
    return 0


def _loaded(file: str) -> Rules:
    from kvstore.apps.ratelimit.rules import load

    try:
        return load(file)
    except UnicodeDecodeError:
        raise FileProblem(path=file, reason="it is not UTF-8") from None
    except OSError as error:
        raise FileProblem(path=file, reason=error.strerror or str(error)) from None
