"""The flow autoencoder against diffusers' `AutoencoderDC`, through the name map in both directions."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dc_ae_fixture import theirs

from motus_jax.models.flow_autoencoder import VARIANTS, FlowAutoencoder, FlowAutoencoderConfig
from motus_jax.weights import dc_ae
from motus_jax.weights.name_map import to_public, to_tree

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

TOLERANCE = 1e-4
SHUFFLED = FlowAutoencoderConfig(
    channels=4, widths=(12, 8, 16), encoder_blocks=(0, 1, 1), decoder_blocks=(0, 1, 1),
    attention=(False, False, True), windows=((), (), (3,)), batch_norm=(True, True, True), head_dim=4,
)  # fmt: skip
"""No first stage. Its attention sees more places than `head_dim`, STRIDED's sees fewer; both networks have convolutions
over more and over fewer places than `FEW`."""
STRIDED = FlowAutoencoderConfig(
    channels=2, widths=(4, 8, 32), encoder_blocks=(1, 1, 1), decoder_blocks=(1, 2, 1),
    attention=(False, False, True), windows=((), (), (3, 5)), batch_norm=(False,) * 3, head_dim=32, shuffle=False,
)  # fmt: skip
CASES = {"shuffled": (SHUFFLED, 2, 40, 56), "strided": (STRIDED, 1, 68, 4)}
"""Name -> network, batch, height, width."""


@dataclasses.dataclass
class Pair:
    """Their network, its state, our parameters of it, and a picture."""

    config: FlowAutoencoderConfig
    model: object
    state: dict
    params: dict
    picture: np.ndarray


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
    picture = np.random.default_rng(0).uniform(-1, 1, (*shape, 3)).astype(np.float32)
    return Pair(config, model, state, to_tree(kept, dc_ae.rules(config), 0), picture)


def channels_first(x):
    return torch.tensor(np.asarray(x)).permute(0, 3, 1, 2)


def assert_close(found, expected):
    expected = expected.detach().permute(0, 2, 3, 1).numpy()
    assert found.dtype == np.float32 and expected.std() > 0.05
    np.testing.assert_allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE * expected.std())


@pytest.mark.parametrize("pair", ["strided"], indirect=True)
def test_encode_and_decode_equal_diffusers(pair):
    autoencoder = FlowAutoencoder(pair.config)
    latent = autoencoder.encode(pair.params, pair.picture)
    with torch.no_grad():
        assert_close(latent, pair.model.encode(channels_first(pair.picture)).latent)
        decoded = pair.model.decode(channels_first(latent)).sample
    assert_close(autoencoder.decode(pair.params, latent), decoded)


@pytest.mark.parametrize("pair", ["shuffled"], indirect=True)
def test_gradients_equal_diffusers_too_and_statistics_have_none(pair):
    autoencoder, pixels = FlowAutoencoder(pair.config), channels_first(pair.picture)
    their_latent = pair.model.encode(pixels).latent
    their_decoded = pair.model.decode(their_latent).sample
    (((their_decoded - pixels) ** 2).mean() + (their_latent**2).mean()).backward()

    def loss(params):
        latent = autoencoder.encode(params, pair.picture)
        decoded = autoencoder.decode(params, latent)
        return jnp.mean((decoded - pair.picture) ** 2) + jnp.mean(latent**2), (latent, decoded)

    gradients, (latent, decoded) = jax.jit(jax.grad(loss, has_aux=True))(pair.params)
    assert_close(latent, their_latent)
    assert_close(decoded, their_decoded)
    found = to_public(jax.device_get(gradients), dc_ae.rules(pair.config), 0)
    expected = {name: parameter.grad.numpy() for name, parameter in pair.model.named_parameters()}
    measured = {name for name in found if name.endswith(("running_mean", "running_var"))}
    assert measured and found.keys() - measured == expected.keys()
    assert all(not found[name].any() for name in measured)
    for name, gradient in expected.items():
        assert gradient.any(), name
        np.testing.assert_allclose(found[name], gradient, atol=TOLERANCE * np.abs(gradient).max(), err_msg=name)


def test_the_way_back_is_bit_exact_and_loads_there(pair):
    back = to_public(pair.params, dc_ae.rules(pair.config), 0)
    assert back.keys() | set(dc_ae.counters(pair.config)) == pair.state.keys()
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
