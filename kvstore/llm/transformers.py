"""The prefix cache under Hugging Face transformers: `past_key_values` that outlive the process.

    from kvstore.llm.transformers import PastKeyValues

    past = PastKeyValues(model, store)
    output = past.generate(input_ids, max_new_tokens=64)   # restores, generates, saves

or by hand:

    cache, cached_tokens = past.restore(tokens)
    model(input_ids=rest_of_tokens, past_key_values=cache)
    past.save(tokens, cache)

One object a block of tokens holds the keys and values of every layer. Two models share blocks only
if configuration, weights, element type and versions are the same; see `PastKeyValues.namespace`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

import torch
import transformers
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from kvstore.errors import ConfigurationError
from kvstore.llm.codecs import Codec
from kvstore.llm.core import Limits
from kvstore.llm.keys import block_hashes
from kvstore.llm.namespace import Namespace
from kvstore.llm.prefix_cache import PrefixCache
from kvstore.llm.results import StoreResult

if TYPE_CHECKING:
    from kvstore.client.store import Store

#: Elements of each weight that go into its fingerprint.
_SAMPLED: Final = 16
CodecName = Literal["none", "zstd", "int8", "int4"]


class PastKeyValues:
    """Stores and restores the KV cache of one model on one store. One sequence at a time.

    Attributes:
        cache: The `PrefixCache` underneath: its statistics, `explain` and so on.
    """

    def __init__(
        self,
        model: Any,
        store: Store,
        *,
        block_tokens: int = 64,
        revision: str = "",
        adapter: str = "",
        salt: str = "",
        codec: CodecName = "none",
        limits: Limits | None = None,
    ) -> None:
        """Wrap a model.

        Args:
            model: A causal language model whose layers all attend to the whole past.
            store: An open store.
            block_tokens: Tokens a block; what is reused is a multiple of it.
            revision: Names the weights. Default: a fingerprint of a sample of them.
            adapter: Names a LoRA adapter that is active.
            salt: Keeps tenants apart.
            codec: How blocks are stored; int8 and int4 lose precision.
            limits: How long calls may take.
        """
        self._model = model
        self._block_tokens = block_tokens
        self._layers = _layers(model)
        self._token_bytes = sum(part.token_bytes for part in self._layers)
        namespace = Namespace(
            model=f"{type(model).__name__} {getattr(model.config, '_name_or_path', '')}",
            revision=revision or _fingerprint(model),
            dtype=str(self._layers[0].dtype),
            layout=_layout(model),
            block_tokens=block_tokens,
            adapter=adapter,
            salt=salt,
        )
        self.cache = PrefixCache(
            store, namespace, codec=self._codec(codec), limits=limits, prefetch_bytes=0
        )

    @property
    def namespace(self) -> Namespace:
        """What must be equal for two models to share blocks."""
        return self.cache.namespace

    def hashes(self, tokens: Sequence[int]) -> list[bytes]:
        """Return the hashes of the whole blocks of `tokens`."""
        return block_hashes(tokens, self._block_tokens)

    def restore(self, tokens: Sequence[int]) -> tuple[DynamicCache, int]:
        """Return a cache with the longest stored prefix of `tokens`, and how many tokens it holds.

        At least one token is left to compute, for the logits of the last one are not stored.
        """
        usable = max(0, (len(tokens) - 1) // self._block_tokens)
        hashes = self.hashes(tokens)[:usable]
        hashes = hashes[: self.cache.match(hashes)]
        memory = torch.empty((len(hashes), self._block_bytes), dtype=torch.uint8)
        loaded = self.cache.get(hashes, list(memory.numpy())).leading
        past = DynamicCache(config=self._model.config)
        if loaded:
            self._fill(past, memory[:loaded])
        return past, loaded * self._block_tokens

    def save(self, tokens: Sequence[int], past: DynamicCache) -> StoreResult:
        """Store the blocks of `tokens` that `past` holds and the store does not."""
        hashes = self.hashes(tokens)[: past.get_seq_length() // self._block_tokens]
        first = self.cache.match(hashes)
        hashes = hashes[first:]
        memory = torch.empty((len(hashes), self._block_bytes), dtype=torch.uint8)
        if hashes:
            self._read(past, memory, first * self._block_tokens)
        return self.cache.put(hashes, list(memory.numpy()))

    def generate(self, input_ids: torch.Tensor, **options: Any) -> torch.Tensor:
        """Call `model.generate` with what is stored of the prompt, and save what it computes.

        Args:
            input_ids: One prompt, shape (1, tokens).
            options: Those of `generate`, except `past_key_values`.

        Returns:
            Prompt and new tokens, shape (1, all tokens).
        """
        if input_ids.ndim != 2 or input_ids.shape[0] != 1:
            raise ConfigurationError(f"one prompt of shape (1, tokens), not {input_ids.shape}")
        past, _ = self.restore(input_ids[0].tolist())
        options.setdefault("attention_mask", torch.ones_like(input_ids))
        output: torch.Tensor = self._model.generate(
            input_ids=input_ids, past_key_values=past, **options
        )
        self.save(output[0].tolist(), past)
        return output

    # ---- inside ----

    @property
    def _block_bytes(self) -> int:
        return self._token_bytes * self._block_tokens

    def _fill(self, past: DynamicCache, memory: torch.Tensor) -> None:
        """Appends blocks to an empty cache."""
        device = self._model.device
        pieces = self._pieces(memory)
        for layer in range(len(self._layers) // 2):
            keys, values = (
                # (blocks, heads, tokens, channels) -> (1, heads, blocks * tokens, channels)
                piece.transpose(0, 1).flatten(1, 2).unsqueeze(0).to(device)
                for piece in pieces[2 * layer : 2 * layer + 2]
            )
            past.update(keys, values, layer)

    def _read(self, past: DynamicCache, memory: torch.Tensor, begin: int) -> None:
        """Copies the blocks that begin with token `begin` out of a cache."""
        end = begin + len(memory) * self._block_tokens
        pieces = self._pieces(memory)
        for number, layer in enumerate(past.layers):
            for piece, source in zip(
                pieces[2 * number :], (layer.keys, layer.values), strict=False
            ):
                blocks = source[0, :, begin:end].unflatten(1, (len(memory), self._block_tokens))
                piece.copy_(blocks.transpose(0, 1))

    def _pieces(self, memory: torch.Tensor) -> list[torch.Tensor]:
        """Views into blocks: of each layer keys and values, (blocks, heads, tokens, channels)."""
        pieces = []
        begin = 0
        for part in self._layers:
            end = begin + part.token_bytes * self._block_tokens
            piece = memory[:, begin:end].view(part.dtype)
            pieces.append(piece.unflatten(1, (part.heads, self._block_tokens, part.channels)))
            begin = end
        return pieces

    def _codec(self, name: CodecName) -> Codec | None:
        if name == "none":
            return None
        if name == "zstd":
            from kvstore.llm.codecs.planes import ZstdPlanes

            return ZstdPlanes(self._layers[0].dtype.itemsize)
        if name not in ("int8", "int4"):
            raise ConfigurationError(f"a codec is none, zstd, int8 or int4, not {name}")
        from kvstore.llm.codecs.quantised import Part, Quantised

        parts = []
        for number, layer in enumerate(self._layers):
            dtype: Any = str(layer.dtype).removeprefix("torch.")
            shape = (layer.heads, self._block_tokens, layer.channels)
            parts.append(Part("value" if number % 2 else "key", dtype, shape))
        return Quantised(8 if name == "int8" else 4, parts)


class _Layer:
    """Keys or values of one layer, as the model makes them."""

    def __init__(self, tensor: torch.Tensor) -> None:
        _, self.heads, _, self.channels = tensor.shape
        self.dtype = tensor.dtype

    @property
    def token_bytes(self) -> int:
        return int(self.heads * self.channels * self.dtype.itemsize)


def _layers(model: Any) -> list[_Layer]:
    """Computes one token to see what the cache of a model consists of: keys, values, keys, ..."""
    with torch.no_grad():
        token = torch.zeros((1, 1), dtype=torch.long, device=model.device)
        past = model(input_ids=token, use_cache=True).past_key_values
    layers: list[_Layer] = []
    for layer in past.layers if isinstance(past, DynamicCache) else ():
        if not isinstance(layer, DynamicLayer) or isinstance(layer, DynamicSlidingWindowLayer):
            raise ConfigurationError(
                f"a layer keeps its past as {type(layer).__name__}: only layers that attend to the"
                " whole past can be stored by block"
            )
        layers += [_Layer(layer.keys), _Layer(layer.values)]
    if not layers:
        raise ConfigurationError(f"{type(model).__name__} makes no DynamicCache")
    if len({layer.dtype for layer in layers}) != 1:
        raise ConfigurationError("the layers' caches have different element types")
    return layers


def _layout(model: Any) -> str:
    """What decides the bytes of a block beside the weights."""
    version = ".".join(transformers.__version__.split(".")[:2])
    attention = getattr(model.config, "_attn_implementation", "")
    # Processors and GPUs round differently.
    computed = f"transformers {version} {attention} {model.device.type}"
    return f"{computed}; layer, key/value, head, token, channel"


def _fingerprint(model: Any) -> str:
    """A hash of the configuration and of a sample of every weight: other weights, other blocks."""
    configuration = model.config.to_dict()
    # A path says nothing about the bytes.
    configuration.pop("_name_or_path", None)
    digest = hashlib.sha256(json.dumps(configuration, sort_keys=True, default=str).encode())
    for name, weight in sorted(model.state_dict().items()):
        flat = weight.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // _SAMPLED)][:_SAMPLED].contiguous().cpu()
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(sample.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]
