"""vLLM's tiered offloading for engines on processors, for which vLLM has no worker of its own.

    "spec_name": "ProcessorTieringSpec", "spec_module_path": "kvstore.llm.vllm.processors"

stands in place of `"spec_name": "TieringOffloadingSpec"`. Blocks are copied in the engine's memory,
within the step; a chunk is one block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from vllm.v1.kv_offload.base import (
    BlockIDsLoadStoreSpec,
    GPULoadStoreSpec,
    LoadStoreSpec,
    OffloadingWorker,
    TransferResult,
)
from vllm.v1.kv_offload.cpu.shared_offload_region import SharedOffloadRegion
from vllm.v1.kv_offload.tiering.spec import TieringOffloadingSpec

from kvstore.errors import ConfigurationError

if TYPE_CHECKING:
    from vllm.v1.kv_offload.base import CanonicalKVCaches


class ProcessorTieringSpec(TieringOffloadingSpec):
    """The specification of tiers, with a worker that copies within the host."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        if self.blocks_per_chunk != 1 or config.canonical_layout:
            raise ConfigurationError("on processors a chunk is one block, as the engine has it")
        self._processor_worker: ProcessorWorker | None = None

    def get_worker(self, kv_caches: CanonicalKVCaches) -> OffloadingWorker:
        """See OffloadingSpec."""
        if self._processor_worker is None:
            region = SharedOffloadRegion(
                engine_id=self.config.engine_id,
                num_chunks=self.num_chunks,
                rank=0 if self.replicated_layout else self.config.parallel.rank,
                kv_bytes_per_chunk=self.kv_bytes_per_chunk,
                cpu_page_size=self.cpu_page_size_per_worker,
            )
            self._processor_worker = ProcessorWorker(kv_caches, region)
        return self._processor_worker


class ProcessorWorker(OffloadingWorker):
    """Copies blocks to chunks and back, at once. Owns the region from now on."""

    def __init__(self, kv_caches: CanonicalKVCaches, region: SharedOffloadRegion) -> None:
        self._region = region
        self._blocks = [
            cache.tensor.view(torch.int8).view(-1, cache.page_size_bytes)
            for cache in kv_caches.tensors
        ]
        self._chunks = [
            region.create_next_worker_view(cache.page_size_bytes) for cache in kv_caches.tensors
        ]
        self._groups = kv_caches.group_data_refs
        self._finished: list[TransferResult] = []

    def submit_store(
        self, job_id: int, src_spec: GPULoadStoreSpec, dst_spec: LoadStoreSpec
    ) -> bool:
        """See OffloadingWorker."""
        assert isinstance(dst_spec, BlockIDsLoadStoreSpec)
        pairs = self._pairs(src_spec.block_ids, dst_spec.block_ids, src_spec.group_sizes)
        for blocks, chunks, engine, host, size in pairs:
            host[chunks, :size] = engine[blocks, :size]
        self._finished.append(TransferResult(job_id=job_id, success=True))
        return True

    def submit_load(self, job_id: int, src_spec: LoadStoreSpec, dst_spec: GPULoadStoreSpec) -> bool:
        """See OffloadingWorker."""
        assert isinstance(src_spec, BlockIDsLoadStoreSpec)
        pairs = self._pairs(dst_spec.block_ids, src_spec.block_ids, dst_spec.group_sizes)
        for blocks, chunks, engine, host, size in pairs:
            engine[blocks, :size] = host[chunks, :size]
        self._finished.append(TransferResult(job_id=job_id, success=True))
        return True

    def _pairs(self, block_ids: Any, chunk_ids: Any, group_sizes: Any) -> list[tuple[Any, ...]]:
        """Of each layer: places in the engine and in the host, both memories, and bytes."""
        blocks = torch.from_numpy(block_ids).long().split(list(group_sizes))
        chunks = torch.from_numpy(chunk_ids).long().split(list(group_sizes))
        return [
            (
                *places,
                self._blocks[ref.tensor_idx],
                self._chunks[ref.tensor_idx],
                ref.page_size_bytes,
            )
            for refs, *places in zip(self._groups, blocks, chunks, strict=True)
            for ref in refs
        ]

    def get_finished(self) -> list[TransferResult]:
        """See OffloadingWorker."""
        finished, self._finished = self._finished, []
        return finished

    def wait(self, job_ids: set[int]) -> None:
        """See OffloadingWorker. Transfers are over when they are submitted."""

    def shutdown(self) -> None:
        """Release the region; its file would stay otherwise."""
        self._chunks.clear()
        self._region.cleanup()
