"""Why a block was not served: the verdicts of `PrefixCache.explain`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import Enum


class Verdict(Enum):
    """What became of one block, from the point of view of one process."""

    HIT = "it is there"
    ON_SSD = "it is on the SSD of its node, from where a load brings it up"
    BEHIND_A_GAP = "it is there, but an earlier block of the chain is not"
    LOAD_FAILED = "its load failed lately, so it is not offered for a while"
    NODE_DOWN = "its memory node cannot be reached"
    OTHER_NAMESPACE = "it is there in another namespace only"
    EVICTED = (
        "this process stored or loaded it, and it is gone: evicted, deleted, or node restarted"
    )
    NEVER_STORED = "nobody stored it, as far as this process knows"


@dataclass(frozen=True, slots=True)
class BlockVerdict:
    """One block of a chain; `detail` names the other namespaces, or the time that is left."""

    place: int
    verdict: Verdict
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Explanation:
    """The answer of `explain`: how much of a chain matches, and why the rest does not."""

    matched: int
    blocks: tuple[BlockVerdict, ...]

    def __str__(self) -> str:
        lines = [f"{self.matched} of {len(self.blocks)} blocks match"]
        if self.matched < len(self.blocks):
            first = self.blocks[self.matched]
            lines.append(f"block {first.place}: {first.verdict.value}")
            if first.detail:
                lines[-1] += f" ({first.detail})"
            rest = Counter(block.verdict for block in self.blocks[self.matched + 1 :])
            lines += [f"{count} later: {verdict.value}" for verdict, count in rest.most_common()]
        return "\n".join(lines)
