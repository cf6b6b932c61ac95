"""`kv app`: the applications that come with the store; each needs the extra `apps`."""

from __future__ import annotations

import click

from kvstore_cli.commands import LazyGroup

_APPLICATIONS = {
    "ratelimit": "kvstore_cli.apps_ratelimit:ratelimit_group",
    "shortener": "kvstore_cli.apps_shortener:shortener_command",
}


@click.group(cls=LazyGroup, table={"Applications": _APPLICATIONS}, subcommand_metavar="APPLICATION ...")
def app_group() -> None:
    r"""Applications over the store; they need `pip install kvring[apps]`.

    \b
      kv app ratelimit --rules rules.toml --port 8080
      kv app ratelimit check rules.toml
    """
