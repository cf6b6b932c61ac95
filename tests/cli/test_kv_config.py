"""`kv config`: what a node would be told, where it comes from, what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kvstore.config import OPTIONS, reference

if TYPE_CHECKING:
    from tests.cli.conftest import RunKv


def test_show_names_the_origin_of_each_value_and_masks_secrets(
    kv: RunKv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "n.toml").write_text("[limits]\ntimeout_ms = '9s'\n")
    monkeypatch.setenv("KV_SYNC", "os")
    monkeypatch.setenv("KV_CLIENT_TOKEN", "s3cret")
    result = kv("config", "show", "--config", "n.toml", "--origin", "-o", "json")
    rows = {row["option"]: (row["value"], row["origin"]) for row in json.loads(result.out)}
    assert rows["timeout_ms"] == ('"9s"', "n.toml:2")
    assert rows["sync"] == ('"os"', "KV_SYNC")
    assert rows["client_port"] == ("7401", "default")
    assert rows["client_token"] == ('"********"', "KV_CLIENT_TOKEN")
    assert list(rows) == list(OPTIONS)
    assert "origin" not in json.loads(kv("config", "show", "-o", "json").out)[0]


def test_show_refuses_what_a_node_would_refuse(kv: RunKv, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KV_SYNC", "never")
    monkeypatch.setenv("KV_PEER_PRT", "1")
    result = kv("config", "show")
    assert (result.status, result.out) == (2, b"")
    assert result.err.count("error[KV-C01]") == 2


def test_check_explains_each_mistake_with_line_and_remedy(kv: RunKv, tmp_path: Path) -> None:
    (tmp_path / "n.toml").write_text("[listen]\nclient_prt = 1\npeer_port = 0\n")
    result = kv("config", "check", "n.toml")
    assert result.status == 2
    assert result.err.splitlines() == [
        "error[KV-C01]: n.toml:2: there is no listen.client_prt. Try: client_port",
        "error[KV-C01]: n.toml:3: peer_port: 0 is out of range. Try: give 1 to 65535",
    ]
    rows = json.loads(kv("config", "check", "n.toml", "-o", "json").out)
    assert [row["where"] for row in rows] == ["n.toml:2", "n.toml:3"]


def test_check_leaves_the_environment_out(kv: RunKv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "n.toml").write_text("[node]\nname = 'a'\n")
    monkeypatch.setenv("KV_SYNC", "never")
    assert kv("config", "check", "n.toml").text == "n.toml is fine\n"


def test_init_writes_a_file_that_check_finds_fine_and_replaces_none(kv: RunKv, tmp_path: Path) -> None:
    assert kv("config", "init", "n.toml").text == "wrote n.toml\n"
    assert (tmp_path / "n.toml").read_text() == reference()
    assert kv("config", "check", "n.toml").status == 0
    again = kv("config", "init", "n.toml")
    assert again.status == 2
    assert "--force" in again.err
    assert kv("config", "init", "n.toml", "--force").status == 0
    assert kv("config", "init", "-").text == reference()
    assert kv("config", "init", "nowhere/n.toml").status == 3


def test_server_has_a_flag_for_every_option_and_checks_before_it_starts(kv: RunKv) -> None:
    text = kv("server", "--help").text
    for option in OPTIONS.values():
        assert option.flag in text, option.name
    result = kv("server", "--client-port", "70000", "--sync", "never")
    assert result.status == 2
    assert result.err.count("error[KV-C01]") == 2
    exposed = kv("server", "--listen-host", "192.0.2.1")
    assert exposed.status == 2
    assert "KV_CLIENT_TOKEN_FILE" in exposed.err
    assert "insecure" in exposed.err
