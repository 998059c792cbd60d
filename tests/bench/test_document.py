"""The documents that commands print."""

from __future__ import annotations

import json

import pytest

from kvstore.bench.document import print_json


def test_a_figure_that_there_is_none_of_is_null(capsys: pytest.CaptureFixture[str]) -> None:
    nan, infinity = float("nan"), float("inf")
    meta = {"waits": [{"bound": infinity}], "sizes": (1, 2.5)}
    print_json(meta, [{"ops_per_s_ci95": nan, "lock": "kvstore"}])

    def refuse(constant: str) -> float:
        raise AssertionError(f"{constant} is no JSON")

    assert json.loads(capsys.readouterr().out, parse_constant=refuse) == {
        "meta": {"waits": [{"bound": None}], "sizes": [1, 2.5]},
        "rows": [{"ops_per_s_ci95": None, "lock": "kvstore"}],
    }
