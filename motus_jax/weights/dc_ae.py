"""Name map of DC-AE <-> `FlowAutoencoder`: diffusers' `AutoencoderDC` (`mit-han-lab/dc-ae-*-diffusers`)."""

from collections.abc import Iterator

from motus_jax.models.flow_autoencoder import FlowAutoencoderConfig
from motus_jax.models.flow_autoencoder_blocks import EXPANSION
from motus_jax.weights.name_map import Rule

DIFFUSERS = "diffusers AutoencoderDC"
SPELLINGS: dict[str, tuple[tuple[str, str], ...]] = {DIFFUSERS: ()}
"""Layout -> (regex, name in the map)."""
COUNTER = "num_batches_tracked"
"""What a batch norm stores besides its numbers: the training steps that its statistics saw."""


def rules(config: FlowAutoencoderConfig) -> list[Rule]:
    """The whole map; no tensor is per layer (depth 0 for `to_tree`)."""
    return [*_encoder(config), *_decoder(config)]


def counters(config: FlowAutoencoderConfig) -> tuple[str, ...]:
    """Public names of the batch norms' counters, which are not among the rules: nothing is computed from them."""
    batch = [rule.source for rule in rules(config) if rule.source.endswith(".running_mean")]
    return tuple(f"{name.rpartition('.')[0]}.{COUNTER}" for name in batch)


def _encoder(c: FlowAutoencoderConfig) -> Iterator[Rule]:
    if c.encoder_blocks[0]:
        yield from _conv("encoder.conv_in", "encoder/stem", 3, c.widths[0])
    else:
        yield from _conv("encoder.conv_in.conv", "encoder/stem/conv", 3, _down(c, c.widths[1]))
    for i, count in enumerate(c.encoder_blocks):
        source, path = f"encoder.down_blocks.{i}", f"encoder/stage_{i}"
        for j in range(count):
            yield from _block(c, i, f"{source}.{j}", f"{path}/block_{j}", False)
        if count and i + 1 < len(c.widths):
            yield from _conv(f"{source}.{count}.conv", f"{path}/down/conv", c.widths[i], _down(c, c.widths[i + 1]))
    yield from _conv("encoder.conv_out", "encoder/head", c.widths[-1], c.channels)


def _decoder(c: FlowAutoencoderConfig) -> Iterator[Rule]:
    yield from _conv("decoder.conv_in", "decoder/stem", c.channels, c.widths[-1])
    for i, count in enumerate(c.decoder_blocks):
        source, path = f"decoder.up_blocks.{i}", f"decoder/stage_{i}"
        has_up = count > 0 and i + 1 < len(c.widths)
        if has_up:
            yield from _conv(f"{source}.0.conv", f"{path}/up/conv", c.widths[i + 1], _up(c, c.widths[i]))
        for j in range(count):
            yield from _block(c, i, f"{source}.{j + has_up}", f"{path}/block_{j}", c.batch_norm[i])
    has_first = c.decoder_blocks[0] > 0
    last = c.widths[0 if has_first else 1]
    yield from _norm("decoder.norm_out", "decoder/norm", last, False)
    if has_first:
        yield from _conv("decoder.conv_out", "decoder/head", last, 3)
    else:
        yield from _conv("decoder.conv_out.conv", "decoder/head/conv", last, _up(c, 3))


def _down(c: FlowAutoencoderConfig, width: int) -> int:
    """Results of the convolution of a `Down` that makes `width` channels."""
    return width // 4 if c.shuffle else width


def _up(c: FlowAutoencoderConfig, width: int) -> int:
    return 4 * width if c.shuffle else width


def _block(c: FlowAutoencoderConfig, stage: int, source: str, path: str, batch_norm: bool) -> Iterator[Rule]:
    width = c.widths[stage]
    if not c.attention[stage]:
        yield from _conv(f"{source}.conv1", f"{path}/conv_0", width, width)
        yield Rule(f"{source}.conv2.weight", f"{path}/conv_1/kernel", "conv", (width, width, 3, 3))
        yield from _norm(f"{source}.norm", f"{path}/norm", width, batch_norm)
        return
    yield from _attention(c, stage, f"{source}.attn", f"{path}/attention", batch_norm)
    source, path, hidden = f"{source}.conv_out", f"{path}/gated", 2 * EXPANSION * width
    yield Rule(f"{source}.conv_inverted.weight", f"{path}/widen/kernel", "flat_patch", (hidden, width, 1, 1))
    yield Rule(f"{source}.conv_inverted.bias", f"{path}/widen/bias", "same", (hidden,))
    yield Rule(f"{source}.conv_depth.weight", f"{path}/window/kernel", "conv", (hidden, 1, 3, 3))
    yield Rule(f"{source}.conv_depth.bias", f"{path}/window/bias", "same", (hidden,))
    yield Rule(f"{source}.conv_point.weight", f"{path}/narrow/kernel", "flat_patch", (width, hidden // 2, 1, 1))
    yield from _norm(f"{source}.norm", f"{path}/norm", width, False)


def _attention(c: FlowAutoencoderConfig, stage: int, source: str, path: str, batch_norm: bool) -> Iterator[Rule]:
    width, windows = c.widths[stage], c.windows[stage]
    for name in "qkv":
        yield Rule(f"{source}.to_{name}.weight", f"{path}/{name}/kernel", "transpose", (width, width))
    for k, window in enumerate(windows):
        scale = f"{source}.to_qkv_multiscale.{k}"
        yield Rule(f"{scale}.proj_in.weight", f"{path}/window_{k}/kernel", "conv", (3 * width, 1, window, window))
        yield Rule(f"{scale}.proj_out.weight", f"{path}/mix_{k}/kernel", "flat_patch", (3 * width, c.head_dim, 1, 1))
    yield Rule(f"{source}.to_out.weight", f"{path}/o/kernel", "transpose", (width, width * (1 + len(windows))))
    yield from _norm(f"{source}.norm_out", f"{path}/norm", width, batch_norm)


def _norm(source: str, path: str, width: int, batch_norm: bool) -> Iterator[Rule]:
    yield Rule(f"{source}.weight", f"{path}/scale", "same", (width,))
    yield Rule(f"{source}.bias", f"{path}/bias", "same", (width,))
    if batch_norm:
        yield Rule(f"{source}.running_mean", f"{path}/mean", "same", (width,))
        yield Rule(f"{source}.running_var", f"{path}/variance", "same", (width,))


def _conv(source: str, path: str, width_in: int, width_out: int) -> Iterator[Rule]:
    yield Rule(f"{source}.weight", f"{path}/kernel", "conv", (width_out, width_in, 3, 3))
    yield Rule(f"{source}.bias", f"{path}/bias", "same", (width_out,))
