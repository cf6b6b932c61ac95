"""Where values come from, which one wins, and what a mistake is told as."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvstore import errors
from kvstore.config import OPTIONS, NodeConfig, examine, load


def mistakes(text: str, folder: Path, **environment: str) -> list[str]:
    """What is wrong with a file of this text, each as `line: problem -> hint`."""
    path = folder / "node.toml"
    path.write_text(text, encoding="utf-8")
    return [
        f"{m.fields['where']}: {m.fields['problem']} -> {m.fields['hint']}".replace(
            f"{path}:", "line "
        ).replace(f"{path}", "file")
        for m in examine(path, environment).mistakes
    ]


def test_without_any_source_a_node_is_durable_on_loopback() -> None:
    config = load()
    assert config == NodeConfig()
    assert (config.listen.listen_host, config.listen.client_port, config.listen.peer_port) == (
        "127.0.0.1",
        7401,
        7501,
    )
    assert (config.storage.engine, config.storage.sync, config.node.data_dir) == (
        "lmdb",
        "always",
        "./kv-data",
    )


def test_a_flag_beats_the_environment_and_the_environment_beats_the_file(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text('[listen]\nclient_port = 1001\npeer_port = 1002\n[node]\nname = "from-file"\n')
    examined = examine(path, {"KV_CLIENT_PORT": "2001", "KV_PEER_PORT": "2002"}, {"client_port": 3001})
    assert examined.config is not None
    assert examined.config.listen.client_port == 3001
    assert examined.config.listen.peer_port == 2002
    assert examined.config.node.name == "from-file"
    origins = {name: str(examined.origins[name]) for name in ("client_port", "peer_port", "name", "sync")}
    assert origins == {
        "client_port": "--client-port",
        "peer_port": "KV_PEER_PORT",
        "name": f"{path}:5",
        "sync": "default",
    }


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_can_be_given_in_all_three_ways_under_one_name(name: str, tmp_path: Path) -> None:
    option = OPTIONS[name]
    # A value that fits and is not the default, so that a source that is not read is seen.
    other = {
        "name": "n9", "data_dir": "/d", "cluster_id": "0" * 32, "listen_host": "127.0.0.2",
        "advertise_host": "db", "partitions": 512, "zone": "z", "engine": "memory", "sync": "interval:10",
        "disk_reserve_ratio": 0.5, "read_repair_chance": 0.5, "client_token": "t", "peer_token": "p",
        "insecure": True, "unsafe_registers": True, "log_format": "json", "log_level": "debug",
        "value_bytes_max": 1000,
        "seeds": "kv1,kv2:7402,[::1]",
    }  # fmt: skip
    value = other.get(name, int(option.default) + 1 if isinstance(option.default, int) else None)
    assert value is not None
    path = tmp_path / "node.toml"
    written = str(value).lower() if isinstance(value, bool) else repr(value).replace("'", '"')
    path.write_text(f"[{option.section}]\n{name} = {written}\n")
    text = str(value)
    for examined in (
        examine(path),
        examine(None, {option.environment: text}),
        examine(None, {}, {name: text}),
    ):
        assert not examined.mistakes
        assert examined.config is not None
        assert examined.config.flat()[name] == value


@pytest.mark.parametrize(
    ("text", "where", "problem", "hint"),
    [
        ("[listen]\nclient_prt = 1\n", "line 2", "there is no listen.client_prt", "client_port"),
        ("\n[lisen]\nclient_port = 1\n", "line 2", "there is no lisen", "listen"),
        ("client_port = 1\n", "line 1", "stands outside its section", "move client_port below [listen]"),
        (
            "[node]\nclient_port = 1\n",
            "line 2",
            "client_port is no option of [node]",
            "move it below [listen]",
        ),
        ("listen = 3\n", "line 1", "listen is a section", "write [listen] on a line of its own"),
        ("[xyzzy]\n", "line 1", "there is no xyzzy", "`kv config init` shows all sections"),
        (
            '[listen]\nclient_port = "7401"\n',
            "line 2",
            "client_port: '7401' is not a whole number",
            "write it without quotes: 7401",
        ),
        ("[listen]\nclient_port = 0\n", "line 2", "client_port: 0 is out of range", "give 1 to 65535"),
        (
            "[listen]\nclient_port = true\n",
            "line 2",
            "client_port: true is not a whole number",
            "give 1 to 65535",
        ),
        (
            "[listen]\nclient_port = 1.5\n",
            "line 2",
            "client_port: 1.5 is not a whole number",
            "give 1 to 65535",
        ),
        ("[node]\nname = 3\n", "line 2", "name: 3 is not text", 'write it in quotes: "3"'),
        ('[storage]\nengine = "lmbd"\n', "line 2", "engine: 'lmbd' is not among lmdb, memory", "lmdb"),
        (
            '[storage]\nsync = "interval:0"\n',
            "line 2",
            "sync: 'interval:0' is not possible",
            "give always, os, or interval:<milliseconds from 1 to 60000>",
        ),
        (
            '[limits]\nvalue_bytes_max = "9MiB"\n',
            "line 2",
            "value_bytes_max: 9MiB is out of range",
            "give 1 to 8MiB",
        ),
        (
            '[limits]\ntimeout_ms = "5 parsecs"\n',
            "line 2",
            "timeout_ms: '5 parsecs' is not milliseconds, or text such as 500ms or 5s",
            "give 1ms to 10m",
        ),
        (
            '[security]\ninsecure = "yes"\n',
            "line 2",
            "insecure: 'yes' is not true or false",
            "give true or false",
        ),
        (
            "[storage]\ndisk_reserve_ratio = nan\n",
            "line 2",
            "disk_reserve_ratio: nan is not possible",
            "give 0.0 to 0.9",
        ),
        (
            '[node]\nname = "a\nzone',
            "line 2",
            "not TOML: Illegal character '\\n' (column 10)",
            "a line is `name = value`, and text stands in quotes",
        ),
        (
            "[cluster]\npartitions = 100\n",
            "line 2",
            "100 is not a power of two",
            "give 256, or 1, 2, 4 ... 16384",
        ),
        (
            "[listen]\npeer_port = 7401\n",
            "line 2",
            "client_port and peer_port are both 7401",
            "give them two ports, such as 7401 and 7501",
        ),
        (
            '[storage]\nmemtable_bytes = "64KiB"\n',
            "line 2",
            "64KiB cannot hold one value of 1MiB (value_bytes_max)",
            "raise memtable_bytes, or lower value_bytes_max",
        ),
    ],
)
def test_a_mistake_in_the_file_names_line_problem_and_remedy(
    text: str, where: str, problem: str, hint: str, tmp_path: Path
) -> None:
    assert mistakes(text, tmp_path) == [f"{where}: {problem} -> {hint}"]


def test_text_over_several_lines_does_not_shift_the_line_of_what_follows(tmp_path: Path) -> None:
    found = mistakes('[node]\nname = """\nclient_port = 1\n"""\n[listen]\nclient_port = 0\n', tmp_path)
    assert [line[:20] for line in found] == ["line 2: name: 'clien", "line 6: client_port:"]


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    found = mistakes("[listen]\nclient_port = 0\n[node]\nnam = 1\n", tmp_path, KV_SYNC="never")
    assert [line.split(":")[0] for line in found] == ["line 2", "line 4", "KV_SYNC"]


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(errors.ConfigInvalid, match="cannot be read: No such file"):
        load(tmp_path / "nowhere.toml")


def test_a_file_that_is_not_text_says_so(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_bytes(b'[node]\nname = "\xff"\n')
    with pytest.raises(errors.ConfigInvalid, match="byte 15 is not UTF-8"):
        load(path)


def test_a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_bytes(b'\xef\xbb\xbf[node]\nname = "a"\n')
    assert load(path).node.name == "a"


def test_an_unknown_variable_is_refused_with_the_nearest_name() -> None:
    (mistake,) = examine(None, {"KV_CLIENT_PRT": "1"}).mistakes
    assert (
        mistake.one_line() == "error[KV-C01]: KV_CLIENT_PRT: there is no such variable. Try: KV_CLIENT_PORT"
    )


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("KV_SERVICE_HOST", "10.0.0.1"),
        ("KV_SERVICE_PORT_CLIENT", "7401"),
        ("KV_PORT", "tcp://10.0.0.1:7401"),
        ("KV_PORT_7401_TCP_ADDR", "10.0.0.1"),
        ("KV_STORE_SERVICE_PORT", "7401"),
        ("KV_URL", "kv://h:1"),
        ("KV_SYNC", ""),
        ("PATH", "/bin"),
    ],
)
def test_variables_of_others_are_passed_by(variable: str, value: str) -> None:
    """Kubernetes puts KV_SERVICE_HOST and friends beside a service called kv; the client has its own."""
    assert load(None, {variable: value}) == NodeConfig()


def test_a_typing_error_that_looks_like_kubernetes_is_still_refused() -> None:
    assert examine(None, {"KV_PEERS_PORT": "7501"}).mistakes


@pytest.mark.parametrize(
    ("text", "value"), [("64MiB", 64 << 20), ("1.5kib", 1536), ("2MB", 2_000_000), ("70000", 70000)]
)
def test_sizes_have_units(text: str, value: int) -> None:
    assert load(None, {"KV_DISK_RESERVE_BYTES_MAX": text}).storage.disk_reserve_bytes_max == value


@pytest.mark.parametrize(("text", "value"), [("250ms", 250), ("1.5s", 1500), ("2m", 120_000), ("900", 900)])
def test_times_have_units(text: str, value: int) -> None:
    assert load(None, {"KV_TIMEOUT_MS": text}).limits.timeout_ms == value


@pytest.mark.parametrize(
    ("text", "value"), [("TRUE", True), ("1", True), ("on", True), ("no", False), ("0", False)]
)
def test_switches_in_the_environment_are_words(text: str, value: bool) -> None:
    assert load(None, {"KV_INSECURE": text}).security.insecure is value


def test_a_share_may_be_given_in_percent() -> None:
    assert load(None, {"KV_READ_REPAIR_CHANCE": "25%"}).limits.read_repair_chance == 0.25


# --- secrets ----------------------------------------------------------------------------


def test_a_secret_comes_from_a_file_in_every_source(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    path = tmp_path / "node.toml"
    # Beside the empty default of the reference file, and relative to the configuration's folder.
    path.write_text('[security]\nclient_token_file = "token"\nclient_token = ""\n')
    for config in (
        load(path),
        load(None, {"KV_CLIENT_TOKEN_FILE": str(token)}),
        load(None, {}, {"client_token_file": str(token)}),
    ):
        assert config.security.client_token == "s3cret"


def test_a_secret_given_twice_in_one_source_is_a_mistake(tmp_path: Path) -> None:
    both = {"KV_CLIENT_TOKEN": "a", "KV_CLIENT_TOKEN_FILE": "/dev/null"}
    assert "KV_CLIENT_TOKEN is set as well" in examine(None, both).mistakes[0].message
    found = mistakes('[security]\nclient_token = "a"\nclient_token_file = "b"\n', tmp_path)
    assert found == ["line 3: client_token is given as well -> keep one of the two"]


def test_a_secret_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    for path, problem in ((tmp_path / "gone", "cannot be read"), (empty, "is empty")):
        with pytest.raises(errors.ConfigInvalid, match=problem):
            load(None, {"KV_PEER_TOKEN_FILE": str(path)})


# --- exposure ---------------------------------------------------------------------------

TOKENS = {"client_token": "a", "peer_token": "b"}


@pytest.mark.parametrize("host", ["192.0.2.1", "db1.example", "2001:db8::1"])
def test_an_address_others_can_reach_needs_both_tokens_or_a_word(host: str) -> None:
    with pytest.raises(errors.ConfigInvalid) as refused:
        load(flags={"listen_host": host})
    line = refused.value.one_line()
    assert "client_token and peer_token" in line
    assert "insecure = true" in line
    assert "KV_CLIENT_TOKEN_FILE" in line
    with pytest.raises(errors.ConfigInvalid, match="without peer_token"):
        load(flags={"listen_host": host, "client_token": "a"})
    assert load(flags={"listen_host": host, **TOKENS}).listen.listen_host == host
    assert load(flags={"listen_host": host, "insecure": True}).security.insecure


@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.2.1", "::1", "localhost"])
def test_loopback_needs_no_token(host: str) -> None:
    assert load(flags={"listen_host": host}).listen.listen_host == host


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])  # noqa: S104
def test_listening_everywhere_needs_an_address_to_tell_others(host: str) -> None:
    with pytest.raises(errors.ConfigInvalid, match="none that others could connect to"):
        load(flags={"listen_host": host, **TOKENS})
    assert load(flags={"listen_host": host, "advertise_host": "db1", **TOKENS}).advertised == "db1"


def test_one_token_for_both_doors_is_refused() -> None:
    with pytest.raises(errors.ConfigInvalid, match="every client could act as a node"):
        load(flags={"client_token": "a", "peer_token": "a"})


def test_a_configuration_built_in_code_is_checked_as_well() -> None:
    sections = load().sections()
    with pytest.raises(errors.ConfigInvalid, match="both 7501"):
        NodeConfig(listen=type(load().listen)(client_port=7501))
    with pytest.raises(errors.ConfigInvalid, match="out of range"):
        NodeConfig(listen=type(load().listen)(client_port=70_000))
    assert list(sections) == ["node", "listen", "cluster", "storage", "limits", "security", "log"]
