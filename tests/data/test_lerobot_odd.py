"""LeRobot datasets that lack something or have it in another place: v2.0, pictures in tables, missing cameras."""

import fractions
import json

import av
import cv2
import lerobot_fixture as fixture
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from motus_jax.data.frame_store import FrameStore
from motus_jax.data.source import BrokenData
from motus_jax.data.sources.lerobot import LeRobotDataset
from motus_jax.errors import UserError

TOP, LEFT = "observation.images.top", "observation.images.left_wrist"


def complaint(call, kind=UserError) -> str:
    """The one line of the error that `call` raises."""
    with pytest.raises(kind) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def edit(path, **changes):
    """Changes fields of info.json; a feature that is None is dropped."""
    file = path / "meta" / "info.json"
    info = json.loads(file.read_text())
    features = info["features"] | changes.pop("features", {})
    info |= changes | {"features": {key: item for key, item in features.items() if item is not None}}
    file.write_text(json.dumps(info))


def table_of(path, episode):
    return path / "data" / "chunk-000" / f"episode_{episode:06d}.parquet"


def add_column(path, episode, name, values):
    file = table_of(path, episode)
    table = pq.read_table(file)
    if name in table.column_names:
        table = table.drop_columns([name])
    pq.write_table(table.append_column(name, values), file)


def store(dataset, policy, cameras=("top", "left_wrist", "right_wrist")):
    return FrameStore(dataset, cameras, (108, 96), 0, policy)


def test_v20_is_read_as_v21(broken, v2):
    edit(broken, codebase_version="v2.0")
    (broken / "meta" / "stats.json").write_text("{}")
    old, new = LeRobotDataset(broken), LeRobotDataset(v2)
    assert old.format == "LeRobot v2.0"
    assert np.array_equal(old.rows(1).state, new.rows(1).state)
    assert np.array_equal(old.frames(1, "top", [3]), new.frames(1, "top", [3]))


def test_without_state_or_action(broken, caplog):
    edit(broken, features={"observation.state": None, "proprio": {"dtype": "float32", "shape": [14], "names": None}})
    dataset = LeRobotDataset(broken)
    assert "no feature 'observation.state'" in caplog.text and "proprio" in caplog.text
    assert dataset.state_dim == 0 and dataset.rows(0).state.shape == (30, 0)
    assert dataset.rows(0).action[3, 2] == np.float32(fixture.value(0, 4, 2))
    edit(broken, features={"action": None, "proprio": None})
    rows = LeRobotDataset(broken).rows(0)
    assert rows.state.shape == rows.action.shape == (30, 0) and len(rows.times) == 30


def test_a_chosen_feature_must_be_a_vector_of_the_dataset(v2):
    line = complaint(lambda: LeRobotDataset(v2, {"state": "observation.eef"}))
    assert "option state" in line and "of observation.state, action; found 'observation.eef'" in line
    assert "option action" in complaint(lambda: LeRobotDataset(v2, {"action": ("action", TOP)}))
    assert "option text_column" in complaint(lambda: LeRobotDataset(v2, {"text_column": "words"}))


def test_a_column_of_task_numbers(broken):
    edit(broken, features={"note": {"dtype": "int64", "shape": [1], "names": None}})
    for episode, length in enumerate(fixture.LENGTHS):
        add_column(broken, episode, "note", pa.array([1] * (length - 1) + [7 if episode == 2 else 0]))
    dataset = LeRobotDataset(broken, {"text_column": "note"})
    assert dataset.texts(0, 0) == (fixture.TASKS[1],) and dataset.texts(0, 29) == (fixture.TASKS[0],)
    line = complaint(lambda: dataset.texts(2, 25), BrokenData)
    assert line.startswith("note of episode 2") and "found 7" in line


def test_blank_words_are_no_words(broken):
    edit(broken, features={"words": {"dtype": "string", "shape": [1], "names": None}})
    for episode, length in enumerate(fixture.LENGTHS):
        add_column(broken, episode, "words", pa.array([None, "", "  ", "go"] + ["stop"] * (length - 4)))
    dataset = LeRobotDataset(broken, {"text_column": "words"})
    assert [dataset.texts(0, row) for row in range(4)] == [(), (), (), ("go",)]
    assert dataset.all_texts() == ["go", "stop"]
    table_of(broken, 1).write_bytes(b"")
    assert LeRobotDataset(broken, {"text_column": "words"}).all_texts() == ["go", "stop"]


def png(value: int, size=(36, 48)) -> bytes:
    """A picture whose colours are told apart."""
    return cv2.imencode(".png", np.full((*size, 3), (10, 20, value), np.uint8))[1].tobytes()  # BGR


def as_images(path, entries, shape=(36, 48, 3), names=("height", "width", "channels")):
    """Puts pictures of the left wrist of episode 0 into the table."""
    edit(path, features={LEFT: {"dtype": "image", "shape": list(shape), "names": names and list(names)}})
    add_column(path, 0, LEFT, entries)
    return LeRobotDataset(path)


def test_pictures_in_tables_and_by_path(broken):
    (broken / "images").mkdir()
    (broken / "images" / "3.png").write_bytes(png(203))
    entries = [{"bytes": png(50 + row), "path": f"frame_{row:06d}.png"} for row in range(30)]
    entries[3] = {"bytes": None, "path": "images/3.png"}
    entries[4] = {"bytes": None, "path": "images/4.png"}
    entries[5] = {"bytes": None, "path": None}
    entries[6]["bytes"] = entries[6]["bytes"][:-5]
    entries[7]["bytes"] = png(57, (36, 50))
    dataset = as_images(broken, pa.array(entries))
    found = dataset.frames(0, "left_wrist", [2, 3, 29, 2])
    assert found.shape == (4, 36, 48, 3)
    assert found[:, 0, 0].tolist() == [[52, 20, 10], [203, 20, 10], [79, 20, 10], [52, 20, 10]]
    assert dataset.frames(0, "top", [2]).shape == (1, 72, 96, 3)  # the others stay videos
    for row, what in ((4, "images/4.png"), (5, "in row 5"), (6, "truncated"), (7, "50x36"), (30, "rows 0 to 29")):
        line = complaint(lambda row=row: dataset.frames(0, "left_wrist", [0, row]), BrokenData)
        assert line.startswith(f"{LEFT} of episode 0 in ") and what in line
    assert "expected a column" in complaint(lambda: dataset.frames(1, "left_wrist", [0]), BrokenData)


@pytest.mark.parametrize(
    "shape, names", [((3, 36, 48), None), ((36, 48, 3), None), ((3, 36, 48), ("c", "height", "width"))]
)
def test_bytes_alone_and_channels_in_front(broken, shape, names):
    dataset = as_images(broken, pa.array([png(row) for row in range(30)]), shape, names)
    assert dataset.cameras[LEFT] == (36, 48)
    assert dataset.frames(0, "left_wrist", [7])[0, 0, 0].tolist() == [7, 20, 10]


def test_pictures_of_many_episodes_in_one_group(broken):
    """As in sets converted from v2.1 to v3.0: all episodes of a file in one row group, here not even in order."""
    tables = []
    for episode, length in enumerate(fixture.LENGTHS):
        add_column(
            broken, episode, LEFT, pa.array([{"bytes": png(60 * episode + row), "path": None} for row in range(length)])
        )
        tables.append(pq.read_table(table_of(broken, episode)))
    pq.write_table(pa.concat_tables(tables[::-1]), broken / "data" / "all.parquet")
    edit(broken, data_path="data/all.parquet", features={LEFT: {"dtype": "image", "shape": [36, 48, 3], "names": None}})
    dataset = LeRobotDataset(broken)
    assert dataset.frames(2, "left_wrist", [1, 9])[:, 0, 0, 0].tolist() == [121, 129]
    assert np.array_equal(dataset.rows(2).state, LeRobotDataset(broken).rows(2).state)
    assert dataset.rows(3).state[4, 1] == np.float32(fixture.value(3, 4, 1))


def test_one_number_a_row_and_lists_of_unequal_length(broken):
    edit(broken, features={"grip": {"dtype": "float64", "shape": [1], "names": ["grip"]}})
    add_column(broken, 0, "grip", pa.array(np.arange(30) / 8))
    add_column(broken, 1, "grip", pa.array([[0.5]] * 40 + [[0.5, 1.0]]))
    add_column(broken, 2, "grip", pa.array([0.5] * 25 + [None]))
    add_column(broken, 3, "grip", pa.array(["a"] * 35))
    dataset = LeRobotDataset(broken, {"state": ("action", "grip")})
    assert dataset.state_names[-1] == "grip grip" and dataset.state_dim == 15
    assert np.array_equal(dataset.rows(0).state[:, 14], np.float32(np.arange(30) / 8))
    assert np.array_equal(dataset.rows(0).state[:, :14], dataset.rows(0).action)
    for episode, found in ((1, "found 2"), (2, "NaN"), (3, "string in place of numbers")):
        assert found in complaint(lambda episode=episode: dataset.rows(episode), BrokenData)


def test_a_missing_camera_is_refused_or_black(broken):
    (broken / "videos" / "chunk-000" / LEFT / "episode_000001.mp4").unlink()
    dataset = LeRobotDataset(broken)
    assert dataset.has_camera(0, "left_wrist") and not dataset.has_camera(1, "left_wrist")
    line = complaint(lambda: store(dataset, "refuse").frames(1, np.arange(3)), BrokenData)
    assert "episode 1" in line and f"no pictures of {LEFT}" in line
    found, whole = store(dataset, "black").frames(1, np.arange(3)), store(dataset, "black").frames(0, np.arange(3))
    assert not found[:, 72:, :48].any() and whole[:, 72:, :48].any()
    assert np.abs(found[:, 72:, 48:].mean((1, 2, 3)) - [fixture.grey(2, row) for row in range(3)]).max() < 2
    assert np.array_equal(found.shape, whole.shape)
    assert not store(dataset, "black").unseen(0).any()
    place = store(dataset, "black").unseen(1)
    assert not place[[0, 2]].any() and place[1].tolist() == pytest.approx([72 / 108, 0, 1, 0.5])
    assert not store(dataset, "black", ("left_wrist", "top")).frames(1, np.arange(2))[:, :36].any()
    assert "no pictures" in complaint(
        lambda: store(dataset, "black", ("left_wrist",)).frames(1, np.arange(2)), BrokenData
    )
    assert "data.missing_cameras: expected one of refuse, black" in complaint(lambda: store(dataset, "grey"))


def test_a_missing_camera_of_v30_has_no_place(broken_v3):
    file = next((broken_v3 / "meta" / "episodes").glob("*/*.parquet"))
    table = pq.read_table(file)
    for name in (f"videos/{LEFT}/{part}" for part in ("chunk_index", "file_index", "from_timestamp", "to_timestamp")):
        values = table[name].to_pylist()
        column = pa.array([None, *values[1:]], table.schema.field(name).type)
        table = table.set_column(table.column_names.index(name), name, column)
    pq.write_table(table, file)
    dataset = LeRobotDataset(broken_v3)
    assert not dataset.has_camera(0, "left_wrist") and dataset.has_camera(1, "left_wrist")
    assert "the place of its video" in complaint(lambda: dataset.frames(0, "left_wrist", [0]), BrokenData)
    assert not store(dataset, "black").frames(0, np.arange(2))[:, 72:, :48].any()


def write_film(file, rate, greys):
    file.parent.mkdir(parents=True)
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "5", "g": "50"})
        stream.height, stream.width, stream.pix_fmt = 72, 96, "yuv420p"
        for value in greys:
            picture = np.full((72, 96, 3), value, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


@pytest.mark.parametrize("fps, rate", [(29.97, fractions.Fraction(30000, 1001)), (30, fractions.Fraction(30000, 1001))])
def test_rates_with_fractions(tmp_path, fps, rate):
    """30 rows a second of a film of 29.97: from row 500 on the nearest frame is one earlier."""
    path = fixture.write(tmp_path / "set", "v2.1", (700,), {}, 2, 30)
    edit(path, fps=fps, features={TOP: {"dtype": "video", "shape": [72, 96, 3], "names": None}})
    greys = [40 + 20 * (k % 8) for k in range(700)]
    write_film(path / "videos" / "chunk-000" / TOP / "episode_000000.mp4", rate, greys)
    dataset, rows = LeRobotDataset(path), np.array([0, 1, 450, 699, 560])
    nearest = np.rint(rows / fps * float(rate)).astype(int)
    assert np.array_equal(nearest, rows) == (fps != 30)
    found = dataset.frames(0, "top", rows).mean((1, 2, 3))
    assert np.abs(found - [greys[k] for k in nearest]).max() < 3
    assert dataset.rows(0).times[-1] == pytest.approx(699 / fps)


def test_rate_and_lengths_must_be_above_zero(broken):
    edit(broken, fps=0)
    assert "info.json" in (line := complaint(lambda: LeRobotDataset(broken))) and "above 0; found 0" in line
    edit(broken, fps=10)
    file = broken / "meta" / "episodes.jsonl"
    file.write_text(file.read_text().replace('"length": 30', '"length": 0'))
    assert "length of episode 0" in complaint(lambda: LeRobotDataset(broken))
