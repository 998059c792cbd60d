"""The interface that the vLLM connector was written for.

vLLM calls it experimental. When a new version adds an abstract method, or changes what one takes,
this fails before any engine starts, and says what to look at.
"""

from __future__ import annotations

import dataclasses
import inspect

import pytest

from tests.engines.conftest import engine_module

base = engine_module("vllm.distributed.kv_transfer.kv_connector.v1.base")
vllm = engine_module("vllm")

from kvstore.llm.results import CacheStats  # noqa: E402
from kvstore.llm.vllm.connector import MADE_FOR, KvStoreConnector  # noqa: E402
from kvstore.llm.vllm.metrics import COUNTERS  # noqa: E402

#: Counted by the worker itself.
WORKERS = {"dropped_blocks", "requests_loaded", "load_seconds", "save_seconds"} | {
    f"hand_offs_{what}" for what in ("published", "received", "failed")
}

ABSTRACT = {
    "build_connector_meta": ["scheduler_output"],
    "get_num_new_matched_tokens": ["request", "num_computed_tokens"],
    "save_kv_layer": ["layer_name", "kv_layer", "attn_metadata", "kwargs"],
    "start_load_kv": ["forward_context", "kwargs"],
    "update_state_after_alloc": ["request", "blocks", "num_external_tokens"],
    "wait_for_layer_load": ["layer_name"],
    "wait_for_save": [],
}
#: Not abstract, but overridden.
OVERRIDDEN = {
    "__init__": ["vllm_config", "role", "kv_cache_config"],
    "build_kv_connector_stats": ["data"],
    "build_prom_metrics": [
        "vllm_config",
        "metric_types",
        "labelnames",
        "per_engine_labelvalues",
    ],
    "get_block_ids_with_load_errors": [],
    "get_finished": ["finished_req_ids"],
    "get_kv_connector_stats": [],
    "get_transfer_results": ["finished_req_ids"],
    "on_new_request": ["request"],
    "register_kv_caches": ["kv_caches"],
    "request_finished": ["request", "block_ids"],
    "requires_piecewise_for_cudagraph": ["extra_config"],
    "shutdown": [],
    "update_connector_output": ["connector_output"],
}


def parameters(owner: type, name: str) -> list[str]:
    return [p for p in inspect.signature(getattr(owner, name)).parameters if p != "self"]


def test_the_version() -> None:
    assert vllm.__version__.startswith(MADE_FOR)


def test_the_abstract_methods() -> None:
    assert set(base.KVConnectorBase_V1.__abstractmethods__) == set(ABSTRACT)
    assert set(base.SupportsHMA.__abstractmethods__) == {"request_finished_all_groups"}
    assert not KvStoreConnector.__abstractmethods__


@pytest.mark.parametrize(("name", "expected"), sorted((ABSTRACT | OVERRIDDEN).items()))
def test_what_a_method_takes(name: str, expected: list[str]) -> None:
    assert parameters(base.KVConnectorBase_V1, name) == expected
    assert parameters(KvStoreConnector, name) == expected


def test_every_override_is_in_the_table() -> None:
    ours = {n for n in vars(KvStoreConnector) if not n.startswith("_")} | {"__init__"}
    known = set(ABSTRACT) | set(OVERRIDDEN) | {"request_finished_all_groups"}
    assert ours - known == {"requires_kv_delivery"}
    assert all(
        hasattr(base.KVConnectorBase_V1, name)
        for name in known - base.SupportsHMA.__abstractmethods__
    )


def test_what_a_transfer_reports() -> None:
    results = base.KVConnectorTransferResults()
    assert set(vars(results)) == {"finished_sending", "finished_recving", "failed_recving"}


def test_the_metrics_have_the_hits_of_every_tier() -> None:
    counted = {field.name for field in dataclasses.fields(CacheStats)}
    assert set(COUNTERS) <= counted | WORKERS
    hits = {name for name in counted if name.startswith(("matched_", "loaded_"))}
    assert hits <= set(COUNTERS)
