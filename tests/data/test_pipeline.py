"""Examples, their order over hosts, exact resume, evaluation batches and refusals."""

import json
import re

import lerobot_fixture as fixture
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from motus_jax.data import tokenizer
from motus_jax.data.contract import Contract
from motus_jax.data.dataset import Dataset
from motus_jax.data.example import Example
from motus_jax.data.mixture import Mixture, make_dataset, make_mixture
from motus_jax.data.pipeline import eval_batches, make_iterator
from motus_jax.errors import UserError

CONFIG = {"chunk": 8, "video_frames": 4, "threads": 2, "prefetch": 2}


@pytest.fixture(scope="module")
def train(v3) -> Dataset:
    return make_dataset({"path": str(v3), **CONFIG}, "train")


@pytest.fixture(scope="module")
def mixture(v3) -> Mixture:
    return make_mixture({"path": str(v3), **CONFIG}, "train")


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def assert_equal(first, second):
    assert first.keys() == second.keys()
    for key in first:
        np.testing.assert_array_equal(first[key], second[key], err_msg=key)


def test_example(train):
    example = train.example(1, 3)
    shapes = {key: (value.dtype.name, value.shape) for key, value in example.items()}
    scalars = {key: ("int32", ()) for key in ("episode", "frame", "source", "layer", "embodiment")}
    assert shapes == scalars | {
        "frames": ("uint8", (5, 112, 96, 3)),
        "unseen": ("float32", (3, 4)),
        "state": ("float32", (14,)),
        "actions": ("float32", (8, 14)),
        "state_mask": ("bool", (14,)),
        "action_mask": ("bool", (8, 14)),
        "instruction": ("int32", (64,)),
        "instruction_mask": ("bool", (64,)),
    }
    assert example["action_mask"].all() and (example["episode"], example["frame"]) == (1, 3)
    assert tokenizer.decode(example["instruction"]) == "insert the peg"
    expected = [fixture.grey(0, row) for row in (3, 5, 7, 9, 11)]
    assert np.abs(example["frames"][:, 2:74].mean((1, 2, 3)) - expected).max() < 1.5
    targets = [[fixture.value(1, 3 + i, k) for k in range(14)] for i in range(1, 9)]
    np.testing.assert_allclose(train.raw_actions(1, 3), targets, rtol=1e-6)
    np.testing.assert_allclose(train.denormalise_actions(example["actions"], train.raw_state(1, 3)), targets, atol=1e-5)


def test_a_few_episodes_spread_over_the_training_split(v3, train):
    few = make_dataset({"path": str(v3), **CONFIG, "episodes": 2}, "train")
    assert few.episodes in ([0, 2], [0, 3], [1, 2], [1, 3])
    assert len(few) < len(train) and few.contract() == train.contract()
    held_out = make_dataset({"path": str(v3), **CONFIG, "episodes": 2}, "test")
    assert held_out.episodes == [4], "evaluation takes all that are held out"
    again, whole = (make_dataset({"path": str(v3), **CONFIG, "episodes": count}, "train").episodes for count in (2, 4))
    assert again == few.episodes and whole == [0, 1, 2, 3]
    for count in (5, -1):
        with pytest.raises(UserError, match=rf"data\.episodes: expected 0 to 4, as .* has; found {count}"):
            make_dataset({"path": str(v3), **CONFIG, "episodes": count}, "train")


def test_few_episodes_are_of_all_tasks_that_take_turns(v3):
    """Equal distances would meet one of two tasks only, whatever the number."""
    dataset = make_dataset({"path": str(v3), **CONFIG}, "train")
    dataset.source.split = lambda split: list(range(800))
    for wanted in (10, 40, 80):
        dataset.settings = {**dataset.settings, "episodes": wanted}
        chosen = dataset._chosen("train")
        assert [episode * wanted // 800 for episode in chosen] == list(range(wanted)), "one of each stretch"
        assert wanted / 4 < sum(episode % 2 for episode in chosen) < 3 * wanted / 4


def test_hidden_actions_carry_no_loss(v3, train):
    hidden = make_dataset({"path": str(v3), **CONFIG, "hide_actions": True}, "train").example(1, 3)
    assert not hidden["action_mask"].any() and train.example(1, 3)["action_mask"].all()
    np.testing.assert_array_equal(hidden["frames"], train.example(1, 3)["frames"])


def test_normalised_numbers_have_unit_size(train):
    actions = np.concatenate([train.example(*start)["actions"] for start in train.starts[::3].tolist()])
    states = np.stack([train.example(*start)["state"] for start in train.starts[::3].tolist()])
    assert np.abs(actions.mean(0)).max() < 0.1 and np.abs(actions.std(0) - 1).max() < 0.1
    assert np.abs(states.mean(0)).max() < 0.1 and np.abs(states.std(0) - 1).max() < 0.1


def test_cache_does_not_change_examples(v3, train):
    uncached = make_dataset({"path": str(v3), **CONFIG, "cache_gib": 0.0}, "train")
    partly = make_dataset({"path": str(v3), **CONFIG, "cache_gib": 40 * 112 * 96 * 3 / 2**30}, "train")
    for dataset in (train, uncached, partly):
        dataset.preload()
    for start in ((0, 0), (1, 20), (3, 5)):
        assert_equal(train.example(*start), uncached.example(*start))
        assert_equal(train.example(*start), partly.example(*start))


def test_v2_gives_the_same_examples(v2, train):
    assert_equal(make_dataset({"path": str(v2), **CONFIG}, "train").example(2, 6), train.example(2, 6))


def test_global_order_is_the_same_for_any_number_of_hosts(v3, mixture):
    whole = take(make_iterator(mixture, 8, seed=5), 20)
    for hosts, threads in ((2, 0), (4, 3)):
        other = make_mixture({"path": str(v3), **CONFIG, "threads": threads}, "train")
        parts = [take(make_iterator(other, 8, 5, host=h, hosts=hosts), 20) for h in range(hosts)]
        for step, batch in enumerate(whole):
            assert_equal(batch, {key: np.concatenate([part[step][key] for part in parts]) for key in batch})


def test_every_epoch_holds_every_chunk_once_in_a_new_order(train, mixture):
    count = len(train.starts)
    batches = take(make_iterator(mixture, count, seed=0), 2)
    first, second = (list(zip(b["episode"].tolist(), b["frame"].tolist())) for b in batches)
    assert sorted(first) == sorted(second) == [tuple(start) for start in train.starts.tolist()]
    assert first != second != sorted(second)
    other = next(make_iterator(mixture, count, seed=1))
    assert list(zip(other["episode"].tolist(), other["frame"].tolist())) != first


def test_resume_is_exact_through_a_checkpoint(mixture, tmp_path):
    iterator = make_iterator(mixture, 4, seed=3)
    take(iterator, 5)
    ocp.save_checkpointables(tmp_path / "5", {"data": iterator})
    expected = take(iterator, 4)
    fresh = make_iterator(mixture, 4, seed=3)
    ocp.load_checkpointables(tmp_path / "5", {"data": fresh})
    for batch in expected:
        assert_equal(next(fresh), batch)


def test_state_counts_steps_whatever_the_hosts(mixture):
    iterator = make_iterator(mixture, 8, seed=3)
    take(iterator, 5)
    other = make_iterator(mixture, 8, seed=3, host=1, hosts=2)
    other.set_state(iterator.get_state())
    expected, found = next(iterator), next(other)
    assert_equal({key: value[4:] for key, value in expected.items()}, found)


def test_eval_batches_cover_episodes_evenly(train):
    batches = eval_batches(train, 5, 13, seed=0)
    assert [int(batch["valid"].sum()) for batch in batches] == [5, 5, 3]
    assert all(len(value) == 5 for batch in batches for value in batch.values())
    chosen = [
        (int(episode), int(frame))
        for batch in batches
        for episode, frame, valid in zip(batch["episode"], batch["frame"], batch["valid"])
        if valid
    ]
    assert len(set(chosen)) == 13
    assert sorted(np.bincount([episode for episode, _ in chosen]).tolist()) == [3, 3, 3, 4]
    for again, batch in zip(eval_batches(train, 5, 13, seed=0), batches):
        assert_equal(again, batch)
    assert [b["episode"].tolist() for b in eval_batches(train, 5, 13, 1)] != [b["episode"].tolist() for b in batches]
    batch = batches[0]
    absolute = train.denormalise_actions(batch["actions"], batch["raw_state"])
    np.testing.assert_allclose(absolute, batch["raw_actions"], atol=1e-5)
    assert set(batch) - set(Example.__required_keys__) == {"frames", "raw_state", "raw_actions", "valid"}


def test_eval_takes_no_more_than_there_is(v3):
    test = make_dataset({"path": str(v3), **CONFIG}, "test")
    assert len(test.starts) == 4
    assert sum(int(batch["valid"].sum()) for batch in eval_batches(test, 3, 100, 0)) == 4


def test_smaller_robot_is_padded_and_masked(tmp_path, caplog):
    path = fixture.write(tmp_path / "set", lengths=(30, 30, 30), cameras={"top": (72, 96)}, dim=4)
    dataset = make_dataset({"path": str(path), **CONFIG, "cameras": ("top",)}, "train")
    example = dataset.example(0, 2)
    assert example["actions"].shape == (8, 14) and example["state"].shape == (14,)
    assert not example["actions"][:, 4:].any() and not example["state"][4:].any()
    assert example["action_mask"][:, :4].all() and not example["action_mask"][:, 4:].any()
    assert "the robot has 4 of the model's 14 action dims" in caplog.text
    assert dataset.denormalise_actions(example["actions"], dataset.raw_state(0, 2)).shape == (8, 4)


def test_contract_of_a_checkpoint_brings_its_numbers(v3, train):
    record = json.loads(json.dumps(train.contract()))
    record["state"]["offset"] = [1.0] * 14
    foreign = make_dataset({"path": str(v3), **CONFIG}, "test", contract=Contract.from_json(record))
    assert foreign.contract() == record and "statistics" not in vars(foreign)
    np.testing.assert_allclose(
        foreign.example(4, 0)["state"], (foreign.raw_state(4, 0) - 1.0) / record["state"]["scale"], rtol=1e-5
    )
    with pytest.raises(UserError, match=r"'chunk': expected 8 \(the checkpoint\); found 6"):
        make_dataset({"path": str(v3), **CONFIG, "chunk": 6}, "test", contract=Contract.from_json(record))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chunks": 3}, "config.data.chunks: unknown key; expected one of kind, path, options, episodes"),
        ({"action_dim": 7}, "data.action_dim: expected at least the 14 dims of the robot's action; found 7"),
        ({"cameras": ("front",)}, "camera 'front'"),
        ({"cameras": ()}, "data.cameras: expected one to 3 cameras; found 0"),
        ({"image_size": (0, 96)}, "data.image_size"),
        ({"action_space": "ee"}, "data.action_space: expected one of absolute, delta"),
        ({"prompt_template": "scene"}, "data.instruction_length: expected more than the 214 bytes"),
        ({"prompt_template": "fancy"}, "prompt template: expected one of plain, scene; found 'fancy'"),
    ],
)
def test_bad_config(v3, change, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        make_dataset({"path": str(v3), **CONFIG, **change}, "train")


def test_bad_requests(train, mixture):
    with pytest.raises(UserError, match=r"episode 9 .* expected 0 to 4"):
        train.example(9, 0)
    with pytest.raises(UserError, match="frame 41 of episode 1: expected 0 to 40"):
        train.example(1, 41)
    with pytest.raises(UserError, match="expected a positive multiple of the 3 hosts; found 4"):
        make_iterator(mixture, 4, 0, hosts=3)


def test_a_broken_video_is_put_into_quarantine(broken, mixture):
    file = broken / "videos" / "chunk-000" / "observation.images.top" / "episode_000002.mp4"
    file.write_bytes(file.read_bytes()[:300])
    found = {}
    for gib in (1.0, 0.0):
        settings = {"path": str(broken), **CONFIG, "cache_gib": gib, "broken_limit": 1.0}
        iterator = make_iterator(make_mixture(settings, "train"), 4, 0)
        found[gib] = take(iterator, 20)
        lost = iterator.broken["data"]
        notes = iterator.take_notes()
        assert 0 < lost == len(notes) and all(str(file) in note for note in notes) and not iterator.take_notes()
        assert not any((batch["episode"] == 2).any() for batch in found[gib])
    for first, second, whole in zip(*found.values(), take(make_iterator(mixture, 4, 0), 20)):
        assert_equal(first, second)
        kept = whole["episode"] != 2  # what is whole stays in its place
        np.testing.assert_array_equal(first["frame"][kept], whole["frame"][kept])


def test_too_much_that_is_broken_stops_training(broken):
    file = broken / "videos" / "chunk-000" / "observation.images.top" / "episode_000002.mp4"
    file.write_bytes(file.read_bytes()[:300])
    iterator = make_iterator(make_mixture({"path": str(broken), **CONFIG}, "train"), 4, 0)
    message = r"examples are broken, more than config.data.broken_limit=0.01.*" + re.escape(str(file))
    with pytest.raises(UserError, match=message):
        take(iterator, 200)
