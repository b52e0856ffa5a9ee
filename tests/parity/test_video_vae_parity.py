"""The video VAE against diffusers' `AutoencoderKLWan` in its Wan2.2 form, through the name map in both directions."""

import numpy as np
import pytest

from motus_jax.models.video_vae import VideoVae, VideoVaeConfig
from motus_jax.weights import wan_vae
from motus_jax.weights.name_map import to_public, to_tree

pytestmark = pytest.mark.thorough

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

TOLERANCE = 5e-5
SMALL = VideoVaeConfig(
    width=8, decoder_width=12, channels=4, latent_mean=(0.1, -0.2, 0.3, 0.0), latent_std=(0.5, 1.0, 1.5, 2.0)
)


def theirs(config):
    """The same network there."""
    return diffusers.AutoencoderKLWan(
        base_dim=config.width, decoder_base_dim=config.decoder_width, z_dim=config.channels,
        dim_mult=list(config.multipliers), num_res_blocks=config.blocks, temperal_downsample=list(config.temporal),
        latents_mean=list(config.latent_mean), latents_std=list(config.latent_std), is_residual=True,
        in_channels=3 * config.patch**2, out_channels=3 * config.patch**2, patch_size=config.patch,
        scale_factor_spatial=config.pixels,
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def pair():
    """Their network with every parameter random, our parameters from its state, and the state."""
    torch.manual_seed(0)
    model = theirs(SMALL)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape)
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    return model, to_tree(state, wan_vae.rules(SMALL, wan_vae.DIFFUSERS), 0), state


@pytest.mark.parametrize(
    ("batch", "frames", "height", "width"), [(2, 1, 48, 32), (2, 5, 32, 48), (1, 9, 64, 16), (1, 13, 32, 32)]
)
def test_encode_and_decode_equal_diffusers(pair, batch, frames, height, width):
    model, params, _ = pair
    vae = VideoVae(SMALL)
    video = np.random.default_rng(frames).uniform(-1, 1, (batch, frames, height, width, 3)).astype(np.float32)
    with torch.no_grad():
        mean = model.encode(torch.tensor(video).permute(0, 4, 1, 2, 3)).latent_dist.mode()
        decoded = model.decode(mean).sample.permute(0, 2, 3, 4, 1).numpy()
    expected = (mean.permute(0, 2, 3, 4, 1).numpy() - SMALL.latent_mean) / SMALL.latent_std
    assert expected.std() > 0.05 and decoded.std() > 0.05
    latents = vae.encode(params, video)
    np.testing.assert_allclose(latents, expected, atol=TOLERANCE)
    np.testing.assert_allclose(vae.decode(params, expected.astype(np.float32)), decoded, atol=TOLERANCE)


def test_the_way_back_is_bit_exact_and_loads_there(pair):
    model, params, state = pair
    back = to_public(params, wan_vae.rules(SMALL, wan_vae.DIFFUSERS), 0)
    assert back.keys() == state.keys()
    for name, tensor in state.items():
        assert back[name].tobytes() == tensor.tobytes() and back[name].shape == tensor.shape
    model.load_state_dict({name: torch.tensor(tensor) for name, tensor in back.items()}, strict=True)


@pytest.mark.parametrize("blocks", [1, 2])
def test_names_and_shapes_at_full_size(blocks):
    config = VideoVaeConfig(blocks=blocks)
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in theirs(config).state_dict().items()}
    assert {rule.source: rule.shape for rule in wan_vae.rules(config, wan_vae.DIFFUSERS)} == expected
