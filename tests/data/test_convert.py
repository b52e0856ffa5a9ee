"""Any source -> record files and back: same numbers, pictures, texts; killed, shared, broken, remote conversions."""

import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import lerobot_fixture as fixture
import numpy as np
import pytest

from motus_jax.data import convert_command, records, source, storage
from motus_jax.data.convert import Settings, Work, convert, kept_rows
from motus_jax.data.mixture import make_mixture
from motus_jax.data.pipeline import make_iterator
from motus_jax.data.sources import open_source
from motus_jax.data.sources.records import RecordsDataset
from motus_jax.errors import UserError

SETTINGS = Settings(crf=5, shards=2)
QUIET = Work(workers=2, say=lambda line: None)


class Odd(source.Source):
    """A source with what LeRobot has not: texts by row, times of its own, latent actions, sizes by episode."""

    def __init__(self, broken: frozenset[int] = frozenset(), lengths=(9, 14, 11)):
        super().__init__("odd")
        self.format, self.robot, self.fps, self._broken = "odd", "arm", 4.0, broken
        self.cameras = {"front": None, "cam.side": (35, 51)}
        self.state_names, self.action_names, self.latent_dim = ("x", "y"), (), 3
        self.episodes = [source.Episode(k, length) for k, length in enumerate(lengths)]

    def read_rows(self, index):
        if index in self._broken:
            raise source.broken("odd", index, "state", "numbers", "letters")
        n, rng = self.episode(index).length, np.random.default_rng(index)
        times = np.cumsum(rng.uniform(0.2, 0.3, n)) if index else np.arange(n) / 4.0
        times = times - times[0]
        state, latent = rng.normal(size=(n, 2)).astype(np.float32), rng.normal(size=(n, 3)).astype(np.float32)
        return source.Rows(times, state, np.zeros((n, 0), np.float32), times, latent, rng.random(n) < 0.7)

    def times(self, index):
        return self.rows(index).times

    def read_frames(self, index, camera, rows):
        height, width = self.cameras[camera] or (20 + 7 * index, 30 + 2 * index)
        return np.stack([np.full((height, width, 3), 30 + 8 * row, np.uint8) for row in rows])

    def has_camera(self, index, camera):
        return (index, camera) != (2, "front")

    def texts(self, index, row=0):
        return () if index == 2 else ("reach", "go there") if row < 5 else ("grasp",)

    def all_texts(self):
        return ["go there", "grasp", "never said", "reach"]

    def size_bytes(self):
        return 99


@pytest.fixture(scope="module")
def lerobot(v3):
    return open_source("lerobot", str(v3))


@pytest.fixture(scope="module")
def made(lerobot, tmp_path_factory) -> pathlib.Path:
    """The test dataset as records; tests that damage it take a copy."""
    out = tmp_path_factory.mktemp("records") / "set"
    convert(lerobot, "lerobot", storage.path(out), SETTINGS, QUIET)
    return out


@pytest.fixture
def damaged(made, tmp_path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(made, tmp_path / "set"))


def converted(given: source.Source, out: pathlib.Path, settings: Settings = SETTINGS) -> RecordsDataset:
    convert(given, "test", storage.path(out), settings, QUIET)
    return RecordsDataset(str(out))


def files(folder: pathlib.Path) -> dict[str, bytes]:
    """Everything but the statistics that training adds."""
    found = {str(file.relative_to(folder)): file for file in folder.rglob("*") if file.is_file()}
    return {name: file.read_bytes() for name, file in found.items() if name != "statistics.json"}


def complaint(call) -> str:
    with pytest.raises(UserError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_everything_is_kept(lerobot, made):
    found = open_source("records", str(made))
    assert (found.robot, found.fps, found.cameras) == (lerobot.robot, lerobot.fps, lerobot.cameras)
    assert (found.state_names, found.action_names) == (lerobot.state_names, lerobot.action_names)
    assert [episode.length for episode in found.episodes] == [episode.length for episode in lerobot.episodes]
    assert (found.split("train"), found.split("test")) == (lerobot.split("train"), lerobot.split("test"))
    assert found.all_texts() == lerobot.all_texts() and found.format == "records 2 of LeRobot v3.0"
    assert found.size_bytes() == sum(file.stat().st_size for file in made.glob("shards/*.tables"))
    for episode in range(len(fixture.LENGTHS)):
        for mine, theirs in zip(found.rows(episode), lerobot.rows(episode)):
            assert np.array_equal(mine, theirs) and mine.dtype == theirs.dtype
        assert np.array_equal(found.times(episode), lerobot.times(episode))
        assert found.texts(episode, 3) == lerobot.texts(episode, 3)
        length = fixture.LENGTHS[episode]
        for name in fixture.CAMERAS:  # short names too
            rows = [length - 1, 0, length // 2, 0, length - 2]
            frames = found.frames(episode, name, rows)
            assert frames.shape == (5, *fixture.CAMERAS[name], 3) and frames.dtype == np.uint8
            assert np.abs(frames.astype(int) - lerobot.frames(episode, name, rows)).max() < 2  # rows are 4 apart


def test_odd_sources_are_kept_too(tmp_path):
    """Times, texts by row, no texts, latent actions, odd sizes and sizes by episode."""
    given, found = Odd(), converted(Odd(), tmp_path / "out", Settings(crf=5, segment_seconds=1.0))
    assert found.cameras == given.cameras and found.latent_dim == 3 and found.action_dim == 0
    assert found.all_texts() == ["go there", "grasp", "reach"]
    for episode in range(3):
        for mine, theirs in zip(found.rows(episode), given.rows(episode)):
            np.testing.assert_allclose(mine, theirs, rtol=0, atol=5e-7)  # times are kept to the microsecond
        np.testing.assert_allclose(found.times(episode), given.times(episode), rtol=0, atol=5e-7)
        assert np.array_equal(found.times(episode), found.rows(episode).times)
        assert [found.texts(episode, row) for row in range(9)] == [given.texts(episode, row) for row in range(9)]
        assert found.has_camera(episode, "front") == (episode != 2) and found.has_camera(episode, "cam.side")
        for camera in given.cameras if episode != 2 else ["cam.side"]:
            rows = list(range(given.episode(episode).length))
            frames, expected = found.frames(episode, camera, rows), given.read_frames(episode, camera, rows)
            assert frames.shape == expected.shape and np.abs(frames.astype(int) - expected).max() <= 3
    assert [not entry.steps for entry in found.index.episodes] == [True, False, False]
    assert found.camera_key("side") == "cam.side"
    for shard in (tmp_path / "out" / "shards").glob("*.tables"):
        shard.write_bytes(bytes(shard.stat().st_size))
    bare = open_source("records", str(tmp_path / "out"))
    np.testing.assert_array_equal(bare.times(1), found.times(1))  # of uneven rows too, without their table
    with pytest.raises(source.BrokenData):
        bare.rows(1)
    with pytest.raises(source.BrokenData, match=r"segment 0 of episode 2 .* expected camera 'front'; found cam.side"):
        found.frames(2, "front", [0])


def test_fewer_frames_smaller_pictures_one_camera(lerobot, tmp_path):
    settings = dataclasses.replace(SETTINGS, fps=5, size=(36, 36), cameras=("top",))
    found = converted(lerobot, tmp_path / "out", settings)
    assert (found.fps, found.cameras) == (5.0, {"observation.images.top": (28, 36)})
    for episode in (0, 1):
        rows, expected = found.rows(episode), lerobot.rows(episode)
        for field in ("state", "action", "times", "action_times"):  # every second row as it was
            assert np.allclose(getattr(rows, field), getattr(expected, field)[::2], rtol=0, atol=1e-12), field
        assert np.array_equal(rows.times, found.times(episode))
        frames = found.frames(episode, "top", [3, 0, 12])
        assert frames.shape == (3, 28, 36, 3)
        assert np.abs(frames.mean((1, 2, 3)) - [fixture.grey(0, row) for row in (6, 0, 24)]).max() < 1.5


def test_rates_that_do_not_divide():
    """10 rows a second at 4 a second: the nearest rows, whose times are told."""
    assert kept_rows(np.arange(12) / 10, 10, 4).tolist() == [0, 3, 5, 8, 10]  # of two as near the later, as in training
    assert kept_rows(np.arange(12) / 10, 10, 10).tolist() == list(range(12))
    assert kept_rows(np.array([0.0, 0.9, 1.0, 1.1, 3.0]), 4, 1).tolist() == [0, 2, 3, 4]


def test_broken_episodes_are_left_out_and_listed(tmp_path):
    lengths = (5, 6, 7, 5, 6, 7, 8)
    found = converted(Odd(broken=frozenset({1, 4}), lengths=lengths), tmp_path / "out")
    assert [entry.origin for entry in found.index.episodes] == [0, 2, 3, 5, 6]
    assert [index for index, _ in found.index.dropped] == [1, 4]
    assert found.index.dropped[0][1] == "state of episode 1 in odd: expected numbers; found letters"
    assert found.split("train") == [0, 1, 2, 3] and found.split("test") == [4]  # the source's last is still held out
    assert np.array_equal(found.rows(1).state, Odd(lengths=lengths).read_rows(2).state)
    everything = Odd(broken=frozenset({0, 1, 2}))
    assert "expected an episode that can be read; found state of episode 0" in complaint(
        lambda: converted(everything, tmp_path / "none")
    )


def test_a_killed_conversion_goes_on_with_the_same_bytes(v3, tmp_path):
    """Killed for real, as soon as the first shard is done."""
    lerobot = open_source("lerobot", str(v3))
    settings = Settings(shards=5)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    convert(lerobot, "lerobot", storage.path(whole), settings, QUIET)
    command = [sys.executable, "-m", "motus_jax.data", "convert", f"--path={v3}", f"--out={killed}", "--shards=5"]
    process = subprocess.Popen(command, cwd=pathlib.Path(__file__).parents[2], stderr=subprocess.DEVNULL)
    limit = time.monotonic() + 60
    while not (killed / "shards" / "00000.json").exists() and time.monotonic() < limit:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (killed / "index.json").exists()
    assert "a conversion that was not finished: run it again with --resume" in complaint(
        lambda: RecordsDataset(str(killed))
    )
    first = (killed / "shards" / "00000.frames").stat()
    assert "give --resume" in complaint(lambda: convert(lerobot, "lerobot", storage.path(killed), settings, QUIET))
    resumed = dataclasses.replace(QUIET, resume=True)
    convert(lerobot, "lerobot", storage.path(killed), settings, resumed)
    assert files(whole) == files(killed) and len(files(whole)) == 17
    again = (killed / "shards" / "00000.frames").stat()
    assert (first.st_ino, first.st_mtime_ns) == (again.st_ino, again.st_mtime_ns)  # not written twice
    other = dataclasses.replace(settings, crf=30)
    assert "expected a conversion with crf 30; found 20" in complaint(
        lambda: convert(lerobot, "lerobot", storage.path(killed), other, resumed)
    )


@pytest.mark.parametrize("step", range(1, 8))
def test_a_conversion_may_end_between_any_two_files(lerobot, made, tmp_path, monkeypatch, step):
    """Whatever was in place already, the rest completes it to the same bytes."""
    place, calls = storage.place, []

    def failing(file, target):
        calls.append(target)
        if len(calls) > step:
            raise KeyboardInterrupt
        place(file, target)

    out = storage.path(tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(storage, "place", failing)
        with pytest.raises(KeyboardInterrupt):
            convert(lerobot, "lerobot", out, SETTINGS, QUIET)
    convert(lerobot, "lerobot", out, SETTINGS, dataclasses.replace(QUIET, resume=True))
    assert files(tmp_path / "out") == files(made)


def test_hosts_share_the_work(lerobot, made, tmp_path):
    out = storage.path(tmp_path / "out")
    hosts = [dataclasses.replace(QUIET, host=host, hosts=2) for host in range(2)]
    assert convert(lerobot, "lerobot", out, SETTINGS, hosts[1]) is None
    assert not (tmp_path / "out" / "index.json").exists()
    assert convert(lerobot, "lerobot", out, SETTINGS, hosts[0]) is not None
    assert files(tmp_path / "out") == files(made)


def test_workers_change_nothing(lerobot, made, tmp_path):
    convert(lerobot, "lerobot", storage.path(tmp_path / "out"), SETTINGS, dataclasses.replace(QUIET, workers=1))
    assert files(tmp_path / "out") == files(made)


def test_the_library_reads_the_shards(made):
    """They are ArrayRecord files like any other."""
    from array_record.python import array_record_module

    found = RecordsDataset(str(made))
    read = [
        records.unpack_segment(record)
        for shard in sorted((made / "shards").glob("*.frames"))
        for record in array_record_module.ArrayRecordReader(str(shard)).read_all()
    ]
    assert [segment.first for segment in read] == [
        first for length in fixture.LENGTHS for first in range(0, length, found.index.segment_rows)
    ]


def test_incomplete_and_foreign_folders(damaged, tmp_path):
    assert "expected records (python -m motus_jax.data convert); found no index" in complaint(
        lambda: RecordsDataset(str(tmp_path))
    )
    assert "option remote: expected ranges or files; found 'all'" in complaint(
        lambda: RecordsDataset(str(damaged), {"remote": "all"})
    )
    shard = damaged / "shards" / "00001.frames"
    data = shard.read_bytes()
    shard.write_bytes(data[:-1])
    assert f"00001.frames: expected {len(data)} bytes, as index.json says; found {len(data) - 1}" in complaint(
        lambda: RecordsDataset(str(damaged))
    )
    shard.unlink()
    assert "found no such file" in complaint(lambda: RecordsDataset(str(damaged)))
    index = damaged / "index.json"
    record = json.loads(index.read_text())
    index.write_text(json.dumps(record | {"format": 3}))
    assert "expected records of format 2; found 3" in complaint(lambda: RecordsDataset(str(damaged)))
    del record["splits"]
    for text in (json.dumps(record), "{", "[]"):
        index.write_text(text)
        assert "expected an index of records; found" in complaint(lambda: RecordsDataset(str(damaged)))


def flip(file: pathlib.Path, offset: int) -> None:
    data = bytearray(file.read_bytes())
    data[offset] ^= 0x55
    file.write_bytes(data)


def test_a_flipped_bit_breaks_one_episode_only(damaged):
    found = RecordsDataset(str(damaged))
    place = found._places(1)[1]
    flip(damaged / "shards" / f"{found.index.episodes[1].shard:05}.frames", int(place[0]) + 200)
    flip(damaged / "shards" / f"{found.index.episodes[3].shard:05}.tables", found.index.episodes[3].table.offset + 50)
    found = RecordsDataset(str(damaged))
    with pytest.raises(source.BrokenData, match=r"segment 1 of episode 1 in .*frames: expected the record that was wr"):
        found.frames(1, "top", [25])
    with pytest.raises(source.BrokenData, match=r"table of episode 3 in .*tables: .* another checksum"):
        found.rows(3)
    assert len(found.frames(1, "top", [19])) == 1 and len(found.rows(1).times) == fixture.LENGTHS[1]
    for episode in (0, 2, 4):
        assert found.frames(episode, "top", [0]).shape and found.rows(episode)
    with pytest.raises(source.BrokenData, match="rows 0 to 29; found row 30"):
        found.frames(0, "top", [0, 30])


def test_refusals(lerobot, tmp_path):
    def refuse(settings=SETTINGS, work=QUIET):
        return complaint(lambda: convert(lerobot, "lerobot", storage.path(tmp_path / "out"), settings, work))

    change = dataclasses.replace
    assert "camera 'front'" in refuse(change(SETTINGS, cameras=("front",)))
    assert "--fps: expected at most the source's 10; found 20" in refuse(change(SETTINGS, fps=20))
    assert "--fps: expected at least 0" in refuse(change(SETTINGS, fps=-1))
    assert "--size: expected HEIGHTxWIDTH" in refuse(change(SETTINGS, size=(0, 8)))
    assert "--segment_seconds" in refuse(change(SETTINGS, segment_seconds=0))
    assert "--crf at most 51" in refuse(change(SETTINGS, crf=60))
    assert "0 <= host < hosts" in refuse(work=change(QUIET, host=2, hosts=2))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x")
    assert "expected a new or empty folder; found other files" in refuse()
    for flags, line in (
        (["--out=x"], "expected one of --path"),
        (["--path=x"], "--out is missing"),
        (["--path=x", "--out=y", "--size=3"], "--size: expected HEIGHTxWIDTH, e.g. 224x224; found '3'"),
    ):
        assert line in complaint(lambda flags=flags: convert_command.main(["convert", *flags]))


def test_the_command(v3, tmp_path, capsys):
    flags = [f"--path={v3}", f"--out={tmp_path / 'out'}", "--cameras=top,left_wrist", "--size=36x48", "--fps=5"]
    convert_command.main(["convert", *flags, "--workers=1"])
    found, told = RecordsDataset(str(tmp_path / "out")), capsys.readouterr()
    assert [size for size in found.cameras.values()] == [(36, 48), (36, 48)] and len(found.index.shards) == 1
    assert f"5 episodes, {found.total_frames} rows, 1 shards" in told.out
    assert "converted 5 of 5 episodes (0 broken)" in told.err and told.err.strip().endswith("0 s left")


def config(path, **changes) -> dict:
    base = {"kind": "records", "path": str(path), "chunk": 8, "video_frames": 4, "threads": 2, "prefetch": 2}
    return base | {"cache_gib": 0.0, **changes}


def batches(path, count: int = 6, **changes) -> list[dict[str, np.ndarray]]:
    iterator = make_iterator(make_mixture(config(path, **changes), "train"), 8, 3)
    found = [next(iterator) for _ in range(count)]
    assert not any(iterator.broken.values())
    iterator.close()
    return found


def assert_same(first, second):
    for mine, theirs in zip(first, second, strict=True):
        assert mine.keys() == theirs.keys()
        for key in mine:
            np.testing.assert_array_equal(mine[key], theirs[key], err_msg=key)


def upload(folder: pathlib.Path, target: storage.Path) -> None:
    for name, content in files(folder).items():
        (target / name).write_bytes(content)


@pytest.mark.parametrize("remote", ["ranges", "files"])
def test_training_batches_from_a_bucket_with_faults(gcs, bucket, lerobot, tmp_path, remote, monkeypatch):
    """One answer in a hundred damaged, then four in ten: the same batches as from disk, nothing lost."""
    from motus_jax.data import gcs as client

    monkeypatch.setattr(client, "RETRIES", client.Retries(first=0.005, longest=0.05))
    fine = tmp_path / "set"  # short segments: many reads
    convert(lerobot, "lerobot", storage.path(fine), dataclasses.replace(SETTINGS, segment_seconds=0.5), QUIET)
    upload(fine, bucket / "set")
    expected = batches(fine)
    for rate in (0.01, 0.4):
        gcs.faults(rate=rate, seed=2)
        monkeypatch.setenv("MOTUS_CACHE", os.environ["MOTUS_CACHE"] + "+")
        assert_same(batches(bucket / "set", options={"remote": remote}), expected)
    counts = gcs.counts()
    assert sum(counts.values()) - counts["requests"] >= (10 if remote == "ranges" else 2)


def test_conversion_from_and_to_a_bucket_with_faults(gcs, bucket, v3, made, monkeypatch):
    from motus_jax.data import gcs as client

    monkeypatch.setattr(client, "RETRIES", client.Retries(first=0.005, longest=0.05))
    upload(v3, bucket / "source")
    gcs.faults(rate=0.1, seed=4)
    given = open_source("lerobot", str(bucket / "source"))
    convert(given, "lerobot", bucket / "set", SETTINGS, QUIET)
    gcs.faults()
    for name, content in files(made).items():
        assert (bucket / "set" / name).read_bytes() == content, name
    (bucket / "set" / "shards" / "00001.json").unlink()
    (bucket / "set" / "index.json").unlink()
    convert(given, "lerobot", bucket / "set", SETTINGS, dataclasses.replace(QUIET, resume=True))
    for name, content in files(made).items():
        assert (bucket / "set" / name).read_bytes() == content, name


def test_what_is_expected_is_there_when_asked(gcs, bucket, made):
    upload(made, bucket / "set")
    found, local = RecordsDataset(str(bucket / "set")), RecordsDataset(str(made))
    assert found.fetches_ahead and not local.fetches_ahead
    found.rows(1)
    found.expect(1, [3, 25, 40])
    limit = time.monotonic() + 10
    while gcs.counts()["requests"] == 0 or not all(f.done() for f, _ in list(found._fetcher._kept.values())):
        assert time.monotonic() < limit
        time.sleep(0.01)
    gcs.faults()
    for camera in found.cameras:
        assert np.array_equal(found.frames(1, camera, [40, 3, 25]), local.frames(1, camera, [40, 3, 25]))
    assert not gcs.counts()
    local.expect(0, [0])  # nothing to do
    assert not local._fetcher._kept


def test_the_next_batches_are_announced(gcs, bucket, made, monkeypatch):
    """When a batch is begun, all of its pictures and those of the next two are on their way."""
    upload(made, bucket / "set")
    told, expect = [], RecordsDataset.expect

    def note(self, index, rows):
        told.append((index, int(rows[0])))
        expect(self, index, rows)

    monkeypatch.setattr(RecordsDataset, "expect", note)
    mixture = make_mixture(config(bucket / "set", threads=1, prefetch=1), "train")
    iterator = make_iterator(mixture, 8, 3)
    found = [next(iterator) for _ in range(3)]
    iterator.close()
    starts = [(int(e), int(f)) for batch in found for e, f in zip(batch["episode"], batch["frame"])]
    first = [place for number, place in enumerate(told) if place not in told[:number]]
    assert set(starts) <= set(told) and set(first[:16]) >= set(starts[:16])


def test_a_damaged_object_breaks_its_episode(gcs, bucket, damaged):
    found = RecordsDataset(str(damaged))
    flip(damaged / "shards" / "00000.frames", int(found._places(0)[0][0]) + 300)
    upload(damaged, bucket / "set")
    found = RecordsDataset(str(bucket / "set"))
    with pytest.raises(source.BrokenData, match=r"segment 0 of episode 0 in gs://.*00000.frames: .* another checksum"):
        found.frames(0, "top", [0])
    assert len(found.frames(0, "top", [25])) == 1
    (bucket / "set" / "shards" / "00000.frames").unlink()
    with pytest.raises(source.BrokenData, match="segment 0 of episode 1 in gs://"):
        found.frames(1, "top", [0])
