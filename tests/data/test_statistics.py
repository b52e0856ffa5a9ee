"""Statistics against numpy, and the file they are kept in."""

import json
import shutil
import time

import numpy as np
import pyarrow.parquet as pq
import pytest

from motus_jax.data import moments, source, statistics, statistics_pass, storage
from motus_jax.data.sampling import Timing
from motus_jax.data.sources.lerobot import LeRobotDataset
from motus_jax.errors import UserError

TIMING = Timing(10, 5, 16, 8)


def rows_of(seed, count=5000):
    return np.random.default_rng(seed).normal([3, -1e3], [0.1, 20], (count, 2)).astype(np.float32)


def test_pieces_equal_the_whole():
    rows = rows_of(1)
    sums = moments.nothing(2)
    for part in np.array_split(rows, 7):
        sums = moments.add(sums, moments.piece(part))
    found = moments.finish(sums, rows)
    np.testing.assert_allclose(found.mean, rows.mean(0, np.float64), rtol=1e-12)
    np.testing.assert_allclose(found.std, rows.std(0, dtype=np.float64), rtol=1e-9)
    np.testing.assert_allclose([found.q01, found.q99], np.quantile(rows, [0.01, 0.99], axis=0), rtol=1e-6)
    assert found.min == tuple(rows.min(0)) and found.max == tuple(rows.max(0)) and found.count == 5000


def test_weights_stand_for_copies():
    rows, times = rows_of(2, 50), np.random.default_rng(0).integers(0, 4, 50)
    rows[times.argmin()] = 1e6  # counts nothing, not even as an extreme
    for one, other in zip(moments.weighted_piece(rows, times), moments.piece(np.repeat(rows, times, axis=0))):
        np.testing.assert_allclose(one, other, rtol=1e-12)


def test_the_sample_is_one_row_of_each_stratum():
    places = moments.strata(10_000, 1000)
    assert (places // 10 == np.arange(1000)).all() and len(set((places % 10).tolist())) == 10
    assert moments.strata(700, 1000).tolist() == list(range(700))
    assert np.array_equal(places, moments.strata(10_000, 1000))
    uneven = moments.strata(1_003, 1000)
    assert (np.diff(uneven) >= 0).all() and uneven[-1] < 1003


def test_quantiles_of_a_large_set_are_as_near_as_promised(monkeypatch):
    """The share of rows below a quantile is off by sqrt(q (1 - q) / SAMPLE)."""
    monkeypatch.setattr(moments, "SAMPLE", 10_000)
    rows = rows_of(3, 400_000)
    found = moments.finish(moments.piece(rows), rows[moments.strata(len(rows))])
    for quantile, level in ((found.q01, 0.01), (found.q99, 0.99)):
        shares = (rows < np.float32(quantile)).mean(0)
        assert np.abs(shares - level).max() < 4 * np.sqrt(0.01 * 0.99 / 10_000)


def test_merged_is_that_of_all_rows():
    parts = [rows_of(1, 300), rows_of(2, 9000) * [3, 0.5], np.tile(np.float32([[7, 7]]), (700, 1))]
    whole = np.concatenate(parts).astype(np.float32)
    parts = [part.astype(np.float32) for part in parts]
    found = moments.merged([moments.finish(moments.piece(part), part) for part in parts])
    np.testing.assert_allclose(found.mean, whole.mean(0, np.float64), rtol=1e-12)
    np.testing.assert_allclose(found.std, whole.std(0, dtype=np.float64), rtol=1e-12)
    assert found.min == tuple(whole.min(0)) and found.max == tuple(whole.max(0)) and found.count == 10_000
    for level, quantile in zip(moments.LEVELS, np.array(found.quantiles)):
        for k in range(2):
            below, upto = (whole[:, k] < quantile[k] - 1e-3).mean(), (whole[:, k] <= quantile[k] + 1e-3).mean()
            assert below - 0.004 <= level <= upto + 0.004
    again = moments.merged([moments.finish(moments.piece(whole), whole)])
    np.testing.assert_allclose(again.q99, np.quantile(whole, 0.99, axis=0), rtol=1e-5)


def test_pooled_over_chunks_without_any_video(broken_v3):
    shutil.rmtree(broken_v3 / "videos")
    dataset = LeRobotDataset(broken_v3)
    found = statistics.compute(dataset, TIMING)
    states, chunks = [], []
    for episode in (0, 1, 2, 3):
        rows = dataset.rows(episode)
        for start in range(len(rows.state) - 16):
            states.append(rows.state[start])
            chunks.append(rows.action[start : start + 16])
    states, chunks = np.array(states, np.float64), np.array(chunks, np.float64)
    deltas = chunks - states[:, None]
    for quantity, values in (
        (found.state, states),
        (found.actions["absolute"], chunks.reshape(-1, 14)),
        (found.actions["delta"], deltas.reshape(-1, 14)),
    ):
        assert_plain(quantity, values)


def assert_plain(found, values):
    """Equal to the plain definition over all rows."""
    np.testing.assert_allclose(found.mean, values.mean(0), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found.std, values.std(0), rtol=1e-5)
    np.testing.assert_allclose([found.min, found.max], [values.min(0), values.max(0)], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose([found.q01, found.q99], np.quantile(values, [0.01, 0.99], axis=0), rtol=1e-5, atol=1e-6)
    assert found.count == len(values)


class Motions(source.Source):
    """Random walks of many lengths at odd moments; episode 3 is broken."""

    format, robot, fps, cameras = "made up", "arm", 10.0, {}
    broken_one = 3

    def __init__(self, path, states=3, actions=3, latents=0):
        super().__init__(path)
        self.state_names = tuple(f"s{k}" for k in range(states))
        self.action_names = tuple(f"a{k}" for k in range(actions))
        self.latent_dim = latents
        self.episodes = [source.Episode(k, 20 + 7 * k) for k in range(40)]

    def times(self, index):
        steps = np.random.default_rng([index, 1]).uniform(0.08, 0.12, self.episode(index).length)
        return np.cumsum(steps) - steps[0]

    def read_rows(self, index):
        if index == self.broken_one:
            raise source.broken(self.path, index, "table", "rows", "none")
        random, times = np.random.default_rng([index, 2]), self.times(index)
        state, action, latent = (
            np.cumsum(random.normal(size=(len(times), width)), 0).astype(np.float32)
            for width in (self.state_dim, self.action_dim, self.latent_dim)
        )
        return source.Rows(times, state, action, times, latent, random.random(len(times)) < 0.8)

    def read_frames(self, index, camera, rows):
        raise AssertionError("statistics look at no pictures")

    def texts(self, index, row=0):
        return ()

    def all_texts(self):
        return []

    def size_bytes(self):
        return 1


@pytest.mark.parametrize("widths", [(3, 3, 0), (5, 3, 2), (0, 4, 0), (2, 0, 0), (0, 0, 6)])
def test_any_number_of_threads_gives_the_same_bits_and_the_plain_numbers(tmp_path, widths, caplog):
    dataset = Motions(tmp_path, *widths)
    found = [statistics.compute(Motions(tmp_path, *widths), TIMING, threads) for threads in (1, 2, 5)]
    assert found[0] == found[1] == found[2]
    assert "1 of 36 episodes cannot be read and are left out; the first: table of episode 3" in caplog.text
    asked = statistics.compute(dataset, TIMING, 2, "steps_gripper")
    states, pooled = [], {"absolute": [], "delta": [], "latent": [], "latent_delta": [], "steps_gripper": []}
    for episode in dataset.split("train"):
        if episode == 3:
            continue
        rows = dataset.rows(episode)
        for start in TIMING.starts(rows.times):
            states.append(rows.state[start])
            pooled["absolute"].append(TIMING.sample_actions(rows, start))
            known = TIMING.sample_has_latent(rows, start)
            latents, until = TIMING.sample_latents(rows, start), [*known, False].index(False)
            pooled["latent"].append(latents[known])
            pooled["latent_delta"].append(latents[:until].cumsum(0))
            pooled["steps_gripper"].append(TIMING.sample_changes(rows, start, 1) if widths[1] else np.zeros((0, 0)))
            if widths[0] >= widths[1]:
                pooled["delta"].append(pooled["absolute"][-1] - rows.state[start, : widths[1]])
    expected = {name: np.concatenate(values) for name, values in pooled.items() if values and values[0].shape[1]}
    assert set(asked.actions) == set(expected) and set(found[0].actions) == set(expected) - {"steps_gripper"}
    assert asked.settings != found[0].settings
    for name, values in expected.items():
        assert_plain(asked.actions[name], values.astype(np.float64))
    if widths[0]:
        assert_plain(found[0].state, np.array(states, np.float64))
    else:
        assert found[0].state.mean == () and found[0].state.count == 0


def test_small_samples_do_not_hang_on_threads_either(tmp_path, monkeypatch):
    exact = statistics.compute(Motions(tmp_path), TIMING)
    monkeypatch.setattr(moments, "SAMPLE", 5000)
    one, other = (statistics.compute(Motions(tmp_path), TIMING, threads) for threads in (1, 4))
    assert one == other and one.state.mean == exact.state.mean
    delta, whole = one.actions["delta"], exact.actions["delta"]
    assert delta.std == whole.std and delta.q01 != whole.q01
    np.testing.assert_allclose(delta.q01, whole.q01, rtol=0.1)


def test_nothing_readable_is_an_error(tmp_path):
    class Lost(Motions):
        def read_rows(self, index):
            raise source.broken(self.path, index, "table", "rows", "none")

    with pytest.raises(UserError, match="expected a readable training episode; found none: table of episode 0"):
        statistics.compute(Lost(tmp_path), TIMING)


def test_no_more_than_a_few_blocks_are_read_ahead():
    begun = []

    def work(block):
        begun.append(block)
        return block

    blocks = statistics_pass._blocks(work, range(100 * statistics_pass.BLOCK), 2)
    found = [next(blocks) for _ in range(3)]
    time.sleep(0.1)
    assert len(begun) <= 3 + 4
    assert [block[0] // statistics_pass.BLOCK for block in [*found, *blocks]] == list(range(100))


def spread(std, half_range):
    ones = np.ones(len(std))
    values = (0 * ones, np.array(std), -ones, ones, -np.array(half_range), np.array(half_range))
    return moments.Moments(*(tuple(value.tolist()) for value in values), count=10)


def test_still_dims_do_not_explode():
    quantity = spread(std=[0.5, 1e-7, 0.0], half_range=[1.0, 1e-7, 0.0])
    numbers = statistics.Statistics({}, quantity, {})
    assert numbers.near_constant(quantity) == [1, 2]
    assert numbers.affine(quantity, "meanstd").scale == (0.5, 0.005, 0.005)
    assert numbers.affine(quantity, "quantile").scale == (1.0, 0.005, 0.005)
    assert numbers.affine(quantity, "none").scale == (1.0, 1.0, 1.0)
    still = spread(std=[0.0, 0.0], half_range=[0.0, 0.0])
    assert numbers.affine(still, "meanstd").scale == (1.0, 1.0)


def test_a_rarely_moving_gripper_keeps_a_range():
    quantity = spread(std=[0.1], half_range=[0.0])
    assert statistics.Statistics({}, quantity, {}).affine(quantity, "quantile").scale == (0.1,)


def test_unknown_normalisation():
    quantity = spread([1.0], [1.0])
    with pytest.raises(UserError, match="expected one of meanstd, quantile, none; found 'minmax'"):
        statistics.Statistics({}, quantity, {}).affine(quantity, "minmax")


def test_file_is_keyed_by_settings(v3, tmp_path):
    dataset, file = LeRobotDataset(v3), tmp_path / "statistics.json"
    first = statistics.load_or_compute(dataset, TIMING, file)
    other = statistics.load_or_compute(dataset, Timing(10, 5, 8, 4), file)
    assert len(json.loads(file.read_text())) == 2
    assert statistics.load_or_compute(dataset, TIMING, file) == first != other
    assert statistics.load(file, statistics.settings_of(dataset, Timing(5, 5, 8, 8))) is None
    file.write_text("[]")
    with pytest.raises(UserError, match="expected statistics written by this program"):
        statistics.load_or_compute(dataset, TIMING, file)


def test_read_only_folder_is_only_a_warning(v3, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    found = statistics.load_or_compute(LeRobotDataset(v3), TIMING, tmp_path / "file" / "statistics.json")
    assert found.state.count > 0 and "statistics not stored" in caplog.text


def test_a_dataset_recorded_anew_gets_new_statistics(broken_v3, tmp_path):
    file = tmp_path / "statistics.json"
    statistics.load_or_compute(LeRobotDataset(broken_v3), TIMING, file)
    table = broken_v3 / "data" / "chunk-000" / "file-000.parquet"
    pq.write_table(pq.read_table(table).replace_schema_metadata({"again": "yes"}), table)
    dataset = LeRobotDataset(broken_v3)
    assert statistics.load(file, statistics.settings_of(dataset, TIMING)) is None


def test_starts_and_options_are_part_of_the_key(v3, tmp_path):
    dataset, file = LeRobotDataset(v3), tmp_path / "statistics.json"
    statistics.load_or_compute(dataset, TIMING, file)
    everywhere = Timing(10, 5, 16, 8, "all")
    assert statistics.load(file, statistics.settings_of(dataset, everywhere)) is None
    assert statistics.load_or_compute(dataset, everywhere, file).state.count == sum((30, 41, 26, 35))


def test_statistics_of_a_file_lie_beside_it(v3, tmp_path):
    dataset = LeRobotDataset(v3)
    assert statistics.file_of(dataset) == dataset.path / "statistics.json"
    (tmp_path / "set.bag").write_text("")
    dataset.path = storage.path(tmp_path / "set.bag")
    assert statistics.file_of(dataset) == tmp_path / "set.bag.statistics.json"


def test_widths_of_one_embodiment_must_agree(tmp_path):
    parts = [statistics.compute(Motions(tmp_path, width, 2), TIMING) for width in (2, 3)]
    with pytest.raises(UserError, match=r"expected state of one width; found \[2, 3\]"):
        statistics.merged(parts)
