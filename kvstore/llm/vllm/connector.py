"""`KvStoreConnector`: vLLM's interface, handed on to the scheduler's and the workers' halves.

vLLM makes one object a process and role. Docstrings that say "see KVConnectorBase_V1" stand where
vLLM's contract is all there is to say.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import vllm
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorTransferResults,
    SupportsHMA,
)

from kvstore.llm.vllm.metadata import StepMetadata
from kvstore.llm.vllm.metrics import Differences, KvStorePromMetrics, KvStoreStats
from kvstore.llm.vllm.scheduler import SchedulerSide
from kvstore.llm.vllm.settings import Geometry, Settings
from kvstore.llm.vllm.worker import WorkerSide, group_tensors

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request

#: The interface changes between minor versions of vLLM.
MADE_FOR = "0.32."
_log = logging.getLogger("kvstore.llm.vllm")


class KvStoreConnector(KVConnectorBase_V1, SupportsHMA):
    """Serves KV blocks of a vLLM engine from a kvstore, and stores those that it computes."""

    def __init__(
        self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig
    ) -> None:
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
        if not vllm.__version__.startswith(MADE_FOR):
            _log.warning("made for vLLM %sx, this is %s", MADE_FOR, vllm.__version__)
        settings = Settings.of(vllm_config)
        self._geometry = Geometry(vllm_config, kv_cache_config, settings)
        self._differences = Differences()
        self._scheduler: SchedulerSide | None = None
        self._worker: WorkerSide | None = None
        if role == KVConnectorRole.SCHEDULER:
            if vllm_config.kv_transfer_config.kv_load_failure_policy != "recompute":
                _log.warning(
                    'kv_load_failure_policy is not "recompute": a block that cannot be loaded ends'
                    " its request"
                )
            self._scheduler = SchedulerSide(settings, self._geometry)
        else:
            from vllm.distributed.parallel_state import get_pp_group, get_tp_group

            self._worker = WorkerSide(
                settings,
                self._geometry,
                tensor_rank=get_tp_group().rank_in_group,
                pipeline_rank=get_pp_group().rank_in_group,
            )

    @classmethod
    def requires_piecewise_for_cudagraph(cls, extra_config: dict[str, Any]) -> bool:
        """See KVConnectorBase_V1. Only layers that are published one by one need it."""
        return extra_config.get("hand_off") == "publish"

    @property
    def requires_kv_delivery(self) -> bool:
        """A store that was dropped is a miss later on, nothing worse."""
        return False

    # ---- scheduler ----

    @property
    def _scheduling(self) -> SchedulerSide:
        assert self._scheduler is not None, "this is a worker's connector"
        return self._scheduler

    def on_new_request(self, request: Request) -> None:
        """See KVConnectorBase_V1."""
        self._scheduling.on_new_request(request)

    def get_num_new_matched_tokens(
        self, request: Request, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        """See KVConnectorBase_V1."""
        return self._scheduling.get_num_new_matched_tokens(request, num_computed_tokens)

    def update_state_after_alloc(
        self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int
    ) -> None:
        """See KVConnectorBase_V1."""
        self._scheduling.update_state_after_alloc(request, blocks, num_external_tokens)

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> KVConnectorMetadata:
        """See KVConnectorBase_V1."""
        return self._scheduling.build_connector_meta(scheduler_output)

    def update_connector_output(self, connector_output: KVConnectorOutput) -> None:
        """See KVConnectorBase_V1."""
        self._scheduling.update_connector_output(connector_output)

    def request_finished(
        self, request: Request, block_ids: list[int]
    ) -> tuple[bool, dict[str, Any] | None]:
        """See KVConnectorBase_V1. Blocks are free at once: what is stored was copied."""
        return False, self._scheduling.request_finished(request)

    def request_finished_all_groups(
        self, request: Request, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        """See SupportsHMA."""
        return False, self._scheduling.request_finished(request)

    # ---- worker ----

    @property
    def _working(self) -> WorkerSide:
        assert self._worker is not None, "this is the scheduler's connector"
        return self._worker

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """See KVConnectorBase_V1."""
        config = self._kv_cache_config
        groups = [
            group_tensors(kv_caches, config.kv_cache_groups[group_id].layer_names)
            for group_id in self._geometry.group_ids
        ]
        self._working.register(groups, config.num_blocks)
        if self._geometry.group_ids:
            names = config.kv_cache_groups[self._geometry.group_ids[0]].layer_names
            layers = {name: kv_caches[name] for name in names if name in kv_caches}
            self._working.register_layers(layers, config.num_blocks)

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """See KVConnectorBase_V1. vLLM calls it before a forward that needs what is loaded."""
        self._working.start_loads(self._metadata.loads)

    @property
    def _metadata(self) -> StepMetadata:
        metadata = self._get_connector_metadata()
        assert isinstance(metadata, StepMetadata)
        return metadata

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Wait for nothing: blocks are loaded whole, before the forward. Hand-offs begin here."""
        self._working.begin_layer(layer_name, self._metadata.hand_offs)

    def save_kv_layer(
        self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any
    ) -> None:
        """See KVConnectorBase_V1. Hands the layer off; stored are whole blocks, later."""
        self._working.save_layer(layer_name, self._metadata.hand_offs)

    def wait_for_save(self) -> None:
        """See KVConnectorBase_V1. Copies the step's blocks; they are stored later."""
        self._working.save(self._metadata.saves)

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        """See KVConnectorBase_V1."""
        self._working.finish(finished_req_ids)
        if self._metadata.idle:
            self._working.loads.wait()
        loaded, failed = self._working.loads.take_ended()
        return KVConnectorTransferResults(finished_recving=loaded, failed_recving=failed)

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        """See KVConnectorBase_V1; `get_transfer_results` is what vLLM 0.32 calls."""
        self._working.finish(finished_req_ids)
        loaded, _ = self._working.loads.take_ended()
        return None, loaded or None

    def get_block_ids_with_load_errors(self) -> set[int]:
        """See KVConnectorBase_V1."""
        return self._working.loads.take_failed_blocks()

    # ---- both ----

    def get_kv_connector_stats(self) -> KvStoreStats | None:
        """See KVConnectorBase_V1."""
        if self._worker is not None:
            stats = self._differences.since_last(self._worker.caches(), self._worker.counts())
        else:
            stats = self._differences.since_last(self._scheduling.caches())
        return None if stats.is_empty() else stats

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> KvStoreStats:
        """See KVConnectorBase_V1."""
        return KvStoreStats(data=dict(data or {}))

    @classmethod
    def build_prom_metrics(
        cls,
        vllm_config: VllmConfig,
        metric_types: Any,
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> KvStorePromMetrics:
        """See KVConnectorBase_V1."""
        return KvStorePromMetrics(vllm_config, metric_types, labelnames, per_engine_labelvalues)

    def shutdown(self) -> None:
        """See KVConnectorBase_V1."""
        if self._worker is not None:
            self._worker.shutdown()
        if self._scheduler is not None:
            self._scheduler.shutdown()
