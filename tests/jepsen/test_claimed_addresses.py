"""Two runs on one machine stay apart."""

from __future__ import annotations

import random

from jepsen_lite.targets.processes import claim_net


def test_two_runs_never_share_addresses() -> None:
    first, claim = claim_net(random.Random(3))
    with claim:
        second, other = claim_net(random.Random(3))
        other.close()
    assert first != second
    again, claim = claim_net(random.Random(3))
    claim.close()
    assert again == first
