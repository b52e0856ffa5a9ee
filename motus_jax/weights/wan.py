"""Name map of Wan2.2-TI2V-5B's DiT (`diffusion_pytorch_model*.safetensors`) <-> the video expert of our Motus tree.

The stage-1 release of Motus is the same network, so the rules are those of `weights/motus.py` without their prefix.
"""

import dataclasses

from motus_jax.models.config import MotusConfig
from motus_jax.weights import motus
from motus_jax.weights.name_map import Rule

PREFIX = "video_model.wan_model."


def rules(config: MotusConfig) -> list[Rule]:
    """The video expert under Wan's own names (`blocks.0.self_attn.q.weight`), 825 tensors at full size."""
    return [
        dataclasses.replace(rule, source=rule.source.removeprefix(PREFIX))
        for rule in motus.rules(config)
        if rule.source.startswith(PREFIX)
    ]


_BLOCK = r"blocks\.(\d+)\."
SPELLINGS: dict[str, tuple[tuple[str, str], ...]] = {
    "Wan": (),
    "Wan under a prefix": ((r"(?:(?:(?:video|action)_module\.)?video_model\.wan_model|wan_model|dit)\.(.+)", r"\1"),),
    "diffusers WanTransformer3DModel": (
        (r"condition_embedder\.time_embedder\.linear_1\.(\w+)", r"time_embedding.0.\1"),
        (r"condition_embedder\.time_embedder\.linear_2\.(\w+)", r"time_embedding.2.\1"),
        (r"condition_embedder\.time_proj\.(\w+)", r"time_projection.1.\1"),
        (r"condition_embedder\.text_embedder\.linear_1\.(\w+)", r"text_embedding.0.\1"),
        (r"condition_embedder\.text_embedder\.linear_2\.(\w+)", r"text_embedding.2.\1"),
        (r"scale_shift_table", "head.modulation"),
        (r"proj_out\.(\w+)", r"head.head.\1"),
        (_BLOCK + r"scale_shift_table", r"blocks.\1.modulation"),
        (_BLOCK + r"attn1\.to_([qkv])\.(\w+)", r"blocks.\1.self_attn.\2.\3"),
        (_BLOCK + r"attn2\.to_([qkv])\.(\w+)", r"blocks.\1.cross_attn.\2.\3"),
        (_BLOCK + r"attn1\.to_out\.0\.(\w+)", r"blocks.\1.self_attn.o.\2"),
        (_BLOCK + r"attn2\.to_out\.0\.(\w+)", r"blocks.\1.cross_attn.o.\2"),
        (_BLOCK + r"attn1\.(norm_[qk])\.weight", r"blocks.\1.self_attn.\2.weight"),
        (_BLOCK + r"attn2\.(norm_[qk])\.weight", r"blocks.\1.cross_attn.\2.weight"),
        (_BLOCK + r"norm2\.(\w+)", r"blocks.\1.norm3.\2"),
        (_BLOCK + r"ffn\.net\.0\.proj\.(\w+)", r"blocks.\1.ffn.0.\2"),
        (_BLOCK + r"ffn\.net\.2\.(\w+)", r"blocks.\1.ffn.2.\2"),
    ),
}
"""Layout -> (regex, Wan's name): the names that the network has in each public layout.

The modulation rows of diffusers lie in the same order; its `norm2` is Wan's `norm3`, the affine one before the
cross-attention.
"""
