"""What people and programs read at the end of a benchmark adds up."""

from __future__ import annotations

import io

from kvstore_cli.bench_load import Tally
from kvstore_cli.bench_report import Live, as_lines, as_plain, flat
from kvstore_cli.bench_run import Outcome, split
from kvstore_cli.bench_worker import Share
from kvstore_cli.bench_workload import GET, PUT

WHOLE = Share(
    connector="x:y",
    addresses=("127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"),
    first=0,
    connections=10,
    depth=2,
    mix="a",
    keys=1_000,
    zipfian=True,
    value_bytes=100,
    options={"c": "one"},
    seed=1,
    share=0,
    shares=1,
    load=False,
    warmup_s=0.0,
    duration_s=2.0,
    rate=300.0,
    count=101,
)


def outcome() -> Outcome:
    tally = Tally()
    for micros in (1_000, 2_000, 3_000):
        tally.latency[GET].record(micros)
    tally.latency[PUT].record(9_000)
    tally.inside = 4
    tally.errors["overloaded"] = 2
    return Outcome(tally, window_s=2.0, load_s=0.1, turns_lost=0)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_processes_share_connections_rate_and_count_without_loss() -> None:
    parts = split(WHOLE, 3)
    assert [part.connections for part in parts] == [4, 3, 3]
    assert [part.first for part in parts] == [0, 4, 7]
    assert sum(part.rate for part in parts) == WHOLE.rate
    assert sum(part.count for part in parts) == WHOLE.count
    assert [(part.share, part.shares) for part in parts] == [(0, 3), (1, 3), (2, 3)]


def test_there_are_never_more_processes_than_connections() -> None:
    assert len(split(WHOLE, 64)) == WHOLE.connections


def test_a_share_survives_the_way_to_its_process() -> None:
    assert Share.from_json(WHOLE.to_json()) == WHOLE


def test_json_and_table_tell_the_same_figures() -> None:
    plain = as_plain(WHOLE, 1, outcome())
    assert plain["per_second"] == 2.0
    assert plain["latency_ms"]["all"]["count"] == 4
    assert plain["latency_ms"]["put"]["max"] == 9.0
    assert plain["errors"] == {"overloaded": 2}
    table = list(as_lines(plain))
    assert [line.split()[0] for line in table if line[:4].strip() in {"all", "get", "put"}] == [
        "all",
        "get",
        "put",
    ]
    assert any("zipfian" in line for line in table)
    assert any("open loop at 300/s" in line for line in table)
    assert "errors  overloaded 2" in table


def test_the_live_line_waits_for_every_process_and_is_silent_without_a_terminal() -> None:
    terminal, pipe = Terminal(), io.StringIO()
    for stream in (terminal, pipe):
        live = Live(stream, processes=2, warmup_s=0.0)
        live(0.5, outcome().tally)
        assert stream.getvalue() == ""
        live(0.5, outcome().tally)
    assert "16/s" in terminal.getvalue()
    assert "4 errors" in terminal.getvalue()
    assert pipe.getvalue() == ""


def test_a_row_of_csv_has_every_figure_under_one_name() -> None:
    plain = as_plain(WHOLE, 1, outcome())
    row = flat(plain)
    assert row["latency_ms_put_p99"] == plain["latency_ms"]["put"]["p99"]
    assert not [name for name, value in row.items() if isinstance(value, dict)]
