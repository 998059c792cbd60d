"""The interface of vLLM's tiers that `kvstore.llm.vllm.offloading` was written for.

vLLM calls it experimental. When a new version adds an abstract method, or changes what one takes,
this fails before any engine starts, and says what to look at.
"""

from __future__ import annotations

import dataclasses
import inspect

import pytest

from tests.engines.conftest import engine_module

offload = engine_module("vllm.v1.kv_offload.base")
tiering = engine_module("vllm.v1.kv_offload.tiering.base")
lookups = engine_module("vllm.v1.kv_offload.tiering.async_lookup")
config = engine_module("vllm.v1.kv_offload.config")

from kvstore.llm.vllm.offloading import KvStoreTier  # noqa: E402
from kvstore.llm.vllm.processors import ProcessorTieringSpec, ProcessorWorker  # noqa: E402

TIER = {
    "drain_jobs": [],
    "get_finished_jobs": [],
    "lookup": ["key", "req_context"],
    "on_new_request": ["req_context"],
    "submit_load": ["job_metadata"],
    "submit_store": ["job_metadata"],
}
#: Not abstract, but overridden.
TIER_OVERRIDDEN = {
    "on_request_finished": ["req_context"],
    "on_schedule_end": ["context"],
    "shutdown": [],
}
WORKER = {
    "get_finished": [],
    "submit_load": ["job_id", "src_spec", "dst_spec"],
    "submit_store": ["job_id", "src_spec", "dst_spec"],
    "wait": ["job_ids"],
}
#: What the base class of look-ups does for a tier.
LOOKUPS = {
    "batch_lookup": ["keys", "req_context"],
    "cleanup": ["req_id"],
    "flush": [],
    "lookup": ["key", "req_context"],
    "mark_miss": ["keys"],
    "shutdown": [],
}


def parameters(owner: type, name: str) -> list[str]:
    return [p for p in inspect.signature(getattr(owner, name)).parameters if p != "self"]


def test_the_abstract_methods() -> None:
    assert set(tiering.SecondaryTierManager.__abstractmethods__) == set(TIER)
    assert set(offload.OffloadingWorker.__abstractmethods__) == set(WORKER)
    assert set(offload.OffloadingSpec.__abstractmethods__) == {"get_manager", "get_worker"}
    assert set(lookups.AsyncLookupManager.__abstractmethods__) == {"batch_lookup"}
    for ours in (KvStoreTier, ProcessorTieringSpec, ProcessorWorker):
        assert not inspect.isabstract(ours)


@pytest.mark.parametrize(("name", "expected"), sorted((TIER | TIER_OVERRIDDEN).items()))
def test_what_a_method_of_the_tier_takes(name: str, expected: list[str]) -> None:
    assert parameters(tiering.SecondaryTierManager, name) == expected
    assert parameters(KvStoreTier, name) == expected


@pytest.mark.parametrize(("name", "expected"), sorted(WORKER.items()))
def test_what_a_method_of_the_worker_takes(name: str, expected: list[str]) -> None:
    assert parameters(offload.OffloadingWorker, name) == expected
    assert parameters(ProcessorWorker, name) == expected


@pytest.mark.parametrize(("name", "expected"), sorted(LOOKUPS.items()))
def test_what_looks_up(name: str, expected: list[str]) -> None:
    assert parameters(lookups.AsyncLookupManager, name) == expected


def test_how_a_tier_is_made() -> None:
    given = ["offloading_spec", "primary_kv_view", "tier_type", "backpressure_detector"]
    assert parameters(tiering.SecondaryTierManager, "__init__") == given
    assert parameters(KvStoreTier, "__init__")[: len(given)] == given


def test_every_override_is_in_the_table() -> None:
    ours = {name for name, value in vars(KvStoreTier).items() if inspect.isfunction(value)}
    assert {name for name in ours if not name.startswith("_")} == set(TIER) | set(TIER_OVERRIDDEN)


def test_what_a_transfer_is() -> None:
    names = {field.name for field in dataclasses.fields(tiering.TransferJob)}
    assert {"job_id", "keys", "chunk_ids", "is_promotion"} <= names
    names = {field.name for field in dataclasses.fields(tiering.JobResult)}
    assert names == {"job_id", "success", "successful_keys", "transfer_time", "transfer_bytes"}


def test_what_decides_the_bytes_of_a_chunk() -> None:
    """A new field may have to be in the namespace."""
    assert {field.name for field in dataclasses.fields(config.OffloadingConfig)} == {
        *("groups", "worker_kv_bytes_per_block", "enable_kv_cache_events", "extra_config"),
        *("engine_id", "model", "cache", "parallel", "replicated_layout", "canonical_layout"),
        "kv_cache_layout",
    }
    assert {field.name for field in dataclasses.fields(config.OffloadingModelConfig)} == {
        *("name", "dtype"),
    }
