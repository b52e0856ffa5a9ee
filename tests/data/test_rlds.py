"""RLDS sets that TensorFlow Datasets wrote, against what TensorFlow reads from them; and damaged ones."""

import gzip
import json
import logging
import pathlib
import shutil

import cv2
import numpy as np
import pytest

from motus_jax.data import file_index, pictures, rlds_records, tfrecord
from motus_jax.data.oxe_rates import RATES
from motus_jax.data.source import BrokenData
from motus_jax.data.sources import open_source
from motus_jax.errors import UserError

FIXTURES = pathlib.Path(__file__).parent / "fixtures" / "rlds"
EXPECTED = np.load(FIXTURES / "expected.npz")
LENGTHS = {"train": (5, 1, 7), "val": (4, 2)}
RT1 = ("action/world_vector", "action/rotation_delta", "action/gripper_closedness_action")


def copy(name: str, path: pathlib.Path) -> pathlib.Path:
    """A set for a test to keep its index in, or to damage."""
    path.mkdir(parents=True)
    for file in (FIXTURES / name).iterdir():
        if file.suffix == ".gz":
            (path / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
        else:
            shutil.copy(file, path)
    return path


def opened(path, **options):
    return open_source("rlds", str(path), {"fps": 5, **options})


def complaint(call, kind=UserError) -> str:
    with pytest.raises(kind) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def picture(e: int, t: int, h: int, w: int) -> np.ndarray:
    y, x = np.mgrid[0:h, 0:w]
    return np.clip(np.stack([x * 4 + 10 * e, y * 5 + 8 * t, 255 - x * 3 - 6 * t], -1), 0, 255)


@pytest.fixture
def tfrecords(tmp_path) -> pathlib.Path:
    return copy("tfrecord", tmp_path / "tiny_arm" / "1.0.0")


@pytest.fixture
def array_records(tmp_path) -> pathlib.Path:
    return copy("array_record", tmp_path / "arrays")


def test_facts(tfrecords):
    dataset = opened(tfrecords.parent, robot="arm")  # the folder above the only version
    assert (dataset.path.name, dataset.format, dataset.fps, dataset.robot) == ("1.0.0", "RLDS in tfrecord", 5.0, "arm")
    assert [episode.length for episode in dataset.episodes] == [5, 1, 7, 4, 2]
    assert dataset.split("train") == [0, 1, 2] and dataset.split("val") == dataset.split("test") == [3, 4]
    assert dataset.cameras == {"image": (24, 32), "wrist_image": (16, 16)}  # depth is no camera
    assert dataset.state_names[2] == "state 2" and dataset.action_dim == 7
    assert dataset.size_bytes() == sum(file.stat().st_size for file in tfrecords.glob("*.tfrecord*"))


def test_values_are_those_of_tensorflow(tfrecords):
    dataset = opened(tfrecords)
    index = 0
    for split, lengths in LENGTHS.items():
        for k, length in enumerate(lengths):
            rows = dataset.rows(index)
            assert np.array_equal(rows.state, EXPECTED[f"{split}_{k}_state"])
            assert np.array_equal(rows.action, EXPECTED[f"{split}_{k}_action"])
            assert np.allclose(rows.times, np.arange(length) / 5)
            assert np.allclose(rows.action_times, rows.times + 0.2)  # commands
            assert [dataset.texts(index, t) for t in range(length)] == [(x,) for x in EXPECTED[f"{split}_{k}_text"]]
            index += 1
    assert dataset.all_texts() == sorted({f"pick the cup {e}" for e in (0, 1, 2, 10, 11)} | {"and put it down"})


def test_pictures_are_those_of_tensorflow(tfrecords):
    dataset = opened(tfrecords)
    for k in (0, 1):
        rows = [1, 0, 1]
        wrist = dataset.frames(3 + k, "wrist_image", rows)
        assert np.array_equal(wrist, EXPECTED[f"val_{k}_wrist_image"][rows])  # PNG: no loss
        error = np.abs(dataset.frames(3 + k, "image", rows).astype(int) - EXPECTED[f"val_{k}_image"][rows])
        assert error.max() <= 4 and error.mean() < 2  # TensorFlow's JPEG decoder takes the fast transform
    frame = dataset.frames(2, "image", [6])[0].astype(int)
    assert np.abs(frame - picture(2, 6, 24, 32)).mean() < 4  # and not some other row: one is 7 levels apart


def test_array_record_gives_the_same(tfrecords, array_records):
    ours, theirs = opened(array_records), opened(tfrecords)
    assert ours.format == "RLDS in array_record" and ours.named_splits() == {"train": "0:3"}
    for index in range(3):
        assert all(np.array_equal(a, b) for a, b in zip(ours.rows(index), theirs.rows(index)))
        for camera in ours.cameras:
            assert np.array_equal(ours.frames(index, camera, [0]), theirs.frames(index, camera, [0]))
        assert ours.episodes[index].runs == theirs.episodes[index].runs


def test_array_record_against_tensorflow_datasets(array_records):
    import tensorflow_datasets as tfds  # without TensorFlow

    data = tfds.builder_from_directory(str(array_records)).as_data_source("train")
    dataset = opened(array_records, state=("observation/state", "observation/joint_ticks"), action="")
    for index, episode in enumerate(data):
        steps = list(episode["steps"])
        expected = [np.r_[step["observation"]["state"], step["observation"]["joint_ticks"]] for step in steps]
        assert np.array_equal(dataset.rows(index).state, np.float32(expected)) and dataset.action_dim == 0
        frames = dataset.frames(index, "wrist_image", range(len(steps)))
        assert np.array_equal(frames, [step["observation"]["wrist_image"] for step in steps])


def test_actions_of_a_dictionary(tmp_path):
    path = copy("dict", tmp_path / "set")
    line = complaint(lambda: opened(path))
    assert "'action' is a dictionary: list its parts" in line and "action/world_vector" in line
    dataset = opened(path, action=RT1)
    assert dataset.action_names[2:4] == ("world_vector 2", "rotation_delta 0") and dataset.state_dim == 0
    t = np.arange(3, dtype=np.float32)[:, None]
    for e in (0, 1):
        parts = [np.float32([0.1, 0.2, 0.3]) * t, np.tile(np.float32([1, 2, 3]) + e, (3, 1)), t]
        assert np.array_equal(dataset.rows(e).action, np.concatenate(parts, 1))
    integers = opened(path, action=("action/terminate_episode",)).rows(1).action
    assert integers.tolist() == [[0, 1, -1]] * 3


def test_instructions_in_other_places(tmp_path, tfrecords):
    path = copy("dict", tmp_path / "set")
    assert opened(path, action=RT1).all_texts() == ["push", "slide é"]
    codes = opened(path, action=RT1, text="observation/instruction")  # Language-Table's way
    assert codes.texts(1, 2) == ("slide é",)
    both = opened(path, action=RT1, text=("observation/natural_language_instruction", "observation/instruction"))
    assert both.texts(1) == ("slide é",)  # equal ones count once
    assert opened(path, action=RT1, text="").all_texts() == []
    two = opened(tfrecords, text=("language_instruction", "episode_metadata/file_path"))
    assert two.texts(2, 5) == ("and put it down", "train/2.h5")
    line = complaint(lambda: opened(tfrecords, text="instruction"))
    assert "option text, 'instruction': expected one of language_instruction, episode_metadata/file_path" in line


def test_pictures_whose_size_varies(tmp_path):
    dataset = opened(copy("dict", tmp_path / "set"), action=RT1)
    assert dataset.cameras == {"rgb_static": None}
    assert [dataset.frames(e, "rgb_static", [0, 1]).shape for e in (0, 1)] == [(2, 8, 16, 3), (2, 16, 16, 3)]


def test_rates(tfrecords):
    line = complaint(lambda: open_source("rlds", str(tfrecords)))
    assert "expected the option fps, since RLDS stores no rate and that of 'tiny_arm' is not known" in line
    file = tfrecords / "dataset_info.json"
    info = json.loads(file.read_text())
    assert RATES["fractal20220817_data"] == 3 and RATES["droid"] == 15
    template = "tiny_arm-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    splits = [split | {"filepathTemplate": template} for split in info["splits"]]
    file.write_text(json.dumps(info | {"name": "droid", "splits": splits}))
    assert open_source("rlds", str(tfrecords)).fps == 15 and opened(tfrecords).fps == 5


def test_unknown_features_list_the_known(tfrecords):
    line = complaint(lambda: opened(tfrecords, state="observation/pose"))
    assert "option state, 'observation/pose': expected one of" in line and "observation/joint_ticks" in line
    line = complaint(lambda: opened(tfrecords, action="observation/image"))
    assert "found a picture of shape (24, 32, 3)" in line
    assert "unknown option 'speed'" in complaint(lambda: opened(tfrecords, speed=1))


def test_the_index_is_kept_and_renewed(tfrecords, monkeypatch):
    read = []

    def counted(file, *rest, original=rlds_records.index):
        read.append(file.name[-14:])
        return original(file, *rest)

    monkeypatch.setattr(rlds_records, "index", counted)
    first = opened(tfrecords)
    assert len(read) == 4 and (tfrecords / file_index.FILE).is_file()
    again = opened(tfrecords)
    assert len(read) == 4 and again.episodes == first.episodes
    shard = tfrecords / "tiny_arm-val.tfrecord-00001-of-00002"
    shard.write_bytes((tfrecords / "tiny_arm-val.tfrecord-00000-of-00002").read_bytes())
    assert [episode.length for episode in opened(tfrecords).episodes] == [5, 1, 7, 4, 4]
    assert read[4:] == ["00001-of-00002"]
    opened(tfrecords, text="")  # other options, another index
    assert len(read) == 9
    (tfrecords / file_index.FILE).write_text("not JSON")
    assert opened(tfrecords).episodes and len(read) == 13


def test_one_damaged_record_does_not_touch_the_others(tfrecords):
    shard = tfrecords / "tiny_arm-train.tfrecord-00000-of-00002"
    data = bytearray(shard.read_bytes())
    data[data.index(b"\xff\xd8") + 200] ^= 0xFF  # inside the first picture
    shard.write_bytes(data)
    dataset = opened(tfrecords)
    line = complaint(lambda: dataset.rows(0), BrokenData)
    assert line.startswith("record of episode 0 in ") and shard.name in line and "expected the CRC32C" in line
    assert complaint(lambda: dataset.frames(0, "image", [0]), BrokenData) == line
    assert len(dataset.rows(1).state) == 1 and len(dataset.rows(2).state) == 7


def test_damaged_array_record(array_records, caplog):
    file = array_records / "tiny_arm-train.array_record-00000-of-00001"
    dataset = opened(array_records)
    data = bytearray(file.read_bytes())
    data[3000] ^= 0xFF  # of the second record
    file.write_bytes(data)
    line = complaint(lambda: dataset.rows(1), BrokenData)
    assert line.startswith("record of episode 1 in") and "record 1 of an ArrayRecord file; found Corrupted" in line
    assert len(dataset.rows(0).state) == 5 and len(dataset.rows(2).state) == 7
    (array_records / file_index.FILE).unlink()
    with caplog.at_level(logging.WARNING):
        assert [episode.length for episode in opened(array_records).episodes] == [5, 7]
    assert "1 records left out that are no episodes; first: record 1 of" in caplog.text
    file.write_bytes(data[:60000])
    assert "expected an ArrayRecord file; found" in complaint(lambda: opened(array_records))


def test_truncated_and_missing_shards(tfrecords, caplog):
    shard = tfrecords / "tiny_arm-train.tfrecord-00001-of-00002"
    data = shard.read_bytes()
    shard.write_bytes(data[:-9])
    assert f"{shard.name}: expected " in (line := complaint(lambda: opened(tfrecords))) and "truncated" in line
    shard.write_bytes(b"")
    assert "expected 1 records, as dataset_info.json says; found 0" in complaint(lambda: opened(tfrecords))
    shard.unlink()
    assert f"{shard.name}: expected this file; found no such file" in complaint(lambda: opened(tfrecords))
    with caplog.at_level(logging.WARNING):
        partial = opened(tfrecords, partial=True)
    assert [episode.length for episode in partial.episodes] == [5, 1, 4, 2] and "3 of 4 shards" in caplog.text
    assert partial.named_splits() == {"train": "0:2", "val": "2:4"}


def rewrite(shard: pathlib.Path, change) -> None:
    """Writes a shard anew with changed payloads and right checksums."""
    data = shard.read_bytes()
    out = b""
    for offset, size in tfrecord.places(memoryview(data)):
        payload = change(data[offset : offset + size])
        header = len(payload).to_bytes(8, "little")
        out += header + tfrecord.CHECKSUM.pack(tfrecord.masked_crc32c(header)) + payload
        out += tfrecord.CHECKSUM.pack(tfrecord.masked_crc32c(payload))
    shard.write_bytes(out)


def test_records_that_are_no_episodes_are_left_out_and_counted(tfrecords, caplog):
    shard = tfrecords / "tiny_arm-train.tfrecord-00000-of-00002"
    first = []
    rewrite(shard, lambda data: first.append(0) or (b"\xff" * 20 if len(first) == 1 else data))
    with caplog.at_level(logging.WARNING):
        dataset = opened(tfrecords)
    assert [episode.length for episode in dataset.episodes] == [1, 7, 4, 2]
    assert dataset.named_splits() == {"train": "0:2", "val": "2:4"}
    assert "1 records left out that are no episodes; first: record 0 of" in caplog.text and dataset.left_out == [0]
    assert np.array_equal(dataset.rows(0).state, EXPECTED["train_1_state"])


def test_faults_inside_an_episode(tfrecords):
    shard = tfrecords / "tiny_arm-train.tfrecord-00001-of-00002"
    original = shard.read_bytes()

    def faulty(change, call):
        shard.write_bytes(original)
        rewrite(shard, change)
        return complaint(lambda: call(opened(tfrecords)), BrokenData)

    name = b"steps/observation/state"
    line = faulty(lambda data: data.replace(name, b"steps/observation/stats"), lambda d: d.rows(2))
    assert line.startswith("observation/state of episode 2") and "expected this feature in the record" in line
    line = faulty(lambda data: data.replace(b"\xff\xd8\xff", b"\x00\x01\x02"), lambda d: d.frames(2, "image", [3]))
    assert line.startswith("observation/image of episode 2") and "a JPEG or PNG picture in row 3" in line
    line = faulty(lambda data: data.replace(b"\xff\xd9", b"\x01\x02"), lambda d: d.frames(2, "image", [3]))
    assert "expected a whole JPEG picture in row 3" in line and "truncated" in line
    nan = np.float32(np.nan).tobytes()
    line = faulty(lambda data: data.replace(np.float32(206.1).tobytes(), nan), lambda d: d.rows(2))
    assert line.startswith("state of episode 2") and "NaN or inf in row 6" in line
    file = tfrecords / "features.json"
    file.write_text(file.read_text().replace('["8"]', '["9"]'))
    line = complaint(lambda: opened(tfrecords).rows(0), BrokenData)
    assert "expected 5 steps of 9 numbers, as features.json says; found 40 numbers" in line
    file.write_text(file.read_text().replace('["24", "32", "3"]', '["32", "24", "3"]'))
    line = complaint(lambda: opened(tfrecords).frames(0, "image", [1]), BrokenData)
    assert "expected pictures of 24x32; found 32x24 in row 1" in line


def test_folders_that_are_no_rlds_dataset(tfrecords, tmp_path):
    assert "nowhere: expected the folder of an RLDS dataset" in complaint(lambda: opened(tmp_path / "nowhere"))
    shutil.copytree(tfrecords, tfrecords.parent / "1.1.0")
    assert "versions 1.0.0, 1.1.0: name one" in complaint(lambda: opened(tfrecords.parent))
    info = tfrecords / "dataset_info.json"
    content = json.loads(info.read_text())
    info.write_text(json.dumps(content | {"fileFormat": "riegeli"}))
    assert "tfrecord or array_record; found 'riegeli'" in complaint(lambda: opened(tfrecords))
    info.write_text(json.dumps({"name": "x"}))
    assert "of TensorFlow Datasets; found KeyError('splits')" in complaint(lambda: opened(tfrecords))
    (tfrecords / "features.json").unlink()
    assert "features.json: expected this file" in complaint(lambda: opened(tfrecords))


def test_colours_and_padding_of_pictures():
    def complain(expected, found):
        return BrokenData(f"expected {expected}; found {found}")

    rgb = np.zeros((8, 8, 3), np.uint8)
    rgb[..., 0] = 200
    standard = cv2.imencode(".jpg", rgb[..., ::-1])[1].tobytes()
    swapped = cv2.imencode(".jpg", rgb)[1].tobytes() + bytes(30)
    for data, colours in ((standard, "standard"), (swapped, "rgb_encoded_as_bgr")):
        found = pictures.decode(data, complain, colours)
        assert found[0, 0, 0] > 190 and found[0, 0, 2] < 10
    with pytest.raises(BrokenData, match="a picture of row 2; found 1 pictures"):
        pictures.decode_rows([standard], [0, 2], None, complain)
