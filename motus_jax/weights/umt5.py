"""Name map of the umT5 encoder file of Wan2.2 (`models_t5_umt5-xxl-enc-bf16.pth`) <-> `TextEncoder`."""

from motus_jax.models.text_encoder import TextEncoderConfig
from motus_jax.weights.name_map import Rule

XXL = TextEncoderConfig(
    vocabulary=256384, width=4096, heads=64, head_dim=64, mlp=10240, depth=24, dtype="bfloat16"
)
"""umT5-xxl as Wan2.2 uses it: 5,680,910,336 parameters."""


def rules(config: TextEncoderConfig) -> list[Rule]:
    """The whole map."""
    c, joint = config, config.heads * config.head_dim
    source = "blocks.{layer}."
    kernels = [
        *((f"attn.{name}", name, c.width, joint) for name in "qkv"),
        ("attn.o", "o", joint, c.width),
        ("ffn.gate.0", "gate", c.width, c.mlp),
        ("ffn.fc1", "up", c.width, c.mlp),
        ("ffn.fc2", "down", c.mlp, c.width),
    ]
    return [
        Rule("token_embedding.weight", "token_embedding", "same", (c.vocabulary, c.width)),
        Rule("norm.weight", "norm/scale", "same", (c.width,)),
        Rule(f"{source}norm1.weight", "layers/norm_attention/scale", "same", (c.width,)),
        Rule(f"{source}norm2.weight", "layers/norm_mlp/scale", "same", (c.width,)),
        Rule(f"{source}pos_embedding.embedding.weight", "layers/position_bias", "same", (c.buckets, c.heads)),
        *(Rule(f"{source}{public}.weight", f"layers/{ours}/kernel", "transpose", (width_out, width_in))
          for public, ours, width_in, width_out in kernels),
    ]
