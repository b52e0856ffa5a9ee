"""Name map of the public Motus checkpoints: canonical names (`video_model.wan_model.*`, `action_expert.*`,
`und_expert.*`) <-> our parameter tree, for any size in a `MotusConfig`."""

import numpy as np

from motus_jax.models.config import MotusConfig
from motus_jax.models.layers import position_table
from motus_jax.weights.name_map import Rule

POSITION_BUFFER = "action_expert.input_encoder.pos_embedding"
"""A buffer in the public state dict; we compute it (`position_table`)."""

_WAN = "video_model.wan_model."


def rules(config: MotusConfig) -> list[Rule]:
    """The whole map, without the position buffer."""
    return [*_video(config), *_video_layers(config), *_action(config), *_action_layers(config), *_understanding(config)]


def position_buffer(config: MotusConfig, chunk: int) -> np.ndarray:
    """The public buffer [1, rows, D]: T rows in the action-only form, else T + 2 + registers, the last unused."""
    rows = chunk + 2 + config.action.registers if config.action.with_state else chunk
    return position_table(rows, config.action.width)[None]


def _dense(source: str, path: str, width_in: int, width_out: int, bias: bool = True) -> list[Rule]:
    kernel = Rule(f"{source}.weight", f"{path}/kernel", "transpose", (width_out, width_in))
    return [kernel, Rule(f"{source}.bias", f"{path}/bias", "same", (width_out,))] if bias else [kernel]


def _mlp(source: str, path: str, widths: list[int], indices: list[int]) -> list[Rule]:
    """`indices` are the positions of the dense layers in the public `nn.Sequential`."""
    return [
        rule
        for i, index in enumerate(indices)
        for rule in _dense(f"{source}.{index}", f"{path}/dense_{i}", widths[i], widths[i + 1])
    ]


def _time(source: str, path: str, width: int, frequencies: int) -> list[Rule]:
    return [
        *_mlp(f"{source}time_embedding", f"{path}/time/embedding", [frequencies, width, width], [0, 2]),
        *_dense(f"{source}time_projection.1", f"{path}/time/projection", width, 6 * width),
    ]


def _video(config: MotusConfig) -> list[Rule]:
    c, w = config.video, config.video.width
    patch, kernel = int(np.prod(c.patch)) * c.latent_channels, (w, c.latent_channels, *c.patch)
    return [
        Rule(f"{_WAN}patch_embedding.weight", "video/patch_embedding/kernel", "patch", kernel),
        Rule(f"{_WAN}patch_embedding.bias", "video/patch_embedding/bias", "same", (w,)),
        *_mlp(f"{_WAN}text_embedding", "video/text_embedding", [c.text_width, w, w], [0, 2]),
        *_time(_WAN, "video", w, c.frequencies),
        Rule(f"{_WAN}head.modulation", "video/head/modulation", "squeeze", (1, 2, w)),
        *_dense(f"{_WAN}head.head", "video/head/dense", w, patch),
    ]


def _video_layers(config: MotusConfig) -> list[Rule]:
    c, w = config.video, config.video.width
    source, path = f"{_WAN}blocks.{{layer}}.", "layers/video/"
    found = [Rule(f"{source}modulation", f"{path}modulation", "squeeze", (1, 6, w))]
    for public, ours in (("self_attn", "self_attention"), ("cross_attn", "cross_attention")):
        for name in "qkvo":
            found += _dense(f"{source}{public}.{name}", f"{path}{ours}/{name}", w, w)
        for name in ("norm_q", "norm_k"):
            found.append(Rule(f"{source}{public}.{name}.weight", f"{path}{ours}/{name}/scale", "same", (w,)))
    found.append(Rule(f"{source}norm3.weight", f"{path}cross_norm/scale", "same", (w,)))
    found.append(Rule(f"{source}norm3.bias", f"{path}cross_norm/bias", "same", (w,)))
    return found + _mlp(f"{source}ffn", f"{path}ffn", [w, c.mlp, w], [0, 2])


def _narrow_layer(source: str, word: str, path: str, width: int, mlp: int, config: MotusConfig) -> list[Rule]:
    heads, head_dim, joint = config.video.heads, config.video.head_dim, config.video.width
    stacked = (3, heads, width, head_dim)
    return [
        Rule(f"{source}wan_{word}_qkv", f"{path}attention/qkv_projection/kernel", "stacked_qkv", stacked),
        *_dense(f"{source}wan_{word}_o", f"{path}attention/o", joint, width, bias=False),
        Rule(f"{source}wan_{word}_norm_q.weight", f"{path}attention/norm_q/scale", "same", (joint,)),
        Rule(f"{source}wan_{word}_norm_k.weight", f"{path}attention/norm_k/scale", "same", (joint,)),
        *_mlp(f"{source}ffn", f"{path}ffn", [width, mlp, width], [0, 2]),
    ]


def _action(config: MotusConfig) -> list[Rule]:
    c, w = config.action, config.action.width
    source = "action_expert."
    found = _mlp(f"{source}input_encoder.action_encoder", "action/action_encoder", [c.action_dim, w, w, w], [0, 2, 4])
    if c.with_state:
        widths = [c.state_dim, w, w, w]
        found += _mlp(f"{source}input_encoder.state_encoder", "action/state_encoder", widths, [0, 2, 4])
        found.append(Rule(f"{source}registers", "action/registers", "squeeze", (1, c.registers, w)))
    return [
        *found,
        *_time(source, "action", w, c.frequencies),
        Rule(f"{source}decoder.modulation", "action/decoder/modulation", "squeeze", (1, 2, w)),
        *_dense(f"{source}decoder.action_head.0", "action/decoder/dense", w, c.action_dim),
    ]


def _action_layers(config: MotusConfig) -> list[Rule]:
    c, source, path = config.action, "action_expert.blocks.{layer}.", "layers/action/"
    modulation = Rule(f"{source}modulation", f"{path}modulation", "squeeze", (1, 6, c.width))
    return [modulation, *_narrow_layer(source, "action", path, c.width, c.mlp, config)]


def _understanding(config: MotusConfig) -> list[Rule]:
    c, w = config.understanding, config.understanding.width
    source = "und_expert.blocks.{layer}."
    return [
        *_mlp("und_expert.vlm_adapter", "understanding/adapter", [c.input_width, w, w, w], [0, 2, 4]),
        *_narrow_layer(source, "und", "layers/understanding/", w, c.mlp, config),
    ]
