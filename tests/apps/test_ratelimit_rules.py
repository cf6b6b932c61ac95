"""Rules files: what they may say, that every mistake is told, and `kv app ratelimit check`."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import structlog
from structlog.testing import LogCapture

from kvstore import errors
from kvstore.apps.ratelimit import rules
from kvstore.apps.ratelimit.breaker import Breaker
from kvstore.apps.ratelimit.limit import Algorithm, Limit
from kvstore.apps.ratelimit.limiter import Counts, Limiter
from kvstore.apps.ratelimit.machine import certain
from kvstore.apps.ratelimit.metrics import Metrics
from kvstore.apps.ratelimit.reloading import RulesFile
from kvstore.apps.ratelimit.rules import Mode, OnFailure
from kvstore_cli.main import run

GOOD = """
[[rule]]
name = "api"
mode = "local"
on_failure = "open"
batch = 5
lease = "500ms"
instances = 4
limits = [
    { algorithm = "token_bucket", limit = 10, per = "1s", burst = 20 },
    { algorithm = "fixed_window", limit = 1000, per = "1h" },
]
[rule.overrides]
"customer:42" = [{ algorithm = "sliding_log", limit = 100, per = "2m" }]

[[rule]]
name = "jobs"
limits = [{ algorithm = "concurrency", limit = 3, per = "1d" }]
"""


def test_a_file_says_what_it_says() -> None:
    found = rules.parse(GOOD)
    api, jobs = found["api"], found["jobs"]
    assert (api.mode, api.on_failure, api.batch, api.lease_us) == (Mode.LOCAL, OnFailure.OPEN, 5, 500_000)
    assert api.limits_of("anybody")[0] == Limit(
        algorithm=Algorithm.TOKEN_BUCKET, amount=10, period_us=1_000_000, burst=20
    )
    assert [each.amount for each in api.limits_of("customer:42")] == [100]
    assert (jobs.mode, jobs.on_failure, jobs.holds) == (Mode.STRICT, OnFailure.CLOSED, True)
    # Half a second of 10 a second; and what four instances hold.
    assert [api.over_admission_max(limit) for limit in api.limits] == [5, 20]
    assert jobs.over_admission_max(jobs.limits[0]) == 0


AS_YAML = """
rule:
  - name: api
    mode: local
    on_failure: open
    batch: 5
    lease: 500ms
    instances: 4
    limits: &usual
      - {algorithm: token_bucket, limit: 10, per: 1s, burst: 20}
      - {algorithm: fixed_window, limit: 1000, per: 1h}
    overrides:
      "customer:42": [{algorithm: sliding_log, limit: 100, per: 2m}]
  - name: jobs
    limits: [{algorithm: concurrency, limit: 3, per: 1d}]
"""


def test_yaml_says_the_same(tmp_path: Path) -> None:
    assert rules.parse(AS_YAML, yaml=True) == rules.parse(GOOD)
    for name in ("rules.yaml", "rules.YML"):
        (tmp_path / name).write_text(AS_YAML)
        assert rules.load(tmp_path / name) == rules.parse(GOOD)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no [[rule]]"),
        ("- rule", "no [[rule]]"),
        ("rule: [", "expected the node content"),
        ("rule: []\nrule: []", "'rule' stands there twice"),
        ("rule: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("[" * 5000, "recursion"),
        ("{1: 2, rule: [{name: a, limits: [], 3: 4}]}", "unknown: 1 | rule 'a': 3 cannot be this"),
        ("rule: [{name: a, limits: [{algorithm: fixed_window, limit: 1, per: 60}]}]", "per cannot be 60"),
        ("rule: [{name: a, limits: [], overrides: {42: []}}]", "a string"),
    ],
)
def test_a_mistake_in_yaml_is_told(text: str, told: str) -> None:
    with pytest.raises(errors.ConfigInvalid) as caught:
        rules.parse(text, source="rules.yaml", yaml=True)
    assert told in caught.value.message
    assert caught.value.message.startswith("rules.yaml: ")


def test_without_pyyaml_toml_still_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    assert rules.parse(GOOD)
    with pytest.raises(errors.ConfigInvalid, match="PyYAML is not installed"):
        rules.parse(AS_YAML, yaml=True)


LIMIT = 'limits = [{ algorithm = "fixed_window", limit = 5, per = "1s" }]'


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no [[rule]]"),
        ("rule = 5", "no [[rule]]"),
        ("[[rule", "Expected"),
        (f'[[rule]]\nname = "A"\n{LIMIT}', "name cannot be A"),
        (f'[[rule]]\nname = "a"\n{LIMIT}\n[[rule]]\nname = "a"\n{LIMIT}', "two of this name"),
        (f'[[rule]]\nname = "a"\nmood = 1\n{LIMIT}', "mood"),
        (f'[[rule]]\nname = "a"\nmode = "lax"\n{LIMIT}', "strict, local"),
        (f'[[rule]]\nname = "a"\nmode = "local"\nbatch = 6\n{LIMIT}', "batch cannot be 6"),
        (f'[[rule]]\nname = "a"\nlease = 5\n{LIMIT}', "lease cannot be 5"),
        ('[[rule]]\nname = "a"\nlimits = []', "0 limits"),
        ('[[rule]]\nname = "a"\nlimits = [5]', "a list of"),
        (f'[[rule]]\nname = "a"\noverrides = 5\n{LIMIT}', "overrides"),
        (
            '[[rule]]\nname = "a"\nlimits = [{ algorithm = "magic", limit = 1, per = "1s" }]',
            "algorithm cannot be magic",
        ),
        (
            '[[rule]]\nname = "a"\nlimits = [{ algorithm = "fixed_window", limit = true, per = "1s" }]',
            "an integer",
        ),
        (
            f'[[rule]]\nname = "a"\nmode = "local"\n{LIMIT}'.replace("fixed_window", "concurrency"),
            "local with concurrency",
        ),
    ],
)
def test_a_mistake_is_told(text: str, told: str) -> None:
    with pytest.raises(errors.ConfigInvalid) as caught:
        rules.parse(text, source="rules.toml")
    assert told in caught.value.message
    assert caught.value.message.startswith("rules.toml: ")


DEEP, MANY = "[" * 5000, "9" * 5000


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("r.yaml", "rule: !!bool maybe"),
        ("r.yaml", 'rule: !!int ""'),
        ("r.yaml", 'rule: !!float ""'),
        ("r.yaml", "rule: !!timestamp x"),
        ("r.yaml", f"rule: {DEEP}"),
        ("r.yaml", f"rule: {MANY}"),
        ("r.yaml", f"0x{MANY}: 1"),
        ("r.yaml", f"rule: [{{name: 0x{MANY}}}]"),
        ("r.yaml", f"rule: [{{name: a, 0x{MANY}: 1}}]"),
        ("r.yaml", f"rule: [{{name: a, limits: [{{algorithm: token_bucket, limit: 0x{MANY}, per: 1s}}]}}]"),
        ("r.yaml", f"rule: [{{name: a, limits: 0x{MANY}}}]"),
        ("r.toml", f"rule = {DEEP}"),
        ("r.toml", f"rule = {MANY}"),
        ("r.toml", f'[[rule]]\nname = "a"\nbatch = 0x{MANY}\n{LIMIT}'),
        ("r.toml", "\udcff"),
    ],
)
def test_a_file_that_no_parser_takes_is_refused_and_leaves_the_rules_as_they_were(
    tmp_path: Path, name: str, text: str
) -> None:
    file = tmp_path / name
    file.write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(errors.ConfigInvalid) as caught:
        rules.load(file)
    assert caught.value.message.startswith(f"{file}: ")
    before, logged = rules.parse(GOOD), LogCapture()
    limiter = SimpleNamespace(rules=before, counts=Counts(), breaker=Breaker(), moments=certain(lambda: 0))
    log = structlog.wrap_logger(None, processors=[logged])
    assert not RulesFile(file, cast("Limiter", limiter), Metrics(cast("Limiter", limiter)), log=log).reload()
    assert limiter.rules is before
    assert [entry["event"] for entry in logged.entries] == ["rules_refused"]


def test_every_mistake_is_told_at_once() -> None:
    with pytest.raises(errors.ConfigInvalid) as caught:
        rules.parse(f'more = 1\n[[rule]]\nname = "a"\n[[rule]]\nname = "B"\n{LIMIT}')
    assert caught.value.message.count(" | ") == 2


def test_check_states_the_bounds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rules.toml"
    file.write_text(GOOD)
    assert run(["app", "ratelimit", "check", str(file), "-o", "csv"]) == 0
    lines = capsys.readouterr().out.split()
    assert lines[0] == "rule,key,algorithm,limit,per_ms,burst,mode,beyond,on_failure"
    assert lines[1] == "api,*,token_bucket,10,1000,20,local,5,open"
    assert lines[4] == "jobs,*,concurrency,3,86400000,3,strict,0,closed"


def test_check_refuses_a_bad_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rules.toml"
    file.write_text("[[rule]]\n")
    assert run(["app", "ratelimit", "check", str(file)]) == 2
    assert "error[KV-C01]" in capsys.readouterr().err
    assert run(["app", "ratelimit", "check", str(tmp_path / "none.toml")]) != 0
    assert run(["app", "ratelimit"]) == 2
    file.write_bytes(b"\xff")
    assert run(["app", "ratelimit", "check", str(file)]) != 0
