"""DPFlow: the numbers of the public network, its names and sizes, and what it refuses."""

import jax
import numpy as np
import pytest
from dpflow_fixture import NUMBERS, SIZE, TABLE, pictures, weights

from motus_jax.errors import UserError
from motus_jax.models.flow_network import VARIANTS, FlowNetwork, FlowNetworkConfig, pyramid_levels
from motus_jax.models.flow_network_blocks import correlations, resize, window
from motus_jax.weights import dpflow, name_map, tree

SMALL = VARIANTS["debug"]
GROUPS = dpflow.groups(SMALL)


def names(config):
    return {name: rule.shape for rules, depth in dpflow.groups(config) for rule in rules for name in rule.names(depth)}


@pytest.fixture(scope="module")
def params():
    return name_map.groups_to_tree(weights(names(SMALL)), GROUPS)


@pytest.mark.thorough
def test_flow_equals_the_public_network(params, golden_dir):
    expected = np.load(golden_dir / NUMBERS)["flow"]
    found = FlowNetwork(SMALL).estimate(params, *pictures(*SIZE))
    assert found.dtype == np.float32 and expected.std() > 1
    np.testing.assert_allclose(found, expected, atol=1e-4 * expected.std())


def test_names_and_shapes_are_the_release_s(golden_dir):
    lines = (golden_dir / TABLE).read_text().splitlines()[1:]
    table = {name: tuple(map(int, shape.split("x"))) for name, shape in (line.split("\t") for line in lines)}
    assert names(VARIANTS["dpflow"]) == table
    assert sum(int(np.prod(shape)) for shape in table.values()) == 10_021_508


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_map_fills_the_tree_and_no_more(variant):
    config = VARIANTS[variant]
    shapes = jax.eval_shape(FlowNetwork(config).init, jax.random.key(0))
    mapped = name_map.groups_to_tree(
        {name: np.broadcast_to(np.float32(0), shape) for name, shape in names(config).items()}, dpflow.groups(config)
    )
    found = {path: leaf.shape for path, leaf in tree.flatten(shapes).items()}
    assert found == {path: leaf.shape for path, leaf in tree.flatten(mapped).items()}


def test_correlations_are_read_where_the_flow_leads():
    rng = np.random.default_rng(0)
    first, second = rng.standard_normal((2, 1, 5, 6, 8)).astype(np.float32)
    flow = np.zeros((1, 5, 6, 2), np.float32)
    flow[..., 0], flow[..., 1] = 2.0, -1.5
    found = np.asarray(window(correlations(first, second), flow, 1)).reshape(5, 6, 3, 3)
    products = np.einsum("ijc,klc->ijkl", first[0], second[0]) / 8**0.5
    # Row 3, column 1, one place further right and none further down: column 4, between rows 1 and 2.
    np.testing.assert_allclose(found[3, 1, 2, 1], (products[3, 1, 1, 4] + products[3, 1, 2, 4]) / 2, rtol=1e-5)
    assert not found[:, 5].any()  # everything there leads out of the picture
    half = found[1, 0, 1, 0]  # column 2, between row -1, which is outside, and row -2
    assert half == 0 and found[1, 0, 1, 1] == pytest.approx(products[1, 0, 0, 2] / 2, rel=1e-5)


def test_resize_keeps_corners_and_lines():
    ramp = np.arange(5, dtype=np.float32)[None, :, None, None] * np.ones((1, 1, 3, 1), np.float32)
    np.testing.assert_allclose(resize(ramp, 9, 3)[0, :, 1, 0], np.arange(9) / 2, atol=1e-6)
    np.testing.assert_allclose(resize(ramp, 3, 2)[0, :, 0, 0], [0, 2, 4], atol=1e-6)


def test_larger_pictures_have_more_sizes():
    assert [pyramid_levels(*size) for size in ((64, 64), (540, 960), (1080, 1920), (2160, 3840))] == [3, 3, 4, 5]


def test_what_is_refused(params):
    net, picture = FlowNetwork(SMALL), np.zeros((1, 32, 32, 3), np.float32)
    for pair, words in (
        ((picture, picture[:, :16]), r"expected two stacks.*\(1, 32, 32, 3\) and \(1, 16, 32, 3\)"),
        ((picture[..., :1], picture[..., :1]), r"expected two stacks of RGB"),
        ((picture[:, :8], picture[:, :8]), r"at least 16x16 pixels, found 8x32"),
    ):
        with pytest.raises(UserError, match=words):
            net.estimate(params, *pair)
    with pytest.raises(UserError, match=r"features: expected a multiple of 6, found 100"):
        FlowNetworkConfig(features=100)
