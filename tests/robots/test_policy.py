"""One observation in, one answer in the robot's units out; everything wrong is named."""

import jax
import numpy as np
import pytest

from motus_jax.errors import UserError
from motus_jax.models.system import System
from motus_jax.modes import MODES
from motus_jax.robots.policy import Policy, batch_sizes
from motus_jax.sampling.jobs import Planning
from motus_jax.sampling.observation import observe
from motus_jax.sampling.sampler import make_sampler


def test_answers_in_robot_units(policy, observation):
    answer = policy.infer(observation)
    assert set(answer) == {"mode", "actions", "policy_timing"} and answer["mode"] == "vla"
    assert answer["actions"].shape == (8, 14) and answer["actions"].dtype == np.float32
    # Untrained and in a delta space: near the state, not near 0.
    moved = (answer["actions"] - observation["state"] - policy.contract.action.offset) / policy.contract.action.scale
    assert np.abs(moved).max() < 10


def test_equal_questions_get_equal_answers_and_other_noise_others(policy, observation):
    first = policy.infer(observation)["actions"]
    np.testing.assert_array_equal(policy.infer(observation)["actions"], first)
    np.testing.assert_array_equal(policy.infer(observation | {"seed": 0})["actions"], first)
    for other in (policy.infer(observation, draw=1), policy.infer(observation | {"seed": 7})):
        assert np.abs(other["actions"] - first).max() > 1e-3


def test_an_answer_does_not_depend_on_who_asks_at_the_same_time(policy, observation):
    others = observation | {"state": observation["state"] + 1, "prompt": "insert the peg", "seed": 3}
    alone = [policy.infer(asked)["actions"] for asked in (observation, others)]
    together = policy.answer([policy.prepare(asked) for asked in (observation, others)])
    for answer, expected in zip(together, alone, strict=True):
        np.testing.assert_allclose(answer["actions"], expected, atol=1e-4)
    assert np.abs(alone[0] - alone[1]).max() > 0.1


def test_pictures_in_every_form_are_the_same(policy, observation):
    expected = policy.infer(observation)["actions"]
    channels_first = {name: image.transpose(2, 0, 1) for name, image in observation["images"].items()}
    flat = {f"observation/{name}": image for name, image in observation["images"].items()}
    flat |= {"observation/state": observation["state"].tolist(), "prompt": observation["prompt"]}
    extra = {"images": channels_first | {"cam_low": np.zeros((3, 4, 4), np.uint8)}, "unknown": [1]}
    for asked in (observation | extra, flat):
        np.testing.assert_array_equal(policy.infer(asked)["actions"], expected)


def test_cameras_may_be_called_otherwise(loaded, policy, observation):
    renamed = Policy(loaded, modes=("vla",), max_batch=1, camera_names={"top": "cam_high"})
    assert renamed.metadata["cameras"] == ["cam_high", "left_wrist", "right_wrist"]
    with pytest.raises(UserError, match="image 'cam_high': expected uint8"):
        renamed.infer(observation)
    images = observation["images"] | {"cam_high": observation["images"]["top"]}
    answer = renamed.infer(observation | {"images": images})
    np.testing.assert_array_equal(answer["actions"], policy.infer(observation)["actions"])
    with pytest.raises(UserError, match="camera_names: expected one of top, left_wrist, right_wrist; found 'cam_low'"):
        Policy(loaded, camera_names={"cam_low": "x"})


def test_no_request_waits_for_a_compilation(policy, observation):
    events = []
    jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: events.append(name))
    try:
        jax.jit(lambda x: x * 2 + 1)(np.float32(3))
        assert [name for name in events if "compile" in name], "compilations can be seen"
        events.clear()
        policy.infer(observation | {"prompt": "never heard before"}, draw=123)
        policy.answer([policy.prepare(observation)] * 2)
        assert not events
    finally:
        jax.monitoring.clear_event_listeners()


BLACK = np.zeros((8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompt": None}, ["prompt", "characters of text", "nothing"]),
        ({"prompt": "x" * 2001}, ["prompt", "2000", "str of length 2001"]),
        ({"prompt": np.zeros(3)}, ["prompt", "float64 [3]"]),
        ({"state": None}, ["state", "[14] numbers", "nothing"]),
        ({"state": np.zeros(13)}, ["state", "[14] numbers", "float64 [13]"]),
        ({"state": np.zeros((1, 14))}, ["state", "[1, 14]"]),
        ({"state": ["a"] * 14}, ["state", "list of length 14"]),
        ({"state": [[0], [1, 2]]}, ["state", "list of length 2"]),
        ({"state": {"a": 1}}, ["state", "dict"]),
        ({"state": [*[0.0] * 13, np.nan]}, ["state", "within ±1000000", "nan at [13]"]),
        ({"state": [*[0.0] * 13, 1e300]}, ["state", "within ±1000000", "1e+300 at [13]"]),
        ({"images": {}}, ["image 'top'", "uint8 RGB [h, w, 3]", "nothing"]),
        ({"images": BLACK}, ["images", "map from cameras", "uint8 [8, 8, 3]"]),
        ({"images": {"top": BLACK.astype(np.float32)}}, ["image 'top'", "uint8", "float32 [8, 8, 3]"]),
        ({"images": {"top": BLACK[..., :1]}}, ["image 'top'", "uint8 [8, 8, 1]"]),
        ({"images": {"top": BLACK[:1]}}, ["image 'top'", "2 to 8192 pixels", "uint8 [1, 8, 3]"]),
        ({"images": {"top": BLACK[None]}}, ["image 'top'", "uint8 [1, 8, 8, 3]"]),
        ({"images": {"top": BLACK}}, ["image 'left_wrist'", "nothing"]),
        ({"mode": "dance"}, ["mode", "expected one of vla", "'dance'"]),
        ({"mode": "joint"}, ["mode", "expected one of vla", "'joint'"]),
        ({"mode": np.zeros(2)}, ["mode", "expected one of vla", "array"]),
        ({"mode": ["vla"]}, ["mode", "expected one of vla"]),
        ({"return_video": True}, ["return_video", "(none)", "mode vla"]),
        ({"return_video": "yes"}, ["return_video", "true or false", "str of length 3"]),
        ({"seed": -1}, ["seed", "0 to 2^32 - 1", "-1"]),
        ({"seed": 1.5}, ["seed", "1.5"]),
    ],
    ids=str,
)
def test_what_is_wrong_is_named(policy, observation, change, words):
    with pytest.raises(UserError) as error:
        policy.prepare(observation | change)
    line = str(error.value)
    assert "\n" not in line and len(line) < 300
    assert [word for word in words if word not in line] == [], line


def test_an_answer_that_is_not_finite_is_none(policy, observation, monkeypatch):
    """The other client of the same call gets its own."""
    (program,) = {program for program, _ in policy._compiled}
    for size in policy.batch_sizes:
        answer = np.full((size, 8, 14), np.nan, np.float32)
        answer[1:] = 0
        monkeypatch.setitem(policy._compiled, (program, size), lambda *_, found=answer: {"actions": found})
    bad, good = policy.answer([policy.prepare(observation)] * 2)
    assert isinstance(bad, UserError) and "not finite" in str(bad)
    assert np.isfinite(good["actions"]).all()
    with pytest.raises(UserError, match="not finite"):
        policy.infer(observation)


def test_batch_sizes():
    assert [batch_sizes(most) for most in (1, 2, 6, 8)] == [(1,), (1, 2), (1, 2, 4, 6), (1, 2, 4, 8)]
    for most in (0, 257):
        with pytest.raises(UserError, match=f"max_batch: expected 1 to 256; found {most}"):
            batch_sizes(most)


def test_metadata_says_what_to_send(policy):
    found = policy.metadata
    assert found["cameras"] == ["top", "left_wrist", "right_wrist"] and found["state_dim"] == found["action_dim"] == 14
    assert (found["mode"], found["modes"], found["max_batch"], found["step"]) == ("vla", ["vla"], 2, 3)


def test_a_default_mode_that_is_not_served_is_refused(loaded):
    with pytest.raises(UserError, match="mode: expected one of vla; found 'joint'"):
        Policy(loaded, mode="joint", modes=("vla",))


@pytest.fixture(scope="module")
def five(loaded):
    return Policy(loaded, max_batch=1)


@pytest.mark.thorough
class TestFiveModes:
    @pytest.fixture
    def future(self, observation):
        rng = np.random.default_rng(2)
        return {
            "actions": observation["state"] + rng.normal(0, 0.1, (8, 14)),
            "video": rng.integers(0, 256, (5, 112, 96, 3), np.uint8),
        }

    def test_the_default_is_the_one_that_acts(self, five, observation):
        assert five.mode == five.metadata["mode"] == five.infer(observation)["mode"] == "vla"

    def test_each_returns_what_its_row_says(self, five, observation, future):
        assert five.modes == tuple(MODES)
        for mode, row in MODES.items():
            answer = five.infer(observation | future | {"mode": mode, "return_video": row.returns_video})
            assert ("actions" in answer, "video" in answer) == (row.returns_actions, row.returns_video)
            if row.returns_video:
                assert answer["video"].shape == (5, 112, 96, 3) and answer["video"].dtype == np.uint8
        # Its condition frame is the picture that was sent.
        batch = five.prepare(observation | {"mode": "joint"}).batch
        np.testing.assert_allclose(answer["video"][0], batch["frames"][0, 0], atol=1)

    def test_the_video_is_sent_only_where_it_is_asked_for(self, five, observation, future):
        joint = observation | {"mode": "joint"}
        with_video, without = five.infer(joint | {"return_video": True}), five.infer(joint)
        assert "video" in with_video and "video" not in without
        np.testing.assert_allclose(with_video["actions"], without["actions"], atol=1e-4)
        assert "video" in five.infer(observation | {"mode": "video"})

    def test_what_is_given_is_read(self, five, observation, future):
        for mode, name in (("world_model", "actions"), ("inverse_dynamics", "video")):
            asked = observation | {"mode": mode, name: future[name]}
            other = asked | {name: 5 + future[name]}
            returned = "video" if mode == "world_model" else "actions"
            answers = [five.infer(one)[returned].astype(np.float32) for one in (asked, other)]
            assert np.abs(answers[0] - answers[1]).max() > 1e-3
            with pytest.raises(UserError, match=rf"^{name}: expected .*; found"):
                five.prepare(asked | {name: future[name][:2]})

    def test_clips_of_the_cameras_are_tiled(self, five, observation):
        clips = {name: np.stack([image] * 5) for name, image in observation["images"].items()}
        asked = observation | {"mode": "inverse_dynamics"}
        from_clips = five.infer(asked | {"images": clips})["actions"]
        tiled = five.prepare(observation | {"mode": "vla"}).batch["frames"][0, :1].repeat(5, axis=0)
        np.testing.assert_array_equal(five.infer(asked | {"video": tiled})["actions"], from_clips)
        with pytest.raises(UserError, match="image 'top': expected 5 frames; found 4"):
            five.prepare(asked | {"images": clips | {"top": clips["top"][:4]}})
        with pytest.raises(UserError, match=r"image 'top': expected uint8 RGB \[frames, h, w, 3\]"):
            five.prepare(asked)

    def test_equals_the_sampler(self, loaded, five, observation):
        sample = make_sampler(System(loaded.config), "vla", loaded.config.sampling)
        frames = {name: image[None] for name, image in observation["images"].items()}
        state = observation["state"][None]
        batch = observe(five.contract, five._texts, frames, state, [observation["prompt"]])
        key = jax.random.fold_in(jax.random.key(0), 0)
        found = sample(loaded.params, loaded.frozen, batch, key[None])
        expected = five.contract.denormalise_actions(np.asarray(found["actions"]), state)[0]
        np.testing.assert_allclose(five.infer(observation)["actions"], expected, atol=1e-5)


def test_compiled_at_the_first_question_where_nobody_waits(loaded, policy, observation):
    said = []
    lazy = Policy(loaded, modes=("vla", "world_model"), max_batch=2, ahead=False, say=said.append)
    assert lazy.batch_sizes == (2,) and not said
    np.testing.assert_allclose(lazy.infer(observation)["actions"], policy.infer(observation)["actions"], atol=1e-4)
    assert len(said) == 1 and said[0].startswith("vla, batch 2: compiled")
    lazy.infer(observation)
    assert len(said) == 1


@pytest.mark.thorough
def test_plans_and_shows_what_it_imagines(loaded, policy, observation):
    """Of one candidate planning is acting; of several the answer is one of those that acting could have given."""
    alone = Policy(loaded, modes=("plan",), max_batch=1, plan=Planning(1), ahead=False)
    answer = alone.infer(observation)
    assert set(answer) == {"mode", "actions", "policy_timing"} and answer["mode"] == "plan"
    np.testing.assert_allclose(answer["actions"], policy.infer(observation)["actions"], atol=1e-4)
    several = Policy(loaded, modes=("plan",), max_batch=1, plan=Planning(3), ahead=False)
    assert several.metadata["returns"] == {"plan": ["actions", "video"]} and several.mode == "plan"
    answer = several.infer(observation | {"return_video": True})
    c = several.contract
    assert answer["video"].shape == (1 + c.video_frames, *c.image_size, 3) and answer["video"].dtype == np.uint8
    assert answer["actions"].shape == (8, 14)
