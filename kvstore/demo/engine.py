"""One serving engine of the model demo: a process with a small model of random weights.

The first line on its stdin configures it; each later one is a prompt. It answers on its stdout.
Every engine makes the same weights from the same seed, so their tokens can be compared.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any, Final

VOCABULARY: Final = 2048


def make_model(configuration: dict[str, Any]) -> Any:
    """A Llama with random weights, the same in every process."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(configuration["seed"])
    torch.set_num_threads(configuration["threads"])
    hidden = configuration["hidden"]
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=configuration["layers"],
        num_attention_heads=hidden // 64,
        num_key_value_heads=max(1, hidden // 256),
        max_position_embeddings=16_384,
        # Large enough that the tokens depend on the whole prompt and do not repeat themselves.
        initializer_range=0.15,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).to(torch.float32).eval()


class Engine:
    """Answers prompts, greedily, with or without the store."""

    def __init__(self, configuration: dict[str, Any]) -> None:
        import kvstore
        from kvstore.llm.transformers import PastKeyValues

        self._model = make_model(configuration)
        self._store = kvstore.connect(configuration["target"])
        self._past = PastKeyValues(
            self._model, self._store, block_tokens=configuration["block_tokens"]
        )

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Generates `new_tokens` tokens.

        `reuse`: restore what is stored of the prompt; `spoil`: then overwrite it with noise;
        `save`: store what was computed.
        """
        import torch
        from transformers.cache_utils import DynamicCache

        prompt = request["prompt"]
        begin = time.perf_counter()
        past, cached = DynamicCache(config=self._model.config), 0
        if request.get("reuse"):
            past, cached = self._past.restore(prompt)
        restored = time.perf_counter()
        if request.get("spoil"):
            for layer in past.layers:
                layer.keys.normal_()
                layer.values.normal_()
        tokens: list[int] = []
        rest = prompt[cached:]
        first_token = 0.0
        with torch.no_grad():
            for _ in range(request["new_tokens"]):
                logits = self._model(
                    input_ids=torch.tensor([rest]),
                    past_key_values=past,
                    use_cache=True,
                    logits_to_keep=1,
                ).logits
                tokens.append(int(logits[0, -1].argmax()))
                rest = tokens[-1:]
                first_token = first_token or time.perf_counter()
        stored = self._past.save(prompt, past).stored if request.get("save") else 0
        return {
            "tokens": tokens,
            "cached": cached,
            "stored": stored,
            "first_token_ms": 1e3 * (first_token - begin),
            "load_ms": 1e3 * (restored - begin),
            "loaded_bytes": self._past.cache.stats().loaded_bytes,
        }

    def close(self) -> None:
        """Leaves the store."""
        self._store.close()


def main() -> None:
    """Answers lines until the input ends."""
    engine = Engine(json.loads(sys.stdin.readline()))
    print(json.dumps({"event": "ready"}), flush=True)
    for line in sys.stdin:
        print(json.dumps(engine.answer(json.loads(line))), flush=True)
    engine.close()


if __name__ == "__main__":
    main()
