"""The flow autoencoder against diffusers' `AutoencoderDC`, through the name map in both directions."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motus_jax.models.flow_autoencoder import VARIANTS, FlowAutoencoder, FlowAutoencoderConfig
from motus_jax.weights import dc_ae
from motus_jax.weights.name_map import flatten, to_public, to_tree

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

TOLERANCE = 1e-4
SHUFFLED = FlowAutoencoderConfig(
    channels=4, widths=(12, 8, 8, 16), encoder_blocks=(0, 1, 2, 1), decoder_blocks=(0, 2, 1, 1),
    attention=(False, False, True, True), windows=((), (), (3, 5), ()), batch_norm=(True, True, False, True),
    head_dim=4,
)  # fmt: skip
"""Both kinds of blocks and norms, two further scales, no first stage; at 24 x 40 pixels attention takes both forms."""
STRIDED = FlowAutoencoderConfig(
    channels=2, widths=(4, 8, 8), encoder_blocks=(1, 1, 1), decoder_blocks=(1, 1, 1),
    attention=(False, False, True), windows=((), (), (5,)), batch_norm=(False,) * 3, head_dim=4, shuffle=False,
)  # fmt: skip
CASES = {"shuffled": (SHUFFLED, 2, 24, 40), "strided": (STRIDED, 1, 12, 4)}
"""Name -> network, batch, height, width."""


def theirs(c):
    """The same network there."""
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


@dataclasses.dataclass
class Pair:
    """Their network, ours with the same parameters, and what each makes of a picture and of its loss."""

    model: object
    state: dict
    params: dict
    theirs: dict
    ours: dict


@pytest.fixture(scope="module", params=CASES)
def pair(request):
    config, *shape = CASES[request.param]
    torch.manual_seed(0)
    model = theirs(config)
    with torch.no_grad():
        for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
            if not name.endswith(dc_ae.COUNTER):
                tensor += 0.1 * torch.rand(tensor.shape) if name.endswith("var") else 0.1 * torch.randn(tensor.shape)
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    kept = {name: tensor for name, tensor in state.items() if name not in dc_ae.counters(config)}
    params = to_tree(kept, dc_ae.rules(config), 0)
    picture = np.random.default_rng(0).uniform(-1, 1, (*shape, 3)).astype(np.float32)
    return Pair(model, state, params, _theirs(model, picture), _ours(FlowAutoencoder(config), params, picture))


def _theirs(model, picture):
    pixels = torch.tensor(picture).permute(0, 3, 1, 2)
    latent = model.encode(pixels).latent
    decoded = model.decode(latent).sample
    loss = ((decoded - pixels) ** 2).mean() + (latent**2).mean()
    loss.backward()
    gradients = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}
    pictures = {"latent": latent, "decoded": decoded}
    return {name: x.detach().permute(0, 2, 3, 1).numpy() for name, x in pictures.items()} | {"gradients": gradients}


def _ours(autoencoder, params, picture):
    def loss(params):
        latent = autoencoder.encode(params, picture)
        decoded = autoencoder.decode(params, latent)
        return jnp.mean((decoded - picture) ** 2) + jnp.mean(latent**2), (latent, decoded)

    gradients, (latent, decoded) = jax.jit(jax.grad(loss, has_aux=True))(params)
    rules = dc_ae.rules(autoencoder.config)
    return {"latent": latent, "decoded": decoded, "gradients": to_public(jax.device_get(gradients), rules, 0)}


@pytest.mark.parametrize("what", ["latent", "decoded"])
def test_encode_and_decode_equal_diffusers(pair, what):
    expected, found = pair.theirs[what], pair.ours[what]
    assert found.dtype == np.float32 and expected.std() > 0.05
    np.testing.assert_allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE * expected.std())


def test_gradients_equal_diffusers_and_statistics_have_none(pair):
    found, expected = pair.ours["gradients"], pair.theirs["gradients"]
    measured = {name for name in found if name.endswith(("running_mean", "running_var"))}
    assert found.keys() - measured == expected.keys()
    assert all(not found[name].any() for name in measured)
    for name, gradient in expected.items():
        assert gradient.any(), name
        np.testing.assert_allclose(found[name], gradient, atol=TOLERANCE * np.abs(gradient).max(), err_msg=name)


def test_the_way_back_is_bit_exact_and_loads_there(pair):
    config = next(config for config, *_ in CASES.values() if len(dc_ae.rules(config)) == len(flatten(pair.params)))
    back = to_public(pair.params, dc_ae.rules(config), 0)
    assert back.keys() | set(dc_ae.counters(config)) == pair.state.keys()
    for name, tensor in back.items():
        assert tensor.tobytes() == pair.state[name].tobytes() and tensor.shape == pair.state[name].shape
    pair.model.load_state_dict({name: torch.tensor(tensor) for name, tensor in back.items()}, strict=True)


@pytest.mark.parametrize("variant", VARIANTS)
def test_names_and_shapes_at_every_size(variant):
    config = VARIANTS[variant]
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in theirs(config).state_dict().items()}
    found = {rule.source: rule.shape for rule in dc_ae.rules(config)}
    assert found | dict.fromkeys(dc_ae.counters(config), ()) == expected
