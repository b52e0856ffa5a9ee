"""Several sources as one: shares, the order over hosts and workers, and what a checkpoint keeps of each source."""

import json
import re
import shutil

import lerobot_fixture as fixture
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from orbax.checkpoint import v1 as ocp

from motus_jax.data.mixture import Mixture, make_dataset, make_mixture, settings_by_source
from motus_jax.data.pipeline import Batches, Loader, Opening, Stream, make_iterator
from motus_jax.errors import UserError

COMMON = {
    "chunk": 8, "video_frames": 4, "image_size": (28, 24), "threads": 2, "prefetch": 2, "cameras": ("top",),
    "augment": {"crop": 0.8, "brightness": 0.2},
}  # fmt: skip
SEED = 5


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> dict[str, str]:
    """Three small datasets of different sizes and rates."""
    folder = tmp_path_factory.mktemp("mixture")
    facts = {
        "a": {"lengths": (30, 24, 12), "dim": 14},
        "b": {"lengths": (40, 20, 33, 21), "dim": 6, "fps": 20},
        "c": {"lengths": (28, 14), "dim": 3},
    }
    return {
        name: str(fixture.write(folder / name, cameras={"top": (24, 32)}, splits={"train": f"0:{len(own['lengths'])}"},
                                **own))
        for name, own in facts.items()
    }  # fmt: skip


def config(sets, weights, **changes) -> dict:
    own = {name: {"path": sets[name], "weight": weight} for name, weight in weights.items()}
    return {**COMMON, "sources": own, **changes}


def opened(sets, weights, **changes) -> Mixture:
    return make_mixture(config(sets, weights, **changes), "train")


def take(iterator, count) -> list[dict[str, np.ndarray]]:
    return [next(iterator) for _ in range(count)]


def assert_equal(first, second):
    assert first.keys() == second.keys()
    for key in first:
        assert type(second[key]) is np.ndarray
        np.testing.assert_array_equal(first[key], second[key], err_msg=key)


def draws(iterator: Batches, batches) -> dict[str, list[tuple[int, int]]]:
    """(episode, frame) of every example, by source, in order."""
    names = list(iterator._names)
    found = {name: [] for name in names}
    for batch in batches:
        for source, episode, frame in zip(batch["source"], batch["episode"], batch["frame"]):
            found[names[source]].append((int(episode), int(frame)))
    return found


def test_shares_follow_weights_and_layers(sets):
    plain = opened(sets, {"a": 1.0, "b": 3.0, "c": 0.0})
    assert list(plain.datasets) == ["a", "b"]  # of weight 0 is left out, and need not be there
    np.testing.assert_allclose(plain.probabilities, [0.25, 0.75])
    drawn = np.concatenate([plain.draw(SEED, step, 64) for step in range(400)])
    counts = np.bincount(drawn, minlength=2) / len(drawn)
    np.testing.assert_allclose(counts, plain.probabilities, atol=4 * np.sqrt(0.19 / len(drawn)))

    sources = {
        "a": {"path": sets["a"], "layer": 6},
        "b": {"path": sets["b"], "layer": 3, "weight": 3.0},
        "c": {"path": sets["c"], "layer": 3, "weight": 1.0},
    }
    layered = make_mixture({**COMMON, "sources": sources, "layers": {3: 1.0, 6: 4.0}}, "train")
    np.testing.assert_allclose(layered.probabilities, [0.8, 0.15, 0.05])
    assert layered.primary is layered.datasets["a"]
    batch = next(make_iterator(layered, 16, SEED))
    assert {(int(s), int(n)) for s, n in zip(batch["source"], batch["layer"])} <= {(0, 6), (1, 3), (2, 3)}
    assert batch["embodiment"].tolist() == batch["source"].tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": {6: 1.0, 2: 1.0}}, r"weights for exactly the layers of the sources, \[6\]; found \[2, 6\]"),
        ({"sources": {"a": {"weight": -1.0}}}, "weights of at least 0; found -1.0 for a"),
        ({"sources": {"a": {"weight": 0.0}}}, "sources with a weight above 0; found none"),
        ({"sources": {"a": {"chunk": 4}}}, r"sources.a.chunk: expected a key of one source; .* set config.data.chunk"),
        ({"sources": {"a": {"colour": 4}}}, "sources.a.colour: unknown key"),
        ({"sources": {"a": {"layer": 7}}}, "expected layers from 1 to 6; found 7"),
    ],
)
def test_bad_mixtures(sets, change, message):
    settings = {**COMMON, "path": sets["a"], "sources": {"a": {}}} | change
    with pytest.raises(UserError, match=message):
        make_mixture(settings, "train")


def test_every_source_that_does_not_fit_is_listed_at_once(sets, tmp_path):
    sources = {"a": {"path": sets["a"]}, "b": {"path": str(tmp_path / "none")}, "c": {"path": sets["c"], "kind": "odd"}}
    with pytest.raises(UserError, match=r"found\n  b  .*/none: expected the folder.*\n  c  data.kind: expected one of"):
        make_mixture({**COMMON, "sources": sources}, "train")


def test_one_embodiment_means_one_space_and_the_same_dims(sets):
    sources = {name: {"path": sets[name], "embodiment": "arm"} for name in ("a", "b")}
    message = "  b  robot_state_dim: expected 14 as in a, of the same embodiment 'arm'; found 6"
    with pytest.raises(UserError, match=message):
        make_mixture({**COMMON, "sources": sources}, "train")


def test_sources_of_one_embodiment_share_one_normalisation(sets, tmp_path):
    """That of all their training rows together; a given contract keeps its own."""
    other = str(fixture.write(tmp_path / "d", lengths=(50, 16), cameras={"top": (24, 32)}, splits={"train": "0:2"}))
    sources = {"a": {"path": sets["a"], "embodiment": "arm"}, "b": {"path": sets["b"]},
               "d": {"path": other, "embodiment": "arm"}}  # fmt: skip
    settings = {**COMMON, "sources": sources, "action_space": "absolute"}
    alone = opened({**sets, "d": other}, {"a": 1.0, "b": 1.0, "d": 1.0}, action_space="absolute")
    mixture = make_mixture(settings, "train")
    specs = {name: dataset.spec for name, dataset in mixture.datasets.items()}
    assert specs["a"].action == specs["d"].action != alone.datasets["a"].spec.action
    assert specs["b"].action == alone.datasets["b"].spec.action
    pooled = np.concatenate([
        dataset.raw_actions(*start) for name in "ad" for dataset in [mixture.datasets[name]]
        for start in dataset.starts.tolist()
    ]).astype(np.float64)  # fmt: skip
    np.testing.assert_allclose(specs["a"].action.offset, pooled.mean(0), rtol=1e-5)
    np.testing.assert_allclose(specs["a"].action.scale, pooled.std(0), rtol=1e-5)
    assert make_mixture(settings, "test").contracts() == mixture.contracts()
    assert make_dataset(settings, "train", source="d").contract() == mixture.contracts()["d"]
    given = {"a": alone.datasets["a"].spec}
    kept = make_mixture(settings, "train", contracts=given)
    assert kept.datasets["a"].spec == given["a"] and kept.datasets["b"].spec == alone.datasets["b"].spec
    assert kept.datasets["d"].spec.action == given["a"].action and kept.datasets["d"].spec.state == given["a"].state


def test_what_hardly_moves_is_named_once_per_source(sets, tmp_path, caplog):
    still = shutil.copytree(sets["c"], tmp_path / "still")
    (file,) = still.glob("data/*/*.parquet")
    table = pq.read_table(file)
    values = np.stack(table["action"].to_numpy())
    values[:, 1] = 0.25
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), 3)
    pq.write_table(table.set_column(table.schema.get_field_index("action"), "action", column), file)
    for split in ("train", "test", "train"):
        make_mixture(config({**sets, "still": str(still)}, {"c": 1.0, "still": 1.0}, action_space="absolute"), split)
    lines = [record.getMessage() for record in caplog.records if "hardly moves" in record.getMessage()]
    assert lines == [f"{still}: action hardly moves in joint_1; their scale is bounded"]


def test_global_batches_are_the_same_for_any_hosts_and_workers(sets):
    weights = {"a": 1.0, "b": 2.0, "c": 0.5}
    whole = take(make_iterator(opened(sets, weights), 8, SEED), 6)
    assert all(len(set(batch["source"].tolist())) > 1 for batch in whole)
    for hosts, workers in ((2, 0), (4, 0), (1, 2), (1, 3)):
        parts = []
        for host in range(hosts):
            iterator = make_iterator(opened(sets, weights, workers=workers), 8, SEED, host=host, hosts=hosts)
            parts.append(take(iterator, 6))
            iterator.close()
        for step, batch in enumerate(whole):
            assert_equal(batch, {key: np.concatenate([part[step][key] for part in parts]) for key in batch})


def test_every_source_goes_through_all_its_chunks_before_it_repeats(sets):
    mixture = opened(sets, {"a": 1.0, "b": 1.0, "c": 2.0})
    iterator = make_iterator(mixture, 16, SEED)
    found = draws(iterator, take(iterator, 20))
    for name, dataset in mixture.datasets.items():
        chunks = sorted(tuple(start) for start in dataset.starts.tolist())
        assert len(found[name]) == iterator.drawn[name] > len(chunks)
        assert sorted(found[name][: len(chunks)]) == chunks


@pytest.mark.parametrize("workers", [0, 2])
def test_changed_weights_after_a_checkpoint_continue_each_source_where_it_was(sets, tmp_path, workers):
    first = make_iterator(opened(sets, {"a": 1.0, "b": 1.0}), 8, SEED)
    before = draws(first, take(first, 5))
    ocp.save_checkpointables(tmp_path / "5", {"data": first})

    second = make_iterator(opened(sets, {"a": 1.0, "b": 9.0}, workers=workers), 8, SEED)
    ocp.load_checkpointables(tmp_path / "5", {"data": second})
    after = draws(second, take(second, 5))
    second.close()
    assert len(after["b"]) > 4 * len(after["a"])
    alone = {name: make_iterator(opened(sets, {name: 1.0}), 8, SEED) for name in ("a", "b")}
    for name, iterator in alone.items():
        order = draws(iterator, take(iterator, 9))[name]
        both = before[name] + after[name]
        assert order[: len(both)] == both


def test_the_nth_example_of_a_source_hangs_on_nothing_else(sets):
    """Not even on its place among the sources: neither its chunk nor its augmentation."""
    alone, joined = opened(sets, {"c": 1.0}), opened(sets, {"a": 1.0, "b": 1.0, "c": 1.0})
    first, second = make_iterator(alone, 4, SEED), make_iterator(joined, 4, SEED)
    expected = take(first, 2)
    pictures = np.concatenate([batch["frames"] for batch in expected])
    found = np.concatenate([batch["frames"][batch["source"] == 2] for batch in take(second, 10)])
    assert len(found) >= 8
    np.testing.assert_array_equal(found[:8], pictures)
    assert pictures.std() > 1


def test_sources_may_join_and_leave(sets):
    first = make_iterator(opened(sets, {"a": 1.0, "b": 1.0}), 8, SEED)
    before = draws(first, take(first, 4))

    second = make_iterator(opened(sets, {"a": 1.0, "c": 1.0}), 8, SEED)
    second.set_state(first.get_state())
    meanwhile = draws(second, take(second, 4))
    assert second.get_state()["drawn"]["b"] == len(before["b"])  # kept for its return

    third = make_iterator(opened(sets, {"a": 1.0, "b": 1.0, "c": 1.0}), 8, SEED)
    third.set_state(json.loads(json.dumps(second.get_state())))
    after = draws(third, take(third, 4))
    for name in ("a", "b", "c"):
        iterator = make_iterator(opened(sets, {name: 1.0}), 8, SEED)
        order = draws(iterator, take(iterator, 12))[name]
        together = before.get(name, []) + meanwhile.get(name, []) + after[name]
        assert order[: len(together)] == together


@pytest.mark.parametrize(("hosts", "workers"), [(1, 0), (4, 0), (2, 2)])
def test_resume_on_another_number_of_hosts_through_a_checkpoint(sets, tmp_path, hosts, workers):
    weights = {"a": 1.0, "b": 2.0}
    straight = take(make_iterator(opened(sets, weights), 8, SEED), 9)
    first = make_iterator(opened(sets, weights), 8, SEED, host=0, hosts=2)
    take(first, 5)
    ocp.save_checkpointables(tmp_path / "5", {"data": first})
    parts = []
    for host in range(hosts):
        iterator = make_iterator(opened(sets, weights, workers=workers), 8, SEED, host=host, hosts=hosts)
        ocp.load_checkpointables(tmp_path / "5", {"data": iterator})
        parts.append(take(iterator, 4))
        assert iterator.step == 9 and sum(iterator.drawn.values()) == 72
        iterator.close()
    for step, batch in enumerate(straight[5:]):
        assert_equal(batch, {key: np.concatenate([part[step][key] for part in parts]) for key in batch})


def test_a_loader_may_be_asked_for_steps_far_behind(sets):
    """Threads and workers lag behind each other; a plan that was forgotten is made again, the same."""
    mixture = opened(sets, {"a": 1.0, "b": 2.0}, threads=1)
    opening = Opening(mixture.settings, mixture.split, mixture.contracts(), {})
    loader = Loader(opening, Stream(SEED, 8, 0, 1, 0, (0, 0)), mixture)
    near = loader._plan(0)
    loader._plan(500)
    assert 0 not in loader._plans
    for old, new in zip(near, loader._plan(0)):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("workers", [0, 2])
def test_quarantine_reaches_the_run_from_every_worker(broken, sets, workers):
    file = broken / "videos" / "chunk-000" / "observation.images.top" / "episode_000002.mp4"
    file.write_bytes(file.read_bytes()[:300])
    sources = {"whole": {"path": sets["a"]}, "lost": {"path": str(broken)}}
    settings = {**COMMON, "sources": sources, "workers": workers, "broken_limit": 0.5}
    iterator = make_iterator(make_mixture(settings, "train"), 8, SEED)
    batches = take(iterator, 10)
    notes = iterator.take_notes()
    iterator.close()
    assert iterator.broken["whole"] == 0 < iterator.broken["lost"] == len(notes)
    assert all(note.startswith("lost: ") and str(file) in note for note in notes)
    here = make_iterator(make_mixture({**settings, "workers": 0}, "train"), 8, SEED)
    for batch in batches:
        assert_equal(next(here), batch)
    lost = np.concatenate([batch["source"] for batch in batches]) == 0
    assert not (np.concatenate([batch["episode"] for batch in batches])[lost] == 2).any()
    strict = make_iterator(make_mixture({**settings, "broken_limit": 0.01}, "train"), 8, SEED)
    with pytest.raises(UserError, match=r"broken_limit=0.01.*" + re.escape(str(file))):
        take(strict, 60)
    strict.close()


def test_settings_by_source_keep_what_is_common(sets):
    found = settings_by_source(config(sets, {"b": 2.0, "a": 1.0}, action_space="absolute"))
    assert list(found) == ["a", "b"]
    assert {own["action_space"] for own in found.values()} == {"absolute"} and found["b"]["weight"] == 2.0
