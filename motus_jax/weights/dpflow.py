"""Name map of DPFlow <-> `FlowNetwork`: ptlflow's `dpflow` (`dpflow-*.ckpt`, whose `state_dict` holds the tensors)."""

from collections.abc import Iterator

from motus_jax.models.flow_network import FINEST, FlowNetworkConfig
from motus_jax.models.flow_network_blocks import EXPANSION, WINDOW
from motus_jax.weights.name_map import Rule

PTLFLOW = "ptlflow dpflow"
SPELLINGS: dict[str, tuple[tuple[str, str], ...]] = {PTLFLOW: ()}
"""Layout -> (regex, name in the map)."""


def groups(config: FlowNetworkConfig) -> list[tuple[list[Rule], int]]:
    """(rules, how many layers their per-layer tensors have) of the whole map."""
    return [
        ([*_encoder(config), *_update(config)], 0),
        (list(_encoder_units(config)), config.depth),
        (list(_update_units(config)), config.update_depth),
    ]


def _encoder(c: FlowNetworkConfig) -> Iterator[Rule]:
    first, second, width = c.widths
    yield from _stem("fnet.stem", "encoder/stem", first, second, 2 * width)
    yield from _stem("fnet.lowres_stem", "encoder/low_stem", first, second, width)
    for source, path in (("fnet.forward_gru", "encoder/down_gru"), ("fnet.backward_gru", "encoder/up_gru")):
        for gate in "zrq":
            yield from _conv(f"{source}.conv{gate}", f"{path}/{gate}", 2 * width, width, 3)
    yield from _conv("fnet.down_gru", "encoder/reduce", width, width, 3)
    yield Rule("fnet.up_gru.weight", "encoder/enlarge/kernel", "transposed_conv", (width, width, 4, 4))
    yield Rule("fnet.up_gru.bias", "encoder/enlarge/bias", "same", (width,))
    yield from _conv("fnet.rec_stage.conv_transition.proj", "encoder/down_stage/reduce", width, width, 3)
    yield from _dense("fnet.out_merge_conv", "encoder/merge", 3 * width, width)
    yield from _dense("fnet.out_1x1", "encoder/out", width, c.features)


def _encoder_units(c: FlowNetworkConfig) -> Iterator[Rule]:
    width = c.widths[2]
    for stage, ours in (("rec_stage", "down_stage"), ("back_stage", "up_stage"), ("out_stages", "out_stage")):
        source, path = f"fnet.{stage}.blocks.{{layer}}", f"encoder/{ours}/units"
        yield Rule(f"{source}.layer_scale", f"{path}/scale", "same", (width,))
        yield from _gated(f"{source}.conv_self", f"{path}/own", width, "x")
        yield from _dense(f"{source}.conv_cross.merge_fc_g", f"{path}/merge", 2 * width, width)
        yield from _gated(f"{source}.conv_cross", f"{path}/cross", width, "y")


def _stem(source: str, path: str, first: int, second: int, out: int) -> Iterator[Rule]:
    yield from _conv(f"{source}.conv1", f"{path}/conv", 3, first, WINDOW)
    for layer, widths in ((1, (first, first)), (2, (first, second))):
        for j, width_in in enumerate((widths[0], widths[1])):
            one, block = f"{source}.layer{layer}.{j}", f"{path}/block_{2 * (layer - 1) + j}"
            yield from _conv(f"{one}.conv1", f"{block}/conv_0", width_in, widths[1], 3)
            yield from _conv(f"{one}.conv2", f"{block}/conv_1", widths[1], widths[1], 3)
            if layer == 2 and j == 0:
                yield from _dense(f"{one}.downsample.0", f"{block}/shortcut", width_in, widths[1])
    yield from _dense(f"{source}.conv2", f"{path}/out", second, out)


def _gated(source: str, path: str, width: int, value: str) -> Iterator[Rule]:
    hidden = EXPANSION * width
    for letter, ours in (("g", "gate"), (value, "value")):
        yield from _dense(f"{source}.fc1_{letter}", f"{path}/{ours}", width, hidden)
        window = f"{source}.dwconv_{letter}.dwconv"
        yield Rule(f"{window}.weight", f"{path}/{ours}_window/kernel", "conv", (hidden, 1, WINDOW, WINDOW))
        yield Rule(f"{window}.bias", f"{path}/{ours}_window/bias", "same", (hidden,))
    yield from _dense(f"{source}.fc2", f"{path}/out", hidden, width)


def _update(c: FlowNetworkConfig) -> Iterator[Rule]:
    source, path = "update_block.encoder", "update/motion"
    yield from _dense(f"{source}.convc1", f"{path}/correlation_0", (2 * c.radius + 1) ** 2, c.correlation[0])
    yield from _conv(f"{source}.convc2", f"{path}/correlation_1", *c.correlation, 3)
    yield from _conv(f"{source}.convf1", f"{path}/flow_0", 2, c.flow[0], WINDOW)
    yield from _conv(f"{source}.convf2", f"{path}/flow_1", *c.flow, 3)
    yield from _conv(f"{source}.conv", f"{path}/out", c.correlation[1] + c.flow[1], c.motion - 2, 3)
    for gate in "zrq":
        source, path = f"update_block.gru_list.0.conv{gate}", f"update/gate_{gate}"
        yield from _dense(f"{source}.conv_transition.proj", f"{path}/narrow", 2 * c.context + c.motion, c.context)
    yield from _conv("update_block.flow_head.conv1", "update/head", c.context, c.head, 3)
    yield from _conv("update_block.flow_head.conv2", "update/change", c.head, 6, 3)
    yield from _conv("update_block.mask.conv1", "upsampling/hidden", c.context, 2 * c.context, 3)
    yield from _dense("update_block.mask.conv2", "upsampling/out", 2 * c.context, 9 * FINEST**2)


def _update_units(c: FlowNetworkConfig) -> Iterator[Rule]:
    for gate in "zrq":
        source, path = f"update_block.gru_list.0.conv{gate}.blocks.{{layer}}", f"update/gate_{gate}/units"
        yield Rule(f"{source}.layer_scale", f"{path}/scale", "same", (c.context,))
        yield from _gated(f"{source}.conv_self", f"{path}/own", c.context, "x")


def _conv(source: str, path: str, width_in: int, width_out: int, window: int) -> Iterator[Rule]:
    yield Rule(f"{source}.weight", f"{path}/kernel", "conv", (width_out, width_in, window, window))
    yield Rule(f"{source}.bias", f"{path}/bias", "same", (width_out,))


def _dense(source: str, path: str, width_in: int, width_out: int) -> Iterator[Rule]:
    yield Rule(f"{source}.weight", f"{path}/kernel", "flat_patch", (width_out, width_in, 1, 1))
    yield Rule(f"{source}.bias", f"{path}/bias", "same", (width_out,))
