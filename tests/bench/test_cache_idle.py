"""`kvstore-bench cache --workload idle`."""

from __future__ import annotations

import json

from click.testing import CliRunner

from kvstore.bench.cache import cache


def test_an_idle_client_with_copies_does_nothing_but_its_heartbeat() -> None:
    result = CliRunner().invoke(
        cache, ["--workload", "idle", "--fabric", "tcp", "--seconds", "0.3", "--json"]
    )
    assert result.exit_code == 0, result.output
    without, coherent = json.loads(result.stdout)["rows"]
    assert (without["policy"], without["copies"]) == ("none", 0)
    assert (coherent["policy"], coherent["copies"]) == ("coherent", 64)
    for row in (without, coherent):
        assert row["verbs"] == row["messages"] == row["ops_per_s"] == 0
        assert row["heartbeat_verbs_per_s"] > 0
