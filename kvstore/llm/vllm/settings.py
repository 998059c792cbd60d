"""The connector's settings, and the namespaces that follow from an engine's configuration.

Scheduler and workers are processes of their own: both make the namespaces from the configuration
alone, so that they agree without a word.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch
import vllm
from vllm.platforms import current_platform

from kvstore.errors import ConfigurationError
from kvstore.llm.core import Limits
from kvstore.llm.namespace import Namespace, Ranks

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The keys of `kv_connector_extra_config`.

    Attributes:
        target: What `kvstore.connect` takes. Default: the environment's KVSTORE_TARGET. The token
            is read from the file that KVSTORE_TOKEN_FILE names.
        save_decode: Also store blocks that hold generated tokens.
        codec: `none` or `zstd`.
        revision: Names the weights where the model's own revision does not.
        salt: Keeps tenants apart; all engines that share must agree.
        match_timeout_s: For one look-up; the scheduler waits for it.
        load_timeout_s: For all blocks of one request.
        store_timeout_s: For the blocks of one step.
        single_flight: Wait where another engine may be computing the same prompt just now.
        flight_wait_s: For how long at most.
        prefill_tokens_per_s: A load, or that wait, gets no more time than computing at this rate
            takes; 0: unknown.
        hand_off: `publish`: a prefill engine hands prompts off layer by layer; `receive`: a decode
            engine takes them over; `none`. Requests ask for it by their kv_transfer_params.
        hand_off_wait_s: How long a decode engine waits at most, for the prefill to begin as well.
        hand_offs_max: Requests of a decode engine that wait at one time.
        load_threads: Requests that load at once.
        save_bytes: Memory of a worker for blocks on their way to the store.
        save_wait_s: How long a step may wait for that memory before its blocks are not stored.
    """

    target: str
    save_decode: bool = False
    codec: str = "none"
    revision: str = ""
    salt: str = ""
    match_timeout_s: float = 0.5
    load_timeout_s: float = 5.0
    store_timeout_s: float = 10.0
    single_flight: bool = True
    flight_wait_s: float = 5.0
    prefill_tokens_per_s: float = 0.0
    hand_off: str = "none"
    hand_off_wait_s: float = 10.0
    hand_offs_max: int = 64
    load_threads: int = 2
    save_bytes: int = 256 << 20
    save_wait_s: float = 0.2

    @classmethod
    def of(cls, vllm_config: VllmConfig) -> Settings:
        """Read them; ConfigurationError names a key that is unknown or has the wrong type."""
        given = dict(vllm_config.kv_transfer_config.kv_connector_extra_config or {})
        given.setdefault("target", os.environ.get("KVSTORE_TARGET", ""))
        kinds = {"str": str, "bool": bool, "int": int, "float": (int, float)}
        known = {field.name: kinds[str(field.type)] for field in fields(cls)}
        for name, value in given.items():
            if name not in known:
                raise ConfigurationError(
                    f"kv_connector_extra_config has no key {name!r}: it takes {', '.join(known)}"
                )
            if not isinstance(value, known[name]):  # type: ignore[arg-type]
                raise ConfigurationError(f"{name} cannot be {value!r}")
        if not given["target"]:
            raise ConfigurationError(
                "the connector needs the target of its memory nodes: give"
                ' {"target": "kv://host:7400"} in kv_connector_extra_config, or KVSTORE_TARGET'
            )
        if given.get("codec", "none") not in ("none", "zstd"):
            raise ConfigurationError(f"a codec is none or zstd, not {given['codec']}")
        _check_hand_off(given.get("hand_off", "none"), vllm_config.kv_transfer_config)
        return cls(**given)

    def flight_timeout_s(self, missing_tokens: int) -> float:
        """Return how long to wait for another engine that computes so many tokens."""
        return self._wait_s(self.flight_wait_s, missing_tokens) if self.single_flight else 0.0

    def hand_off_timeout_s(self, missing_tokens: int) -> float:
        """Return how long to wait for a prefill engine that computes so many tokens."""
        return self._wait_s(self.hand_off_wait_s, missing_tokens)

    def _wait_s(self, wait_s: float, missing_tokens: int) -> float:
        if self.prefill_tokens_per_s <= 0:
            return wait_s
        return min(wait_s, missing_tokens / self.prefill_tokens_per_s)

    def limits(self) -> Limits:
        """Return the limits of the prefix caches."""
        return Limits(
            match_s=self.match_timeout_s,
            load_s=self.load_timeout_s,
            store_s=self.store_timeout_s,
            prefill_tokens_per_s=self.prefill_tokens_per_s,
        )


def _check_hand_off(end: str, transfer: Any) -> None:
    """The end of hand-offs must fit what vLLM was told of the engine."""
    roles = {"none": True, "publish": transfer.is_kv_producer, "receive": transfer.is_kv_consumer}
    if end not in roles:
        raise ConfigurationError(f"hand_off is none, publish or receive, not {end}")
    if not roles[end]:
        raise ConfigurationError(
            f"hand_off {end} does not go with kv_role {transfer.kv_role}: a kv_producer publishes,"
            " a kv_consumer receives"
        )


class Geometry:
    """What the connector needs to know of an engine: groups, ranks and the size of blocks."""

    def __init__(
        self, vllm_config: VllmConfig, kv_cache_config: KVCacheConfig, settings: Settings
    ) -> None:
        from vllm.v1.core.kv_cache_utils import resolve_kv_cache_block_sizes

        self._vllm_config = vllm_config
        self._settings = settings
        parallel = vllm_config.parallel_config
        if parallel.decode_context_parallel_size != 1 or _prefill_context_size(parallel) != 1:
            raise ConfigurationError("context parallelism is not supported by this connector")
        #: vLLM's numbers of the groups that are stored.
        self.group_ids: tuple[int, ...] = kv_cache_config.prefix_cacheable_group_ids
        self.specs = [kv_cache_config.kv_cache_groups[i].kv_cache_spec for i in self.group_ids]
        if settings.hand_off != "none" and len(self.group_ids) > 1:
            raise ConfigurationError(
                "hand_off needs a model whose layers are of one kind: this one has"
                f" {len(self.group_ids)} KV cache groups"
            )
        if settings.hand_off == "publish" and parallel.use_ubatching:
            raise ConfigurationError(
                "hand_off publish does not go with microbatches: a layer is complete only when the"
                " last of them has computed it"
            )
        for spec in self.specs:
            if "Mamba" in type(spec).__name__:
                raise ConfigurationError("layers with recurrent state are not supported")
        #: Tokens that a hit is a multiple of, and tokens a block hash.
        self.align_tokens: int
        self.hash_tokens: int
        self.align_tokens, self.hash_tokens = resolve_kv_cache_block_sizes(
            kv_cache_config, vllm_config
        )
        #: Tokens a block of each group.
        self.block_tokens: list[int] = [spec.block_size for spec in self.specs]
        self._replicas: int = kv_cache_config.kv_tp_replicas
        self.tensor_size: int = parallel.tensor_parallel_size // self._replicas
        self.pipeline_size: int = parallel.pipeline_parallel_size
        self._layout = kv_cache_config.kv_cache_layout or ""

    def all_ranks(self) -> list[Ranks]:
        """Return the ranks that hold different parts of a block."""
        return [
            self._ranks(tensor, pipeline)
            for pipeline in range(self.pipeline_size)
            for tensor in range(self.tensor_size)
        ]

    def ranks_of(self, tensor_rank: int, pipeline_rank: int) -> Ranks:
        """Return which part a worker holds."""
        return self._ranks(tensor_rank // self._replicas, pipeline_rank)

    def stores(self, tensor_rank: int) -> bool:
        """Whether a worker is the one of its replicas that stores."""
        return tensor_rank % self._replicas == 0

    def _ranks(self, tensor_rank: int, pipeline_rank: int) -> Ranks:
        return Ranks(
            tensor_rank=tensor_rank,
            tensor_size=self.tensor_size,
            pipeline_rank=pipeline_rank,
            pipeline_size=self.pipeline_size,
        )

    def namespace(self, group: int, ranks: Ranks) -> Namespace:
        """Return the namespace of the group at a place of `group_ids`, for a worker.

        A LoRA adapter, images and vLLM's own cache_salt are in the block hashes already.
        """
        model = self._vllm_config.model_config
        cache = self._vllm_config.cache_config
        weights = [model.revision, model.quantization, self._settings.revision, _shape(model)]
        return Namespace(
            model=str(model.model),
            revision=hashlib.sha256(json.dumps(weights, default=str).encode()).hexdigest()[:32],
            dtype=f"{model.dtype} {cache.cache_dtype}",
            layout=f"vllm {vllm.__version__} {machine()} {self._layout} {self.specs[group]}",
            block_tokens=self.block_tokens[group],
            ranks=ranks,
            salt=self._settings.salt,
            group=self.group_ids[group],
        )

    def piece_namespace(self, ranks: Ranks) -> Namespace:
        """Return the namespace of single layers of blocks, which are of no use as blocks."""
        whole = self.namespace(0, ranks)
        return replace(whole, layout=f"{whole.layout} by layer")

    def hashes(self, group: int, block_hashes: list[Any], first: int, count: int) -> list[bytes]:
        """Return the hashes of `count` blocks of a group, from the first on.

        vLLM has one hash every `hash_tokens`; a larger block has that of its last part.
        """
        step = self.block_tokens[group] // self.hash_tokens
        return [bytes(block_hashes[(i + 1) * step - 1]) for i in range(first, first + count)]


def machine() -> str:
    """What the bytes of a block depend on: the backends for processors order them by ISA."""
    if not current_platform.is_cpu():
        return str(current_platform.device_name)
    amx = getattr(torch.cpu, "_is_amx_tile_supported", bool)()
    capability = torch.backends.cpu.get_cpu_capability()
    return f"cpu {platform.machine()} {capability}{' AMX' if amx else ''}"


def _shape(model: Any) -> str:
    """The model's configuration: another one at the same path is another model."""
    configuration = model.hf_config.to_dict()
    configuration.pop("_name_or_path", None)
    return json.dumps(configuration, sort_keys=True, default=str)


def _prefill_context_size(parallel: Any) -> int:
    return int(getattr(parallel, "prefill_context_parallel_size", 1))
