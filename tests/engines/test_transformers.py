"""The transformers helper with real models of random weights: the same tokens, from fewer of them.

Runs where torch and transformers are installed: `make test-engines`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import pytest

from tests.engines.conftest import engine_module

torch = engine_module("torch")
transformers = engine_module("transformers")

import kvstore  # noqa: E402
from kvstore.demo.llm import Job, is_right, run_job  # noqa: E402
from kvstore.errors import ConfigurationError  # noqa: E402
from kvstore.llm.transformers import PastKeyValues  # noqa: E402
from tests.support.nodes import start_node  # noqa: E402

PROMPT = [3 + i * 37 % 2000 for i in range(300)]
NEW_TOKENS = 24
SHAPE = {
    "vocab_size": 2048,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "initializer_range": 0.15,
    "eos_token_id": None,
    "pad_token_id": 0,
}


def model_of(kind: str, *, seed: int = 0, dtype: Any = torch.float32, **options: Any) -> Any:
    torch.manual_seed(seed)
    config = getattr(transformers, f"{kind}Config")(**SHAPE, **options)
    return getattr(transformers, f"{kind}ForCausalLM")(config).to(dtype).eval()


@pytest.fixture
def store() -> Iterator[kvstore.Store]:
    with kvstore.connect("embedded", capacity_bytes=64 << 20) as opened:
        yield opened


def generated(model: Any, prompt: list[int], past: Any = None) -> list[int]:
    ids = torch.tensor([prompt])
    output = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        past_key_values=past,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
    )
    return list(output[0].tolist())


def computed(model: Any, prompt: list[int]) -> Any:
    with torch.no_grad():
        return model(input_ids=torch.tensor([prompt]), use_cache=True).past_key_values


@pytest.mark.parametrize("kind", ["Llama", "Qwen3", "Mistral"])
def test_restored_blocks_give_the_same_tokens(store: kvstore.Store, kind: str) -> None:
    options = {"sliding_window": None} if kind == "Mistral" else {}
    model = model_of(kind, **options)
    expected = generated(model, PROMPT)
    past = PastKeyValues(model, store, block_tokens=64)
    assert past.save(PROMPT, computed(model, PROMPT)).stored == 4
    # Another object on another model of the same weights: as in another process.
    again = PastKeyValues(model_of(kind, **options), store, block_tokens=64)
    cache, cached = again.restore(PROMPT)
    assert cached == 256 == cache.get_seq_length()
    assert generated(model, PROMPT, cache) == expected
    noise, _ = again.restore(PROMPT)
    for layer in noise.layers:
        layer.keys.normal_()
        layer.values.normal_()
    assert generated(model, PROMPT, noise) != expected


def test_generate_saves_what_it_computed_and_reuses_it(store: kvstore.Store) -> None:
    model = model_of("Llama")
    expected = generated(model, PROMPT)
    past = PastKeyValues(model, store, block_tokens=32)
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False}
    assert past.generate(torch.tensor([PROMPT]), **options)[0].tolist() == expected
    assert past.cache.stats().stored == (len(expected) - 1) // 32
    assert past.generate(torch.tensor([PROMPT]), **options)[0].tolist() == expected
    assert past.cache.stats().loaded_remote == 9
    # The answer is a part of the next turn's prompt.
    turn = [*expected, 7, 8, 9]
    _, cached = past.restore(turn)
    assert cached == (len(expected) - 1) // 32 * 32 > 300


def test_one_token_is_always_left_to_compute(store: kvstore.Store) -> None:
    model = model_of("Llama")
    past = PastKeyValues(model, store, block_tokens=64)
    past.save(PROMPT[:128], computed(model, PROMPT[:128]))
    assert past.restore(PROMPT[:128])[1] == 64
    assert past.restore(PROMPT[:129])[1] == 128
    assert past.restore(PROMPT[:1])[1] == 0


def test_models_that_differ_share_nothing(store: kvstore.Store) -> None:
    base = model_of("Llama")
    past = PastKeyValues(base, store)
    past.save(PROMPT, computed(base, PROMPT))
    assert PastKeyValues(model_of("Llama"), store).restore(PROMPT)[1] == 256
    others = [
        PastKeyValues(model_of("Llama", seed=1), store),
        PastKeyValues(model_of("Llama", dtype=torch.bfloat16), store),
        PastKeyValues(model_of("Llama", rope_theta=5e5), store),
        PastKeyValues(model_of("Llama", attn_implementation="eager"), store),
        PastKeyValues(base, store, salt="tenant"),
        PastKeyValues(base, store, adapter="lora"),
        PastKeyValues(base, store, block_tokens=32),
    ]
    assert [other.restore(PROMPT)[1] for other in others] == [0] * len(others)
    # One changed weight is another model, at the same path too.
    changed = model_of("Llama")
    with torch.no_grad():
        changed.model.layers[1].self_attn.k_proj.weight[0, 0] += 1
    assert PastKeyValues(changed, store).restore(PROMPT)[1] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_lossless_codec_on_real_kv(store: kvstore.Store, dtype: Any) -> None:
    model = model_of("Llama", dtype=dtype)
    past = PastKeyValues(model, store, codec="zstd")
    original = computed(model, PROMPT)
    past.save(PROMPT, original)
    stats = past.cache.stats()
    assert stats.stored_bytes < 0.97 * stats.stored_raw_bytes
    restored, cached = PastKeyValues(model, store).restore(PROMPT)
    assert cached == 256
    for one, other in zip(restored.layers, original.layers, strict=True):
        assert torch.equal(one.keys, other.keys[:, :, :256])
        assert torch.equal(one.values, other.values[:, :, :256])


@pytest.mark.parametrize(("codec", "levels"), [("int8", 255), ("int4", 15)])
def test_the_bound_of_quantisation_on_real_kv(
    store: kvstore.Store, codec: Literal["int8", "int4"], levels: int
) -> None:
    model = model_of("Llama")
    past = PastKeyValues(model, store, codec=codec)
    original = computed(model, PROMPT)
    past.save(PROMPT, original)
    stats = past.cache.stats()
    assert stats.stored_bytes < (0.33 if codec == "int8" else 0.2) * stats.stored_raw_bytes
    restored, cached = past.restore(PROMPT)
    assert cached == 256
    for one, other in zip(restored.layers, original.layers, strict=True):
        # Keys: 32 tokens of a channel are a group; values: 32 channels of a token.
        keys, values = other.keys[0, :, :256], other.values[0, :, :256]
        by_token = keys.unflatten(1, (8, 32))
        span = (by_token.amax(2, True) - by_token.amin(2, True)).expand_as(by_token).flatten(1, 2)
        assert ((one.keys[0] - keys).abs() <= span / (2 * levels) * 1.001 + 1e-6).all()
        assert ((one.keys[0] - keys).abs() > 0).any()
        span = values.amax(-1, True) - values.amin(-1, True)
        assert ((one.values[0] - values).abs() <= span / (2 * levels) * 1.001 + 1e-6).all()


def test_layers_that_forget_are_refused(store: kvstore.Store) -> None:
    model = model_of("Mistral", sliding_window=32)
    with pytest.raises(ConfigurationError, match="whole past"):
        PastKeyValues(model, store)


def test_two_prompts_at_once_are_refused(store: kvstore.Store) -> None:
    past = PastKeyValues(model_of("Llama"), store)
    with pytest.raises(ConfigurationError, match="one prompt"):
        past.generate(torch.tensor([PROMPT, PROMPT]))


def test_a_dead_node_costs_no_token() -> None:
    model = model_of("Llama")
    expected = generated(model, PROMPT)
    with start_node() as node, kvstore.connect(node.target, timeout_s=2) as store:
        past = PastKeyValues(model, store)
        past.save(PROMPT, computed(model, PROMPT))
        assert past.restore(PROMPT)[1] == 256
        node.kill()
        options = {"max_new_tokens": NEW_TOKENS, "do_sample": False}
        assert past.generate(torch.tensor([PROMPT]), **options)[0].tolist() == expected
        assert past.cache.stats().loaded_remote == 4


@pytest.mark.parametrize("fabric", ["shm", "tcp"])
def test_the_demo_in_miniature(fabric: str) -> None:
    job = Job(prefix_tokens=256, hidden=128, layers=2, fabric="tcp" if fabric == "tcp" else "auto")
    row = run_job(job, lambda _: None)
    assert is_right(row), row
    assert row["fabric"] == fabric
    assert row["cached_tokens"] == 256
