"""Name map of the umT5 encoder file of Wan2.2 (`models_t5_umt5-xxl-enc-bf16.pth`) <-> `TextEncoder`."""

from motus_jax.models.text_encoder import TextEncoderConfig
from motus_jax.weights.name_map import Rule


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


_HF = r"encoder\.block\.(\d+)\.layer\."
SPELLINGS: dict[str, tuple[tuple[str, str], ...]] = {
    "Wan (.pth)": (),
    "Hugging Face UMT5EncoderModel": (
        (r"(?:shared|encoder\.embed_tokens)\.weight", "token_embedding.weight"),
        (r"encoder\.final_layer_norm\.weight", "norm.weight"),
        (_HF + r"0\.layer_norm\.weight", r"blocks.\1.norm1.weight"),
        (_HF + r"1\.layer_norm\.weight", r"blocks.\1.norm2.weight"),
        (_HF + r"0\.SelfAttention\.([qkvo])\.weight", r"blocks.\1.attn.\2.weight"),
        (_HF + r"0\.SelfAttention\.relative_attention_bias\.weight", r"blocks.\1.pos_embedding.embedding.weight"),
        (_HF + r"1\.DenseReluDense\.wi_0\.weight", r"blocks.\1.ffn.gate.0.weight"),
        (_HF + r"1\.DenseReluDense\.wi_1\.weight", r"blocks.\1.ffn.fc1.weight"),
        (_HF + r"1\.DenseReluDense\.wo\.weight", r"blocks.\1.ffn.fc2.weight"),
    ),
}
"""Layout -> (regex, name in the map above): the names that the encoder has in each public layout."""
