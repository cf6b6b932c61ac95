"""The commented reference file, the masked display, and what node and store are handed."""

from __future__ import annotations

import tomllib
from dataclasses import fields
from pathlib import Path

from kvstore.config import OPTIONS, NodeConfig, examine, load, reference, shown
from kvstore.config.sources import CLIENT_ENVIRONMENT
from kvstore.node.options import NodeOptions
from kvstore.storage.options import StoreOptions

REFERENCE = Path(__file__).parents[2] / "configs" / "node.toml"


def test_the_reference_file_is_the_one_the_code_writes() -> None:
    """Mend with: kv config init --force configs/node.toml."""
    assert REFERENCE.read_text(encoding="utf-8") == reference()


def test_the_reference_file_has_every_option_at_its_default_and_no_other() -> None:
    tables = tomllib.loads(REFERENCE.read_text(encoding="utf-8"))
    assert [name for table in tables.values() for name in table] == list(OPTIONS)
    examined = examine(REFERENCE)
    assert not examined.mistakes
    assert examined.config == NodeConfig()


def test_every_option_is_explained_in_the_reference() -> None:
    lines = REFERENCE.read_text(encoding="utf-8").splitlines()
    for name in OPTIONS:
        (at,) = (i for i, line in enumerate(lines) if line.startswith(f"{name} = "))
        assert lines[at - 1].startswith("# "), name


def test_secrets_are_masked_when_shown() -> None:
    examined = examine(None, {"KV_CLIENT_TOKEN": "s3cret"})
    rows = {name: (value, origin) for _, name, value, origin in shown(examined)}
    assert rows["client_token"] == ('"********"', "KV_CLIENT_TOKEN")
    assert rows["peer_token"] == ('""', "default")
    assert "s3cret" not in str(rows)


def test_no_option_shares_its_variable_with_the_client_command() -> None:
    ours = {option.environment for option in OPTIONS.values()}
    ours |= {f"{option.environment}_FILE" for option in OPTIONS.values() if option.rule.secret}
    assert not ours & CLIENT_ENVIRONMENT


def test_node_and_store_get_the_same_defaults_as_they_have_themselves() -> None:
    """Two places that state one default drift apart; this is where it shows."""
    assert load().node_options() == NodeOptions()
    assert load().store_options() == StoreOptions()


def test_every_option_of_node_and_store_can_be_configured() -> None:
    assert {each.name for each in (*fields(NodeOptions), *fields(StoreOptions))} <= OPTIONS.keys()


def test_node_and_store_are_handed_what_was_configured() -> None:
    config = load(flags={"client_port": 9001, "sync": "os", "timeout_ms": "9s"})
    assert config.node_options().client_port == 9001
    assert config.node_options().timeout_ms == 9_000
    assert config.store_options().sync == "os"
