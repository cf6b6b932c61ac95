"""`kv app shortener`: short links over the store."""

from __future__ import annotations

import asyncio
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kvstore_cli.apps_store import store_of
from kvstore_cli.commands import KvCommand, pass_session
from kvstore_cli.problems import FileProblem, UsageProblem
from kvstore_cli.session import Session

if TYPE_CHECKING:
    import socket

    from kvstore_cli.settings import Settings


_FLAGS = frozenset(("base_url", "allow_private", "blocked", "web", "trust_proxy"))
"""Options of the service that are options of the command already."""


@click.command(cls=KvCommand)
@click.option("--host", default="127.0.0.1", metavar="HOST", help="Where to listen: 127.0.0.1.")
@click.option("--port", default=8080, type=click.IntRange(0, 65535), metavar="PORT", help="8080; 0: any.")
@click.option("--base-url", metavar="URL", help="What short links begin with, as people outside see it.")
@click.option("--keys", metavar="FILE", help="API keys, a line each: OWNER:KEY.")
@click.option("--block", metavar="FILE", help="Hosts that may not be linked to, a line each.")
@click.option("--dir", "directory", metavar="DIR", help="Where a cluster started here keeps its data.")
@click.option("--allow-private", is_flag=True, help="Links may lead to private and local hosts.")
@click.option("--no-web", is_flag=True, help="Only the API and the links, no page for everybody.")
@click.option("--behind-proxy", is_flag=True, help="X-Forwarded-For says who the client is.")
@click.option("--quiet", is_flag=True, help="No access log on standard error.")
@click.option("--set", "-s", "more", multiple=True, metavar="NAME=VALUE",
              help="Any other option of the service, as docs/shortener.md lists them.")  # fmt: skip
@pass_session
def shortener_command(
    session: Session,
    /,
    *,
    host: str,
    port: int,
    base_url: str | None,
    keys: str | None,
    block: str | None,
    directory: str | None,
    allow_private: bool,
    no_web: bool,
    behind_proxy: bool,
    quiet: bool,
    more: tuple[str, ...],
) -> int:
    r"""Serve short links: an API, a page, redirects.

    It runs until Ctrl-C or SIGTERM. Without --url (or KV_URL) it starts a cluster of three nodes in this
    process, and prints an API key if there is no file of them.

    \b
      kv app shortener
      kv app shortener --url kv://10.0.0.1:7401 --keys keys.txt --base-url https://sho.rt --port 8080
    """
    owners = _owners(keys) if keys is not None else {}
    blocked = _lines(block) if block is not None else []
    try:
        from kvstore.apps import serving
        from kvstore.apps.shortener import access, options
        from kvstore.apps.shortener.serving import log_line
    except ModuleNotFoundError as missing:
        raise UsageProblem(
            problem=f"{missing.name} is not installed", hint="pip install 'kvring[apps]'"
        ) from None
    settings = session.settings
    if settings.named is not None and directory is not None:
        raise UsageProblem(problem="--dir is for a cluster started here", hint="leave out --dir or --url")
    listener = serving.listening(host, port)
    bound: str = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
    chosen = options.ShortenerOptions(
        base_url=base_url or bound,
        allow_private=allow_private,
        blocked=frozenset(blocked),
        web=not no_web,
        trust_proxy=behind_proxy,
        **_settings(more, options.ShortenerOptions),
    )
    if keys is None and settings.named is None:
        key = access.new_key()
        owners = {key: "dev"}
        click.echo(f"API key of owner dev, for this run: {key}", err=True)
    log = None if quiet else log_line
    with asyncio.Runner(loop_factory=serving.new_event_loop) as runner:
        runner.run(_run(settings, directory, chosen, owners, listener, bound, log=log))
    return 0


async def _run(
    settings: Settings,
    directory: str | None,
    chosen: Any,
    owners: dict[str, str],
    listener: socket.socket,
    bound: str,
    *,
    log: Any,
) -> None:
    from kvstore.apps.shortener.app import create_app
    from kvstore.apps.shortener.serving import serve

    async with await store_of(settings, directory=directory) as kv:
        app = create_app(kv, chosen, keys=owners, log=log)
        click.echo(f"short links at {chosen.base_url}, listening on {bound}", err=True)
        await serve(app, listener)


def _settings(given: tuple[str, ...], kind: Any) -> dict[str, Any]:
    """Options by name, each of the type that its default has."""
    usual = {field.name: field.default for field in fields(kind)}
    found: dict[str, Any] = {}
    for each in given:
        name, equals, text = each.partition("=")
        default = usual.get(name)
        if not equals or name in _FLAGS or default is None:
            known = ", ".join(sorted(usual.keys() - _FLAGS))
            raise UsageProblem(problem=f"--set {each}: no such option", hint=f"NAME=VALUE, of {known}")
        found[name] = _value(each, text, default)
    return found


def _value(given: str, text: str, default: Any) -> Any:
    match default:
        case bool():
            if text not in ("true", "false"):
                raise UsageProblem(problem=f"--set {given}: neither true nor false", hint="true or false")
            return text == "true"
        case frozenset():
            return frozenset(part for part in text.split(",") if part)
        case str():
            return text
        case _:
            try:
                return type(default)(text)
            except ValueError:
                raise UsageProblem(problem=f"--set {given}: no number", hint=f"such as {default:g}") from None


def _owners(path: str) -> dict[str, str]:
    """Owners by key."""
    owners: dict[str, str] = {}
    for line in _lines(path):
        owner, colon, key = (part.strip() for part in line.partition(":"))
        if not (owner and colon and key):
            raise FileProblem(path=path, reason="a line is not OWNER:KEY")
        owners[key] = owner
    return owners


def _lines(path: str) -> list[str]:
    """The lines of a file that say something."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise FileProblem(path=path, reason="it is not UTF-8") from None
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
