"""The contract: numbers that invert, JSON, and refusals that name the field."""

import dataclasses
import json

import numpy as np
import pytest

from motus_jax.data.contract import Affine, Contract
from motus_jax.errors import UserError

STATE = Affine((0.1, -0.2, 0.3), (0.5, 2.0, 1.0))
ACTION = Affine((0.01, 0.02), (0.1, 0.3))
CONTRACT = Contract(
    action_hz=10.0, video_hz=5.0, chunk=4, video_frames=2, state_dim=5, action_dim=3, cameras=("top", "wrist"),
    image_size=(112, 96), action_space="delta", normalisation="meanstd", state=STATE, action=ACTION,
    prompt_template="plain", instruction_length=64, robot="arm", action_names=("a", "b"),
)  # fmt: skip
random = np.random.default_rng(0)
RAW_STATE = random.normal(size=(6, 3)).astype(np.float32)
RAW_ACTIONS = random.normal(size=(6, 4, 2)).astype(np.float32)


@pytest.mark.parametrize("space", ["delta", "absolute"])
def test_actions_invert(space):
    contract = dataclasses.replace(CONTRACT, action_space=space)
    actions = contract.normalise_actions(RAW_ACTIONS, RAW_STATE)
    assert actions.shape == (6, 4, 3) and actions.dtype == np.float32 and not actions[..., 2].any()
    encoded = RAW_ACTIONS - RAW_STATE[:, None, :2] if space == "delta" else RAW_ACTIONS
    np.testing.assert_allclose(actions[..., :2], (encoded - [0.01, 0.02]) / [0.1, 0.3], rtol=1e-4, atol=1e-5)
    back = contract.denormalise_actions(actions, RAW_STATE)
    assert back.shape == RAW_ACTIONS.shape
    np.testing.assert_allclose(back, RAW_ACTIONS, atol=1e-5)


def test_state_is_normalised_and_padded():
    state = CONTRACT.normalise_state(RAW_STATE)
    assert state.shape == (6, 5) and state.dtype == np.float32 and not state[:, 3:].any()
    np.testing.assert_allclose(state[:, :3], (RAW_STATE - [0.1, -0.2, 0.3]) / [0.5, 2, 1], rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match="robot state: expected 3 numbers; found 2"):
        CONTRACT.normalise_state(RAW_STATE[:, :2])
    with pytest.raises(UserError, match="robot action: expected 2 numbers; found 3"):
        CONTRACT.normalise_actions(RAW_STATE[:, None], RAW_STATE)


def test_json_round_trip():
    record = json.loads(json.dumps(CONTRACT.to_json()))
    assert Contract.from_json(record) == CONTRACT
    with pytest.raises(UserError, match="'format': expected 1; found 7"):
        Contract.from_json(record | {"format": 7})
    with pytest.raises(UserError, match="'surplus': unknown"):
        Contract.from_json(record | {"surplus": 1})
    del record["chunk"]
    with pytest.raises(UserError, match="'chunk': missing"):
        Contract.from_json(record)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chunk": 8}, r"'chunk': expected 4 \(the checkpoint\); found 8 \(the data\)"),
        ({"cameras": ("top",)}, r"'cameras': expected \('top', 'wrist'\)"),
        ({"image_size": (96, 96)}, r"'image_size': expected \(112, 96\)"),
        ({"prompt_template": "scene"}, "'prompt_template': expected 'plain'"),
        ({"state": Affine((0.1, -0.2, 0.4), STATE.scale)}, r"'state.offset\[2\]': expected 0.3 .* found 0.4"),
        ({"action": Affine((0.0,), (1.0,))}, "'action': expected a robot with 2 dims .* found 1"),
    ],
)
def test_check_names_the_first_difference(change, message):
    other = dataclasses.replace(CONTRACT, **change)
    with pytest.raises(UserError, match=message):
        CONTRACT.check(other)


def test_check_accepts_what_does_not_bind():
    CONTRACT.check(dataclasses.replace(CONTRACT, robot="twin", action_names=()))
    CONTRACT.check(dataclasses.replace(CONTRACT, state=Affine((9.0,) * 3, (9.0,) * 3)), numbers=False)


def test_robot_must_fit_the_model():
    with pytest.raises(
        UserError, match=r"data\.action_dim: expected at least the 2 dims of the robot's action; found 1"
    ):
        dataclasses.replace(CONTRACT, action_dim=1)
    with pytest.raises(UserError, match="action_space='delta': expected a state at least as wide as the action"):
        dataclasses.replace(CONTRACT, state=Affine((0.0,), (1.0,)))
    with pytest.raises(UserError, match=r"expected one of absolute, delta, .*; found 'ee'"):
        dataclasses.replace(CONTRACT, action_space="ee")
