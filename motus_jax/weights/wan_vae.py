"""Name maps of the Wan2.2 VAE <-> `VideoVae`: Wan's own file (`Wan2.2_VAE.pth`) and diffusers' `AutoencoderKLWan`."""

import re
from collections.abc import Iterator

from motus_jax.models.video_vae import VideoVaeConfig
from motus_jax.weights.name_map import Rule

RELEASE = VideoVaeConfig(dtype="bfloat16")
"""The release: 704,688,668 parameters. The public code computes in float32: set `dtype` for its exact numbers."""
WAN, DIFFUSERS = "Wan (.pth)", "diffusers AutoencoderKLWan"

_BLOCK = (
    ("residual.0", "norm1"), ("residual.2", "conv1"), ("residual.3", "norm2"), ("residual.6", "conv2"),
    ("shortcut", "conv_shortcut"),
)  # fmt: skip


def rules(config: VideoVaeConfig, layout: str = WAN) -> list[Rule]:
    """The whole map, under the names of `WAN` or `DIFFUSERS`; no tensor is per layer (depth 0 for `to_tree`)."""
    found = [*_encoder(config), *_decoder(config)]
    if layout == WAN:
        return found
    backward = _spelling(config, ours=0)
    return [Rule(_renamed(rule.source, backward), rule.path, rule.layout, rule.shape) for rule in found]


def _encoder(c: VideoVaeConfig) -> Iterator[Rule]:
    widths, top = c.stage_widths(), 2 * c.channels
    yield from _conv("encoder.conv1", "encoder/stem", 3 * c.patch**2, c.width)
    for i, (before, width) in enumerate(zip([c.width, *widths], widths, strict=False)):
        stage, ours = f"encoder.downsamples.{i}.downsamples", f"encoder/stage_{i}"
        yield from _blocks(stage, ours, before, width, c.blocks)
        if i < len(c.temporal):
            yield from _resample(f"{stage}.{c.blocks}", ours, width, width, c.temporal[i])
    yield from _middle_and_head("encoder", widths[-1], widths[-1], top)
    yield from _pointwise("conv1", "encoder/moments", top, top)


def _decoder(c: VideoVaeConfig) -> Iterator[Rule]:
    widths = c.decoder_widths()
    yield from _pointwise("conv2", "decoder/latent", c.channels, c.channels)
    yield from _conv("decoder.conv1", "decoder/stem", c.channels, widths[0])
    for i, (before, width) in enumerate(zip([widths[0], *widths], widths, strict=False)):
        stage, ours = f"decoder.upsamples.{i}.upsamples", f"decoder/stage_{i}"
        yield from _blocks(stage, ours, before, width, c.blocks + 1)
        if i < len(c.temporal):
            yield from _resample(f"{stage}.{c.blocks + 1}", ours, width, 2 * width, c.temporal[::-1][i])
    yield from _middle_and_head("decoder", widths[0], widths[-1], 3 * c.patch**2)


def _blocks(stage: str, ours: str, before: int, width: int, count: int) -> Iterator[Rule]:
    for j in range(count):
        yield from _block(f"{stage}.{j}", f"{ours}/block_{j}", width if j else before, width)


def _block(source: str, path: str, before: int, width: int) -> Iterator[Rule]:
    yield Rule(f"{source}.residual.0.gamma", f"{path}/norm_0/scale", "vector", (before, 1, 1, 1))
    yield from _conv(f"{source}.residual.2", f"{path}/conv_0", before, width)
    yield Rule(f"{source}.residual.3.gamma", f"{path}/norm_1/scale", "vector", (width, 1, 1, 1))
    yield from _conv(f"{source}.residual.6", f"{path}/conv_1", width, width)
    if before != width:
        yield from _pointwise(f"{source}.shortcut", f"{path}/shortcut", before, width)


def _resample(source: str, ours: str, width: int, time_width: int, temporal: bool) -> Iterator[Rule]:
    yield Rule(f"{source}.resample.1.weight", f"{ours}/space/kernel", "conv", (width, width, 3, 3))
    yield Rule(f"{source}.resample.1.bias", f"{ours}/space/bias", "same", (width,))
    if temporal:
        yield Rule(f"{source}.time_conv.weight", f"{ours}/frames/time/kernel", "patch", (time_width, width, 3, 1, 1))
        yield Rule(f"{source}.time_conv.bias", f"{ours}/frames/time/bias", "same", (time_width,))


def _middle_and_head(side: str, width: int, last: int, out: int) -> Iterator[Rule]:
    source, path = f"{side}.middle", f"{side}/middle"
    yield from _block(f"{source}.0", f"{path}/block_0", width, width)
    yield Rule(f"{source}.1.norm.gamma", f"{path}/attention/norm/scale", "vector", (width, 1, 1))
    for name, ours, features in (("to_qkv", "qkv", 3 * width), ("proj", "o", width)):
        ours = f"{path}/attention/{ours}"
        yield Rule(f"{source}.1.{name}.weight", f"{ours}/kernel", "flat_patch", (features, width, 1, 1))
        yield Rule(f"{source}.1.{name}.bias", f"{ours}/bias", "same", (features,))
    yield from _block(f"{source}.2", f"{path}/block_1", width, width)
    yield Rule(f"{side}.head.0.gamma", f"{side}/norm/scale", "vector", (last, 1, 1, 1))
    yield from _conv(f"{side}.head.2", f"{side}/head", last, out)


def _conv(source: str, path: str, width_in: int, width_out: int) -> Iterator[Rule]:
    yield Rule(f"{source}.weight", f"{path}/kernel", "conv", (width_out, width_in, 3, 3, 3))
    yield Rule(f"{source}.bias", f"{path}/bias", "same", (width_out,))


def _pointwise(source: str, path: str, width_in: int, width_out: int) -> Iterator[Rule]:
    yield Rule(f"{source}.weight", f"{path}/kernel", "flat_patch", (width_out, width_in, 1, 1, 1))
    yield Rule(f"{source}.bias", f"{path}/bias", "same", (width_out,))


def _names(config: VideoVaeConfig) -> Iterator[tuple[str, str]]:
    """(Wan's name, diffusers' name) without the last word; `#` is a number, the same in both."""
    yield "conv1", "quant_conv"
    yield "conv2", "post_quant_conv"
    for side, stages, resample, count in (
        ("encoder", ("downsamples", "down_blocks"), "downsampler", config.blocks),
        ("decoder", ("upsamples", "up_blocks"), "upsampler", config.blocks + 1),
    ):
        wan, theirs = (f"{side}.{name}.#" for name in stages)
        yield f"{side}.conv1", f"{side}.conv_in"
        yield f"{side}.head.0", f"{side}.norm_out"
        yield f"{side}.head.2", f"{side}.conv_out"
        places = (
            (f"{side}.middle.0", f"{side}.mid_block.resnets.0"),
            (f"{side}.middle.2", f"{side}.mid_block.resnets.1"),
            (f"{wan}.{stages[0]}.#", f"{theirs}.resnets.#"),
        )
        yield from ((f"{a}.{c}", f"{b}.{d}") for a, b in places for c, d in _BLOCK)
        for part in ("norm", "to_qkv", "proj"):
            yield f"{side}.middle.1.{part}", f"{side}.mid_block.attentions.0.{part}"
        for part in ("resample.1", "time_conv"):
            yield f"{wan}.{stages[0]}.{count}.{part}", f"{theirs}.{resample}.{part}"


def _spelling(config: VideoVaeConfig, ours: int) -> tuple[tuple[str, str], ...]:
    """(regex, replacement) rows; `ours` is the column of `_names` that the regexes match."""
    return tuple((_pattern(row[ours]), _replacement(row[1 - ours])) for row in _names(config))


def _pattern(name: str) -> str:
    return re.escape(name).replace(r"\#", r"(\d+)") + r"\.(\w+)"


def _replacement(name: str) -> str:
    first, *others = f"{name}.#".split("#")
    return first + "".join(f"\\{i}{text}" for i, text in enumerate(others, 1))


def _renamed(name: str, spelling: tuple[tuple[str, str], ...]) -> str:
    found = ((re.fullmatch(pattern, name), replacement) for pattern, replacement in spelling)
    return next(match.expand(replacement) for match, replacement in found if match)


SPELLINGS: dict[str, tuple[tuple[str, str], ...]] = {WAN: (), DIFFUSERS: _spelling(RELEASE, ours=1)}
"""Layout -> (regex, Wan's name): the names that the release has in each public layout."""
