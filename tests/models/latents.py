"""Tiny configurations of the multi-head latent attentions of transformers: rank 12, rope 4, heads of 8 + 4 and 6 channels.

Not here: GLM-5-next, whose keys have no rope part. Dots3-Note and Mistral-Large-4 are here as the backbones of their text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import transformers as hf
from packaging.version import Version
from transformers import PreTrainedModel

from mla_compiler.ir import Site

CAUSAL = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 99,
    "intermediate_size": 48, "max_position_embeddings": 128, "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0,
}
LATENT = {
    "q_lora_rank": 16, "kv_lora_rank": 12, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 6,
}
EXPERTS = {
    "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "moe_intermediate_size": 16,
    "first_k_dense_replace": 1, "n_shared_experts": 1,
}
INDEXER = {"index_topk": 6, "index_head_dim": 8, "index_n_heads": 2}
LONGCAT = {
    "ffn_hidden_size": 48, "expert_ffn_hidden_size": 16, "n_routed_experts": 4, "moe_topk": 2, "zero_expert_num": 2,
    "num_layers": 1, "num_hidden_layers": 2, "head_dim": 4,
}
KIMI = {
    "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "linear_head_dim": 8, "linear_num_heads": 4,
    "layer_types": ["linear_attention", "full_attention"], "mlp_layer_types": ["dense", "sparse"],
}
BAILING = {
    "num_local_experts": 4, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "moe_intermediate_size": 16,
    "head_dim": 8, "layer_types": ["linear_attention", "full_attention"], "mlp_layer_types": ["dense", "sparse"],
}
SIZES: Mapping[str, tuple[str, dict[str, object]]] = {
    "deepseek_v2": ("DeepseekV2", EXPERTS),
    "deepseek_v3": ("DeepseekV3", EXPERTS),
    "deepseek_v32": ("DeepseekV32", {**EXPERTS, **INDEXER}),
    "glm4_moe_lite": ("Glm4MoeLite", EXPERTS),
    "glm_moe_dsa": ("GlmMoeDsa", {**EXPERTS, **INDEXER}),
    "minicpm3": ("MiniCPM3", {}),
    "longcat_flash": ("LongcatFlash", LONGCAT),
    "mistral4": ("Mistral4", EXPERTS),
    "kimi_linear": ("KimiLinear", KIMI),
    "youtu": ("Youtu", {}),
    "axk1": ("AXK1", EXPERTS),
    "axk2": ("AXK2", {**EXPERTS, **INDEXER}),
    "bailing_hybrid": ("BailingHybrid", BAILING),
    "hy_v4": ("HYV4", {**EXPERTS, "num_local_experts": 4}),
}
BACKBONES: Mapping[str, dict[str, object]] = {"Dots3NoteText": EXPERTS, "MistralLarge4Text": {**EXPERTS, **INDEXER}}
BREAKS = ("longcat_flash",)
"""Those whose graph Dynamo breaks."""
SPARSE = ("deepseek_v32", "glm_moe_dsa", "axk2")
OLD = Version(hf.__version__) < Version("5.23")
"""Sparse attentions cache the keys and values of every head, seen in 5.17: then there is no latent in a decode step."""


def builder(name: str) -> Callable[[], PreTrainedModel]:
    """The model, with weights as transformers draws them."""
    prefix, changes = SIZES[name]

    def build() -> PreTrainedModel:
        config = getattr(hf, f"{prefix}Config")(**{**CAUSAL, **LATENT, **changes})
        return getattr(hf, f"{prefix}ForCausalLM")(config)

    return build


def backbone(prefix: str) -> PreTrainedModel:
    """The text model inside a model of text and images, with weights as transformers draws them."""
    config = getattr(hf, f"{prefix}Config")(**{**CAUSAL, **LATENT, **BACKBONES[prefix]})
    return getattr(hf, f"{prefix}Model")(config).eval()


NAMES = tuple(name for name, (prefix, _) in SIZES.items() if hasattr(hf, f"{prefix}Config"))


def sites(name: str) -> int:
    """Attentions with a softmax in the two layers."""
    return 1 if name in ("kimi_linear", "bailing_hybrid") else 2


def assert_by_cost(found: list[Site], name: str) -> None:
    """A step of one query is over the latents, whatever the length; a prompt that is seen once is expanded."""
    assert found
    for site in found:
        queries = site.shape.partition("]")[0].split(",")[2].strip()
        if OLD and name in SPARSE:
            continue
        assert site.latent.startswith("absorbed, cheaper" if queries == "1" else "expanded, dearer"), (site.shape, site.latent)
