"""Name map of Qwen3-VL (`Qwen3VLForConditionalGeneration`, Hugging Face safetensors) <-> `models.vlm.Vlm`.

A Motus release holds the same tensors under `vlm_model.`. Three stacks of layers have three depths: language model,
vision tower and DeepStack mergers; hence groups of rules.
"""

import itertools
from collections.abc import Mapping

from motus_jax.models.vlm import VlmConfig
from motus_jax.weights import name_map
from motus_jax.weights.name_map import Array, Rule, Tree

MOTUS_PREFIX = "vlm_model."
"""Before every name in a Motus release."""

TIED = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
"""Name -> name of the same tensor: the output head, which states do not need."""

SPELLINGS: dict[str, tuple[tuple[str, str], ...]] = {
    "Hugging Face Qwen3VLForConditionalGeneration": (),
    "Hugging Face Qwen3VLModel": ((r"((?:visual|language_model)\..+)", r"model.\1"),),
    "inside a Motus release": ((r"(?:(?:und_module|action_module)\.)?vlm_model\.(.+)", r"\1"),),
}
"""Layout -> (regex, name in the map): the names that the tensors have in each public layout."""

Group = tuple[list[Rule], int]
"""Rules and the depth of their `{layer}`."""


def groups(config: VlmConfig) -> tuple[Group, ...]:
    """The whole map."""
    return (
        (_language(config), config.depth),
        (_vision(config), config.vision.depth),
        (_deepstack(config), len(config.vision.taps)),
    )


def names(config: VlmConfig) -> dict[str, tuple[int, ...]]:
    """Public name -> shape of every tensor, the tied head left out."""
    return {name: rule.shape for rules, depth in groups(config) for rule in rules for name in rule.names(depth)}


def to_tree(tensors: Mapping[str, Array], config: VlmConfig) -> Tree:
    """Our tree from tensors under Hugging Face's names; a tied head must have been compared and dropped.

    Raises:
      UserError: a tensor is missing, left over, or of another shape.
    """
    return name_map.groups_to_tree(tensors, groups(config))


def to_public(params: Tree, config: VlmConfig) -> dict[str, Array]:
    """Tensors under Hugging Face's names from our tree; the inverse of `to_tree`, bit for bit."""
    return name_map.groups_to_public(params, groups(config))


def _dense(source: str, path: str, width_in: int, width_out: int, bias: bool = True) -> list[Rule]:
    kernel = Rule(f"{source}.weight", f"{path}/kernel", "transpose", (width_out, width_in))
    return [kernel, Rule(f"{source}.bias", f"{path}/bias", "same", (width_out,))] if bias else [kernel]


def _layer_norm(source: str, path: str, width: int) -> list[Rule]:
    return [Rule(f"{source}.{theirs}", f"{path}/{ours}", "same", (width,))
            for theirs, ours in (("weight", "scale"), ("bias", "bias"))]  # fmt: skip


def _language(config: VlmConfig) -> list[Rule]:
    c, source, path = config, "model.language_model.", "language/layers"
    layer = f"{source}layers.{{layer}}."
    queries, keys = c.heads * c.head_dim, c.kv_heads * c.head_dim
    norms = [
        ("input_layernorm", "norm_attention", c.width),
        ("post_attention_layernorm", "norm_mlp", c.width),
        ("self_attn.q_norm", "norm_q", c.head_dim),
        ("self_attn.k_norm", "norm_k", c.head_dim),
    ]
    kernels = [
        ("self_attn.q_proj", "q", c.width, queries),
        ("self_attn.k_proj", "k", c.width, keys),
        ("self_attn.v_proj", "v", c.width, keys),
        ("self_attn.o_proj", "o", queries, c.width),
        ("mlp.gate_proj", "gate", c.width, c.mlp),
        ("mlp.up_proj", "up", c.width, c.mlp),
        ("mlp.down_proj", "down", c.mlp, c.width),
    ]
    dense = (_dense(f"{layer}{theirs}", f"{path}/{ours}", *widths, bias=False) for theirs, ours, *widths in kernels)
    return [
        Rule(f"{source}embed_tokens.weight", "language/token_embedding", "same", (c.vocabulary, c.width)),
        Rule(f"{source}norm.weight", "language/norm/scale", "same", (c.width,)),
        *(Rule(f"{layer}{theirs}.weight", f"{path}/{ours}/scale", "same", (width,)) for theirs, ours, width in norms),
        *itertools.chain.from_iterable(dense),
    ]


def _vision(config: VlmConfig) -> list[Rule]:
    c, w = config.vision, config.vision.width
    source, path = "model.visual.", "vision/layers"
    layer = f"{source}blocks.{{layer}}."
    kernel = (w, c.channels, c.temporal_patch, c.patch, c.patch)
    return [
        Rule(f"{source}patch_embed.proj.weight", "vision/patch_embedding/kernel", "flat_patch", kernel),
        Rule(f"{source}patch_embed.proj.bias", "vision/patch_embedding/bias", "same", (w,)),
        Rule(f"{source}pos_embed.weight", "vision/position_embedding", "same", (c.positions**2, w)),
        *_layer_norm(f"{layer}norm1", f"{path}/norm_attention", w),
        *_layer_norm(f"{layer}norm2", f"{path}/norm_ffn", w),
        *_dense(f"{layer}attn.qkv", f"{path}/qkv", w, 3 * w),
        *_dense(f"{layer}attn.proj", f"{path}/o", w, w),
        *_dense(f"{layer}mlp.linear_fc1", f"{path}/ffn/dense_0", w, c.mlp),
        *_dense(f"{layer}mlp.linear_fc2", f"{path}/ffn/dense_1", c.mlp, w),
        *_merger(f"{source}merger", "vision/merger", config, w),
    ]


def _deepstack(config: VlmConfig) -> list[Rule]:
    block = config.vision.width * config.vision.merge**2
    return _merger("model.visual.deepstack_merger_list.{layer}", "vision/deepstack_mergers", config, block)


def _merger(source: str, path: str, config: VlmConfig, norm: int) -> list[Rule]:
    block = config.vision.width * config.vision.merge**2
    return [
        *_layer_norm(f"{source}.norm", f"{path}/norm", norm),
        *_dense(f"{source}.linear_fc1", f"{path}/dense_0", block, block),
        *_dense(f"{source}.linear_fc2", f"{path}/dense_1", block, config.vision.out_width),
    ]
