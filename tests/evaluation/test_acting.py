"""The model as a policy in the simulator."""

import dataclasses

import numpy as np
import pytest
import synthetic

from motus_jax.data.contract import Affine
from motus_jax.data.texts import Texts
from motus_jax.errors import UserError

pytestmark = pytest.mark.simulator


@pytest.fixture(scope="module")
def acting():
    try:
        from motus_jax.evaluation import acting
    except UserError as error:
        pytest.skip(str(error))
    return acting


@pytest.fixture
def contract():
    own = (0.0,) * 14
    return dataclasses.replace(
        synthetic.contract(), robot="aloha", cameras=("top", "left_wrist", "right_wrist"), image_size=(112, 96),
        chunk=16, state_dim=14, action_dim=14, state=Affine(own, (1.0,) * 14), action=Affine(own, (1.0,) * 14),
        action_space="delta", instruction_length=64, action_names=(),
    )  # fmt: skip


def test_a_model_that_stays_where_it_is_beats_nobody(acting, contract):
    asked = []

    def predict(mode, batch, key):
        asked.append((mode, {name: value.shape for name, value in batch.items()}))
        return {"actions": np.zeros((4, 16, 14), np.float32)}

    said = []
    entry = acting.success_rates(
        predict, contract, Texts(contract, {}), ("transfer_cube",), episodes=2, batch_size=4, seed=0, say=said.append
    )
    assert not entry["beats_baselines"]
    assert entry["policies"]["this_model"]["successes"] == 0
    assert entry["policies"]["this_model"]["episodes"] == 2
    low, high = entry["policies"]["this_model"]["interval"]
    assert (low, high) == pytest.approx((0, 0.658), abs=1e-3)
    assert set(entry["policies"]) == {"this_model", "hold_the_state", "random_motion"}
    # 6 s of 10 actions a second, planned anew after every 8.
    assert len(asked) == 8
    assert {mode for mode, _ in asked} == {"vla"}
    assert asked[0][1]["frames"] == (4, 3, 112, 96, 3)
    assert said[0] == "closed loop, this_model: 2/2 episodes"


@pytest.mark.parametrize(("successes", "better"), [(0, False), (3, False), (5, False), (6, True), (50, True)])
def test_success_must_not_be_luck(acting, successes, better):
    """Against a policy that never succeeds: 2 * 0.5^5 = 0.0625 could be luck, 2 * 0.5^6 = 0.031 not."""
    own = np.arange(50) < successes
    assert acting.succeeds_more(own, np.zeros(50, bool)) == better
    assert not acting.succeeds_more(np.zeros(50, bool), own)


def test_tasks_are_found_by_their_instructions(acting, contract):
    from motus_jax.robots import tasks

    texts = [tasks.TASKS["transfer_cube"].instructions[-1], "something else"]
    made = Texts(contract, {})
    tokens = np.stack([made(text)["instruction"] for text in texts])
    assert acting.simulated_tasks(tokens, contract, made) == ("transfer_cube",)
    with pytest.raises(UserError, match="found none"):
        acting.simulated_tasks(tokens[1:], contract, made)
    with pytest.raises(UserError, match="expected robot 'aloha'; found 'panda'"):
        acting.simulated_tasks(tokens, dataclasses.replace(contract, robot="panda"), made)
