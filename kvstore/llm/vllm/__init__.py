"""The vLLM connector: KV blocks of vLLM engines in a kvstore. Made for vLLM 0.32.

    --kv-transfer-config '{"kv_connector": "KvStoreConnector",
                           "kv_connector_module_path": "kvstore.llm.vllm",
                           "kv_role": "kv_both", "kv_load_failure_policy": "recompute",
                           "kv_connector_extra_config": {"target": "kv://host:7400"}}'

`kvstore.llm.vllm.settings` has the other keys of the extra config. Without `recompute` a block that
cannot be loaded ends its request: vLLM's default policy is `fail`.
"""

from __future__ import annotations

from kvstore.llm.vllm.connector import KvStoreConnector

__all__ = ["KvStoreConnector"]
