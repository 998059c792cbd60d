"""A synthetic workload with the published shape of a production prefix-cache trace.

The shape is that of the conversation trace of Mooncake (FAST'25): requests are turns of
conversations; every prompt begins with one common block; a later turn repeats the whole earlier
prompt and adds a little; prompt lengths are spread widely. The result is synthetic: arrival
bursts, popularity beyond the common block and the tail of the lengths are only approximated.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Final

from kvstore.demo.trace import BLOCK_TOKENS, Request


@dataclass(frozen=True, slots=True)
class Shape:
    """The statistics that the generator follows."""

    input_tokens_median: int = 6_909
    input_tokens_mean: int = 12_035
    input_tokens_max: int = 126_195
    output_tokens_mean: int = 343
    later_turn_ratio: float = 0.387  # requests that repeat more than the common block
    turn_gap_requests_median: int = 390  # between two turns of a conversation
    requests_per_second: float = 3.4

    def describe(self) -> str:
        """One line with the numbers, for the report."""
        return (
            f"{self.input_tokens_mean:,} input tokens a request (median "
            f"{self.input_tokens_median:,}), {self.output_tokens_mean} output tokens, "
            f"{100 * self.later_turn_ratio:.1f} % later turns of a conversation, "
            f"{self.requests_per_second} requests/s, {BLOCK_TOKENS}-token blocks, "
            "first block common to all"
        )


MOONCAKE_CONVERSATION: Final = Shape()
_NEW_TOKENS_MEAN: Final = 1_200  # what a later turn adds: the last answer and a new question


def generate(count: int, seed: int = 1, shape: Shape = MOONCAKE_CONVERSATION) -> list[Request]:
    """`count` requests, the same for the same `seed`."""
    generator = random.Random(seed)
    next_block = 1
    # Conversations wait here for their next turn, as (request number that is due, prompt).
    waiting: list[tuple[int, Request]] = []
    gap_median = min(shape.turn_gap_requests_median, max(1, count // 8))
    requests: list[Request] = []
    for number in range(count):
        earlier = None
        if waiting and generator.random() < shape.later_turn_ratio:
            earlier = _take_due(waiting, number)
        tokens = _input_tokens(generator, shape, earlier)
        blocks = _blocks(tokens, earlier, next_block)
        next_block += sum(1 for block in blocks if block >= next_block)
        output_tokens = 1 + round(generator.expovariate(1 / shape.output_tokens_mean))
        timestamp_ms = round(1000 * number / shape.requests_per_second)
        request = Request(timestamp_ms, tokens, output_tokens, blocks)
        requests.append(request)
        # An exponential gap with that median.
        gap = generator.expovariate(math.log(2) / gap_median)
        waiting.append((number + 1 + round(gap), request))
    return requests


def _take_due(waiting: list[tuple[int, Request]], number: int) -> Request:
    """Removes and returns the conversation whose next turn is nearest to now."""
    index = min(range(len(waiting)), key=lambda position: abs(waiting[position][0] - number))
    return waiting.pop(index)[1]


def _input_tokens(generator: random.Random, shape: Shape, earlier: Request | None) -> int:
    if earlier is not None:
        added = 1 + round(generator.expovariate(1 / _NEW_TOKENS_MEAN))
        return min(shape.input_tokens_max, earlier.input_tokens + added)
    # A log-normal distribution is fixed by its median and mean.
    sigma = math.sqrt(2 * math.log(shape.input_tokens_mean / shape.input_tokens_median))
    tokens = round(generator.lognormvariate(math.log(shape.input_tokens_median), sigma))
    return max(1, min(shape.input_tokens_max, tokens))


def _blocks(tokens: int, earlier: Request | None, next_block: int) -> tuple[int, ...]:
    count = -(-tokens // BLOCK_TOKENS)
    if earlier is None:
        return (0, *range(next_block, next_block + count - 1))
    # Only full blocks keep their id when the prompt grows.
    kept = earlier.blocks[: earlier.input_tokens // BLOCK_TOKENS][:count]
    return (*kept, *range(next_block, next_block + count - len(kept)))
