"""DC-AE's golden files, and weights for them that numpy draws by name, so that no file has to hold any.

  python -m tests.dc_ae_fixture      makes golden/dc_ae_params.tsv and golden/dc_ae_debug.npz anew

They come from diffusers' `AutoencoderDC` (made with torch 2.13.0 and diffusers 0.42.0): the table from f128c512 on the
meta device, the numbers from the size `debug`.
"""

import pathlib
import zlib

import numpy as np

from motus_jax.models.flow_autoencoder import VARIANTS, FlowAutoencoderConfig

GOLDEN = pathlib.Path(__file__).parent / "golden"
TABLE, NUMBERS = "dc_ae_params.tsv", "dc_ae_debug.npz"
COUNTER = ".num_batches_tracked"


def weights(shapes):
    """Public name -> array; the same numbers for a name and shape everywhere."""
    return {name: _draw(name, shape) for name, shape in shapes.items()}


def _draw(name, shape):
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith(COUNTER):
        return np.asarray(rng.integers(1, 1000))
    if name.endswith("running_var") or (".norm" in name and name.endswith("weight")):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    deviation = 0.1 if len(shape) == 1 else np.prod(shape[1:]) ** -0.5
    return (deviation * rng.standard_normal(shape)).astype(np.float32)


def picture():
    """[2, 8, 12, 3] in [-1, 1]."""
    return np.random.default_rng(0).uniform(-1, 1, (2, 8, 12, 3)).astype(np.float32)


def theirs(c: FlowAutoencoderConfig):
    """The network of a config in diffusers."""
    import diffusers

    kinds = tuple("EfficientViTBlock" if attention else "ResBlock" for attention in c.attention)
    return diffusers.AutoencoderDC(
        latent_channels=c.channels, attention_head_dim=c.head_dim, encoder_block_types=kinds, decoder_block_types=kinds,
        encoder_block_out_channels=c.widths, decoder_block_out_channels=c.widths,
        encoder_layers_per_block=c.encoder_blocks, decoder_layers_per_block=c.decoder_blocks,
        encoder_qkv_multiscales=c.windows, decoder_qkv_multiscales=c.windows,
        upsample_block_type="pixel_shuffle" if c.shuffle else "interpolate",
        downsample_block_type="pixel_unshuffle" if c.shuffle else "conv",
        decoder_norm_types=tuple("batch_norm" if batch else "rms_norm" for batch in c.batch_norm),
        decoder_act_fns=tuple("relu" if batch else "silu" for batch in c.batch_norm),
    ).eval()  # fmt: skip


def main():
    """Writes both files."""
    import torch

    with torch.device("meta"):
        full = theirs(VARIANTS["f128c512"])
    trained = dict(full.named_parameters())
    rows = ["name\tshape\tkind"]
    for name, tensor in full.state_dict().items():
        rows.append(f"{name}\t{'x'.join(map(str, tensor.shape))}\t{'param' if name in trained else 'buffer'}")
    (GOLDEN / TABLE).write_text("\n".join(rows) + "\n")

    small = theirs(VARIANTS["debug"])
    drawn = weights({name: tuple(tensor.shape) for name, tensor in small.state_dict().items()})
    small.load_state_dict({name: torch.tensor(tensor) for name, tensor in drawn.items()}, strict=True)
    with torch.no_grad():
        latent = small.encode(torch.tensor(picture()).permute(0, 3, 1, 2)).latent
        found = {"latent": latent, "decoded": small.decode(latent).sample}
    np.savez_compressed(GOLDEN / NUMBERS, **{name: x.permute(0, 2, 3, 1).numpy() for name, x in found.items()})


if __name__ == "__main__":
    main()
