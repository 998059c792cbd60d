"""What the scheduler tells the workers in each step: blocks to load and blocks to store."""

from __future__ import annotations

from dataclasses import dataclass, field

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata

from kvstore.llm.chains import Prompt


@dataclass(slots=True)
class GroupBlocks:
    """Blocks of one KV cache group: where they are in the engine and what they are called."""

    #: Place in `Geometry.group_ids`.
    group: int
    block_ids: list[int]
    hashes: list[bytes]
    #: The place of the first block in the prompt.
    first: int = 0


@dataclass(slots=True)
class Job:
    """Blocks of one request."""

    request_id: str
    groups: list[GroupBlocks]
    #: Of each group, what eviction is told of its blocks.
    prompts: list[Prompt] = field(default_factory=list)
    #: Blocks behind those that a prefill engine hands off layer by layer.
    handed: GroupBlocks | None = None


@dataclass(slots=True)
class HandOffJob:
    """Blocks of one request that a step completes and a decode engine waits for."""

    request_id: str
    block_ids: list[int]
    #: The place of the first of them among all blocks that are handed off.
    first: int
    #: Of all blocks that are handed off: with the first job of a request, else empty.
    hashes: list[bytes]


@dataclass
class StepMetadata(KVConnectorMetadata):
    """One step's jobs."""

    loads: list[Job] = field(default_factory=list)
    saves: list[Job] = field(default_factory=list)
    hand_offs: list[HandOffJob] = field(default_factory=list)
    #: Nothing is computed in this step.
    idle: bool = False
