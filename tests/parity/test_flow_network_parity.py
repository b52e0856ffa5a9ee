"""DPFlow at the release's size against ptlflow (0.4.2; `pip install --no-deps ptlflow loguru jsonargparse lightning`,
and what else its import names)."""

import importlib.util

import numpy as np
import pytest
from dpflow_fixture import pictures, their_flow, theirs, weights

from motus_jax.models.flow_network import VARIANTS, FlowNetwork
from motus_jax.weights import dpflow, name_map

torch = pytest.importorskip("torch")
if importlib.util.find_spec("ptlflow") is None:
    pytest.skip("ptlflow is not installed", allow_module_level=True)


@pytest.mark.parametrize(("variant", "size"), [("debug", (70, 100)), ("dpflow", (128, 96))])
def test_flow_equals_ptlflow(variant, size):
    config = VARIANTS[variant]
    model = theirs(config)
    tensors = weights({name: tuple(tensor.shape) for name, tensor in model.state_dict().items()})
    model.load_state_dict({name: torch.tensor(tensor) for name, tensor in tensors.items()}, strict=True)
    expected = their_flow(model, *pictures(*size))
    params = name_map.groups_to_tree(tensors, dpflow.groups(config))
    found = FlowNetwork(config).estimate(params, *pictures(*size))
    assert expected.std() > 1
    np.testing.assert_allclose(found, expected, atol=1e-4 * expected.std())
