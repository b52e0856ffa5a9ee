"""A policy that goes on from committed actions: what it takes, what it says of it, and that it does."""

import dataclasses

import numpy as np
import pytest
from served import serving

from motus_jax.data.contract import Contract
from motus_jax.errors import UserError
from motus_jax.models.system import System
from motus_jax.robots.policy import Policy
from motus_jax.sampling.prefix import longest
from motus_jax.sampling.sampler import sampling_function
from motus_jax_client import Client, Refused


@pytest.fixture(scope="module")
def hard(loaded):
    return Policy(loaded, modes=("vla",), max_batch=2, prefix="hard")


@pytest.fixture
def prefix(observation):
    """Three actions near the state."""
    return np.float32(observation["state"] + np.random.default_rng(5).normal(0, 0.3, (3, 14)))


def test_the_answer_begins_with_the_prefix_and_goes_on_otherwise(hard, policy, observation, prefix):
    before = policy.infer(observation)["actions"]
    np.testing.assert_array_equal(hard.infer(observation)["actions"], before)
    np.testing.assert_array_equal(hard.infer(observation | {"prefix": prefix[:0]})["actions"], before)
    found = hard.infer(observation | {"prefix": prefix})["actions"]
    assert found.shape == (8, 14) and found.dtype == np.float32
    np.testing.assert_allclose(found[:3], prefix, atol=1e-5)
    assert np.abs(found[3:] - before[3:]).max() > 1e-3


def test_clients_with_prefixes_of_several_lengths_share_a_call(hard, observation, prefix):
    asked = [observation | {"prefix": prefix[:count]} for count in (1, 3)]
    requests = [hard.prepare(one) for one in asked]
    assert requests[0].program == requests[1].program != hard.prepare(observation).program
    for count, answer, one in zip((1, 3), hard.answer(requests), asked, strict=True):
        np.testing.assert_allclose(answer["actions"][:count], prefix[:count], atol=1e-5)
        np.testing.assert_allclose(answer["actions"], hard.infer(one)["actions"], atol=1e-4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prefix": np.zeros((3, 13))}, ["prefix", "[3, 14] numbers", "float64 [3, 13]"]),
        ({"prefix": np.zeros((8, 14))}, ["prefix", "at most 7 actions of 14 numbers", "float64 [8, 14]"]),
        ({"prefix": np.zeros(14)}, ["prefix", "at most 7 actions", "float64 [14]"]),
        ({"prefix": 3}, ["prefix", "at most 7 actions", "int 3"]),
        ({"prefix": "soon"}, ["prefix", "[4, 14] numbers", "str of length 4"]),
        ({"prefix": [[0.0] * 14, [0.0] * 13]}, ["prefix", "[2, 14] numbers", "list of length 2"]),
        ({"prefix": np.full((2, 14), np.nan)}, ["prefix", "within ±1000000", "nan at [0, 0]"]),
        ({"previous": np.zeros((2, 14))}, ["previous", "without --prefix=guided", "float64 [2, 14]"]),
    ],
    ids=str,
)
def test_bad_ones_are_refused_through_the_websocket(server, observation, change, words):
    with pytest.raises(Refused) as error:
        server.infer(observation | change)
    line = str(error.value)
    assert "\n" not in line and [word for word in words if word not in line] == [], line


@pytest.fixture(scope="module")
def server(hard):
    with serving(hard) as server, Client(f"ws://127.0.0.1:{server.port}") as client:
        yield client


def test_through_the_websocket(server, hard, observation, prefix):
    assert server.metadata["prefix"] == {"method": "hard", "longest": 7, "previous": False}
    found = server.infer(observation | {"prefix": prefix})["actions"]
    np.testing.assert_allclose(found[:3], prefix, atol=1e-5)


def test_a_policy_without_takes_none(policy, observation, prefix):
    assert "prefix" not in policy.metadata
    policy.prepare(observation | {"prefix": []})
    with pytest.raises(UserError, match=r"prefix: expected none, as the policy is served without --prefix; found fl"):
        policy.prepare(observation | {"prefix": prefix})


def test_what_a_model_cannot_do_is_refused(loaded):
    system = System(loaded.config)
    assert longest(system, "guided") == 7
    with pytest.raises(UserError, match="prefix=conditioned: expected a model trained with prefixes"):
        Policy(loaded, prefix="conditioned")
    with pytest.raises(UserError, match="prefix: expected one of hard, guided, conditioned; found 'soft'"):
        Policy(loaded, prefix="soft")
    with pytest.raises(UserError, match="prefix=hard: expected a mode that makes actions; found world_model"):
        sampling_function(system, "world_model", loaded.config.sampling, "hard")


@pytest.fixture(scope="module")
def trained(loaded):
    """The same numbers, as if they had been trained with prefixes."""
    config = loaded.config.copy_and_resolve_references()
    config.noise.prefix.update(probability=0.5, longest=4)
    return dataclasses.replace(loaded, config=config)


@pytest.mark.thorough
class TestMethods:
    def test_guided(self, loaded, policy, observation, prefix):
        guided = Policy(loaded, modes=("vla",), max_batch=1, prefix="guided")
        assert guided.metadata["prefix"] == {"method": "guided", "longest": 7, "previous": True}
        before = policy.infer(observation)["actions"]
        after = guided.infer(observation | {"prefix": prefix})["actions"]
        # Nearer only with a trained network; tests/sampling/test_prefix.py has one that is known.
        assert np.isfinite(after).all() and np.abs(after - before).max() > 1e-3
        fewer = observation | {"prefix": prefix[:2]}
        soft = guided.infer(fewer | {"previous": prefix[2:]})["actions"]
        assert np.abs(soft - guided.infer(fewer)["actions"]).max() > 1e-4
        assert "actions" in guided.infer(observation | {"previous": prefix}), "nothing committed, much known"
        with pytest.raises(UserError, match="previous: expected at most 6 actions"):
            guided.prepare(fewer | {"previous": np.zeros((7, 14))})

    def test_conditioned(self, trained, observation, prefix):
        conditioned = Policy(trained, modes=("vla",), max_batch=1, prefix="conditioned")
        assert conditioned.metadata["prefix"] == {"method": "conditioned", "longest": 4, "previous": False}
        answers = [conditioned.infer(observation | {"prefix": one})["actions"] for one in (prefix, prefix + 1)]
        np.testing.assert_allclose(answers[0][:3], prefix, atol=1e-5)
        assert np.abs(answers[0][3:] - answers[1][3:]).max() > 1e-3, "the others depend on it"
        with pytest.raises(UserError, match="prefix: expected at most 4 actions"):
            conditioned.prepare(observation | {"prefix": np.zeros((5, 14))})


def test_modes_that_make_no_actions_take_none(hard, observation, prefix, monkeypatch):
    monkeypatch.setattr(hard, "modes", ("vla", "world_model"))
    asked = observation | {"mode": "world_model", "actions": np.zeros((8, 14)), "prefix": prefix}
    with pytest.raises(UserError, match="prefix: expected none in mode world_model, which takes none"):
        hard.prepare(asked)


def test_the_contract_makes_the_prefix_relative_to_the_new_state(hard, observation, prefix):
    batch = hard.prepare(observation | {"prefix": prefix}).batch
    contract: Contract = hard.contract
    relative = (prefix - observation["state"] - contract.action.offset) / np.float32(contract.action.scale)
    np.testing.assert_allclose(batch["overlap_actions"][0, :3], relative, atol=1e-5)
    assert not batch["overlap_actions"][0, 3:].any() and batch["committed"] == batch["known"] == [3]
