"""What a model says along an episode, by samplers whose answers are known; the page and the file for Rerun."""

import base64
import io
import json
import pathlib
import re
import sys

import numpy as np
import pytest
from PIL import Image

from motus_jax.errors import UserError
from motus_jax.evaluation import episode_page, episode_rerun
from motus_jax.evaluation.episode import action_error, video_error, watch

sys.path.append(str(pathlib.Path(__file__).parents[1] / "data"))
import lerobot_fixture

EVERY, CHUNK, FRAMES, SIZE = 4, 8, 4, (28, 24)
DATA = {
    "cameras": ("top",), "image_size": SIZE, "chunk": CHUNK, "video_frames": FRAMES, "action_hz": 10.0,
    "video_hz": 5.0, "action_space": "absolute", "normalisation": "none",
}  # fmt: skip


def remembers(batch):
    """The video mode's answer: the given clip; the acting mode's: the real actions, one unit off."""
    return {"video": batch["frames"] / np.float32(255), "actions": batch["actions"] + 1}


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    from motus_jax.data.mixture import make_dataset

    splits = {"train": "0:1", "test": "1:2"}
    path = lerobot_fixture.write(tmp_path_factory.mktemp("view") / "set", lengths=(24, 21), splits=splits)
    dataset = make_dataset(DATA | {"path": str(path)}, "test")
    lines = []
    samplers = dict.fromkeys(("vla", "world_model", "joint"), remembers)
    found = watch(dataset, 1, samplers, EVERY, "a set, test episode 0", say=lines.append)
    assert [line.partition(":")[0] for line in lines] == ["vla", "world_model", "joint"]
    return found


def test_every_mode_is_asked_all_along(seen):
    rows = list(range(0, 21, EVERY))
    for mode, (video, actions) in {"vla": (0, 1), "world_model": (1, 0), "joint": (1, 1)}.items():
        calls = seen.calls[mode]
        assert [call.row for call in calls] == rows == list(seen.clips)
        assert all((call.video is not None) == video and (call.actions is not None) == actions for call in calls)
        assert all(call.seconds > 0 for call in calls)
    assert seen.frames.shape == (21, *SIZE, 3) and seen.targets.shape == (21, 14)
    np.testing.assert_allclose(seen.targets[3], [lerobot_fixture.value(1, 4, dim) for dim in range(14)], rtol=1e-5)
    np.testing.assert_allclose(seen.action_times(4), seen.times[4] + np.arange(1, 9) / 10)
    np.testing.assert_allclose(seen.frame_times(4), seen.times[4] + np.arange(5) / 5)


def test_errors_are_those_of_the_chunk(seen):
    np.testing.assert_allclose(action_error(seen, seen.calls["vla"][1]), np.ones(14), atol=1e-4)
    np.testing.assert_allclose(action_error(seen, seen.calls["vla"][-1]), np.ones(14), atol=1e-4)
    assert video_error(seen, seen.calls["joint"][2]) == 0


@pytest.fixture(scope="module")
def text(seen):
    return episode_page.render(seen, "runs/x, step 3")


def test_the_page_holds_everything(seen, text):
    assert not re.findall(r"(?:src|href)=\"(?!#)|url\(['\"]?http|https?://(?!www\.w3\.org)", text)
    assert "runs/x, step 3" in text and "a set, test episode 0" in text
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])
    assert data["films"].keys() == {"real", "world_model", "joint"}
    assert [len(film) for film in data["films"].values()] == [6, 6, 6] and len(data["times"]) == 6
    picture = Image.open(io.BytesIO(base64.b64decode(data["films"]["joint"][1].partition(",")[2])))
    shown = re.search(r'data-of="joint" style="width:(\d+)px;height:(\d+)px;background-size:(\d+)px', text)
    width, height, whole = map(int, shown.groups())
    assert picture.size == (whole, height) and whole == (1 + FRAMES) * width and width % SIZE[1] == 0
    first = np.asarray(picture)[:, :width].astype(float)
    real = np.asarray(Image.fromarray(seen.clips[EVERY][0]).resize((width, height)))
    assert np.abs(first - real).mean() < 12, "the second moment's first frame"


def test_the_page_draws_every_chunk_of_every_joint(seen, text):
    plots = re.findall(r'<figure class="chart"><figcaption>(.*?)</figcaption>(.*?)</figure>', text, re.DOTALL)
    plots = [(name, svg) for name, svg in plots if 'class="real"' in svg]
    assert len(plots) == 14
    for _, svg in plots:
        assert re.findall(r'<g data-mode="(\w+)"', svg) == ["vla", "joint"]
        chunks = re.findall(r'class="chunk" data-k="(\d)" points="([^"]+)"', svg)
        assert [int(k) for k, _ in chunks] == [*range(6), *range(6)]
        places = [[tuple(map(float, place.split(","))) for place in points.split()] for _, points in chunks]
        assert all(len(own) == CHUNK for own in places)
        assert places[1][0][0] < places[0][-1][0], "the second chunk begins before the first one ends"
        assert all(46 <= x <= 412 and 10 <= y <= 158 for own in places for x, y in own)


def test_the_page_tells_the_times(text):
    assert text.count("Milliseconds of each call") == 1
    cells = [re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", text)[1:]]
    assert [(row[0], row[1], row[5] == "–", row[6] == "–") for row in cells] == [
        ("vla", "6", False, True), ("world model", "6", True, False), ("joint", "6", False, False),
    ]  # fmt: skip
    assert cells[0][5] == "1.00" and cells[2][6] == "0"


def test_rerun_reads_what_was_written(seen, tmp_path):
    pytest.importorskip("rerun")
    chunks = pytest.importorskip("rerun.chunk")
    episode_rerun.write(tmp_path / "view.rrd", seen)
    assert [file.name for file in tmp_path.iterdir()] == ["view.rrd"]
    rows = {}
    for chunk in chunks.RrdReader(tmp_path / "view.rrd").stream():
        rows[chunk.entity_path] = rows.get(chunk.entity_path, 0) + chunk.num_rows
    assert rows["/real/picture"] == 21 and rows["/instruction"] == 1
    assert rows["/chunks/vla"] == rows["/milliseconds/world_model"] == 6
    joints = {path for path in rows if path.startswith("/actions/")}
    assert len(joints) == 14 * 3, "real, vla, joint"
    assert {path for path in rows if path.startswith("/imagined/")} == {"/imagined/world_model", "/imagined/joint"}
    assert rows["/imagined/joint"] == 5 * 2 + 5, "up to the next call, and all of the last"


def test_rerun_is_named_where_it_is_missing(seen, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "rerun", None)
    with pytest.raises(UserError, match=r"--rerun needs the viewer extra: pip install -e '.\[viewer\]'"):
        episode_rerun.write(tmp_path / "view.rrd", seen)
