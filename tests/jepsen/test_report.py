"""The report: one page that needs nothing else, tells the reason, and believes nobody."""

from __future__ import annotations

import base64
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from jepsen_lite import drawing, history, nemesis, report
from jepsen_lite.history import Operation
from jepsen_lite.judging import Judgement, Span
from jepsen_lite.nemesis import Fault, Plan
from jepsen_lite.runner import Options, Outcome, save
from jepsen_lite.verdict import Verdict, Word, illegal

OPTIONS = Options(workload="register", nemesis="halves", seconds=10, seed=42, nodes=3)
FAULT = Fault(2.0, 3.0, "halves", "cut", pairs=((1, 2), (2, 1)))
EVIL = "</pre><script>alert(1)</script>"


def _operations(count: int = 40) -> list[Operation]:
    words = ("ok", "ok", "fail", "unknown")
    return [
        Operation(
            number % 4,
            "write",
            f"k{number % 2}",
            number * 0.1,
            number * 0.1 + 0.05,
            words[number % 4],
            value=f"v{number}",
        )
        for number in range(count)
    ]


def _outcome(*verdicts: Verdict, operations: list[Operation] | None = None) -> Outcome:
    judgement = Judgement(list(verdicts) or [Verdict("register", Word.OK)], {"operations": 40})
    return Outcome(
        judgement,
        _operations() if operations is None else operations,
        [Span(2.0, 5.0, FAULT)],
        {"workload": "register", "commit": "abc1234", "faults": []},
        ["links are cut by nftables"],
        {"n1": f"line {EVIL}"},
    )


def _page(outcome: Outcome) -> str:
    return report.render(OPTIONS, _plan(), outcome)


def _plan() -> Plan:
    return nemesis.plan("halves", seed=42, nodes=3, seconds=10)


class _Tags(HTMLParser):
    """Which tags are open, and what refers to elsewhere."""

    VOID = frozenset(("meta", "line", "path", "rect", "br"))

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def _parsed(page: str) -> _Tags:
    tags = _Tags()
    tags.feed(page)
    assert not tags.open
    return tags


def test_the_page_needs_nothing_else_and_runs_nothing() -> None:
    tags = _parsed(_page(_outcome()))
    assert tags.seen.isdisjoint({"script", "link", "img", "iframe"})
    assert tags.links
    assert all(link.startswith("data:application/jsonl;base64,") for link in tags.links)


def test_it_names_seed_commit_and_the_line_that_runs_it_again() -> None:
    page = _page(_outcome())
    for told in ("42", "abc1234", "--workload register --nemesis halves --time 10 --seed 42", "nftables"):
        assert told in page


def test_the_history_in_the_page_is_the_history(tmp_path: Path) -> None:
    outcome = _outcome()
    found = re.search(r"data:application/jsonl;base64,([^\"]+)", _page(outcome))
    assert found is not None
    path = tmp_path / "history.jsonl"
    path.write_bytes(base64.b64decode(found[1]))
    assert history.load(path).operations == outcome.operations


def test_what_clients_nodes_and_logs_say_is_shown_and_never_run() -> None:
    bad = Operation(1, "write", EVIL, 0.0, 1.0, "ok", value=EVIL, node=EVIL)
    page = _page(_outcome(illegal(EVIL, EVIL, (EVIL, [bad]), key=EVIL), operations=[bad]))
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 6
    _parsed(page)


def test_the_verdict_comes_first_with_its_reason_and_its_evidence() -> None:
    operations = _operations()
    verdict = illegal(
        "zones", "each of two values was seen after the other", ("both", operations[4:6]), key="k1"
    )
    page = _page(_outcome(Verdict("substance", Word.OK), verdict))
    assert page.index("word illegal") < page.index("each of two values") < page.index("<h2>Checks")
    assert 'class="ok marked"' in page


def test_the_timeline_is_of_the_failing_key_and_marks_the_evidence() -> None:
    operations = _operations()
    evidence = [op for op in operations if op.key == "k1"][3:5]
    line = drawing.timeline(operations, [Span(0.0, 9.0, FAULT)], illegal("zones", "why", ("both", evidence)))
    assert line.key == "k1"
    assert sum(box.marked for box in line.boxes) == 2
    assert len(line.bands) == 1
    assert all(0 <= box.x < line.width and 0 <= box.y <= line.height for box in line.boxes)


def test_without_a_failure_the_timeline_is_of_the_busiest_key() -> None:
    operations = [
        *_operations(),
        replace(_operations()[0], key="busy"),
        *[Operation(9, "read", "busy", 5.0)] * 30,
    ]
    assert drawing.timeline(operations, [], None).key == "busy"


def test_a_long_history_is_cut_around_its_evidence() -> None:
    operations = [Operation(n % 5, "read", "k", n * 0.01, n * 0.01 + 0.5, "ok") for n in range(5_000)]
    verdict = illegal("zones", "why", ("both", [operations[0], operations[4_000]]), key="k")
    line = drawing.timeline(operations, [], verdict)
    assert len(line.boxes) <= drawing.TIMELINE_OPS_MAX
    assert sum(box.marked for box in line.boxes) == 2


@pytest.mark.parametrize("operations", [[], [Operation(0, "read", "k", 1.0)]])
def test_a_run_with_nothing_in_it_still_has_a_page(operations: list[Operation]) -> None:
    _parsed(_page(_outcome(Verdict("substance", Word.UNKNOWN, "nothing was asked"), operations=operations)))


def test_plots_shade_the_nemesis_and_have_a_path_for_each_outcome() -> None:
    operations = _operations()
    for plot in (
        drawing.latencies(operations, [Span(2.0, 5.0, FAULT)]),
        drawing.rates(operations, [Span(2.0, 5.0, FAULT)]),
    ):
        assert [path[0] for path in plot.paths.values()] == ["M", "M", "M"]
        (band,) = plot.bands
        assert band.start > drawing.PLOT_LEFT
        assert band.start + band.size <= drawing.PLOT_WIDTH
    rates = drawing.rates(operations, [])
    assert rates.y_ticks[0].label == "0/s"


def test_without_jinja_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(report.NoTemplatingError, match="pip install"):
        _page(_outcome())


def test_a_run_leaves_plan_history_results_and_page(tmp_path: Path) -> None:
    outcome = _outcome()
    save(tmp_path / "run", OPTIONS, _plan(), outcome)
    page = report.write(tmp_path / "run", OPTIONS, _plan(), outcome)
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"plan.json", "history.jsonl", "results.json", page.name}
