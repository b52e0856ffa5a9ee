"""DPFlow's golden files, and weights for them that numpy draws by name, so that no file has to hold any.

  python -m tests.dpflow_fixture      makes golden/dpflow_params.tsv and golden/dpflow_debug.npz anew

They come from ptlflow's `dpflow` (made with torch 2.13.0 and ptlflow 0.4.2, installed with --no-deps): the table from
the release's size, the numbers from the size `debug`.
"""

import importlib.util
import pathlib
import sys
import types
import zlib

import numpy as np

from motus_jax.models.flow_network import VARIANTS, FlowNetworkConfig

GOLDEN = pathlib.Path(__file__).parent / "golden"
TABLE, NUMBERS = "dpflow_params.tsv", "dpflow_debug.npz"
SIZE = (70, 99)
"""Height, width: no multiple of the stride either way, by an odd number of pixels one way."""


def weights(shapes):
    """Public name -> array; the same numbers for a name and shape everywhere. Larger ones make the
    corrections chaotic: roundings of float32 then grow to whole pixels, in either library."""
    return {name: _draw(name, shape) for name, shape in shapes.items()}


def _draw(name, shape):
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("layer_scale"):
        return rng.uniform(0.05, 0.3, shape).astype(np.float32)
    deviation = 0.1 if len(shape) == 1 else np.prod(shape[1:]) ** -0.5
    return (deviation * rng.standard_normal(shape)).astype(np.float32)


def pictures(height, width):
    """Two RGB pictures [1, H, W, 3], in [0, 1]."""
    return np.random.default_rng(height).random((2, 1, height, width, 3), np.float32)


def theirs(c: FlowNetworkConfig):
    """The network of a config in ptlflow, whose package imports every model's requirements; this needs DPFlow's."""
    if "ptlflow" not in sys.modules:
        place = pathlib.Path(importlib.util.find_spec("ptlflow").origin).parent
        for name in ("ptlflow", "ptlflow.models"):
            sys.modules[name] = types.ModuleType(name)
            sys.modules[name].__path__ = [str(place.joinpath(*name.split(".")[1:]))]
    from ptlflow.models.dpflow.dpflow import dpflow

    return dpflow(
        iters_per_level=c.iterations, corr_range=c.radius, enc_depth=c.depth, enc_hidden_chs=list(c.widths),
        enc_out_1x1_chs=str(c.features), dec_gru_depth=c.update_depth, dec_net_chs=c.context, dec_inp_chs=c.context,
        dec_motion_chs=c.motion, dec_flow_head_chs=c.head, dec_motenc_corr_hidden_chs=c.correlation[0],
        dec_motenc_corr_out_chs=c.correlation[1], dec_motenc_flow_hidden_chs=c.flow[0],
        dec_motenc_flow_out_chs=c.flow[1],
    ).eval()  # fmt: skip


def their_flow(model, first, second):
    """[B, H, W, 2]; the package's pictures are BGR."""
    import torch

    both = torch.tensor(np.stack([first, second], 1)[..., ::-1].copy()).permute(0, 1, 4, 2, 3)
    with torch.no_grad():
        return model({"images": both})["flows"][:, 0].permute(0, 2, 3, 1).numpy()


def main():
    """Writes both files."""
    import torch

    rows = [f"{name}\t{'x'.join(map(str, x.shape))}" for name, x in theirs(VARIANTS["dpflow"]).state_dict().items()]
    (GOLDEN / TABLE).write_text("\n".join(["name\tshape", *rows]) + "\n")
    small = theirs(VARIANTS["debug"])
    drawn = weights({name: tuple(tensor.shape) for name, tensor in small.state_dict().items()})
    small.load_state_dict({name: torch.tensor(tensor) for name, tensor in drawn.items()}, strict=True)
    np.savez_compressed(GOLDEN / NUMBERS, flow=their_flow(small, *pictures(*SIZE)))


if __name__ == "__main__":
    main()
