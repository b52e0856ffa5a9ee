"""Video folders: times from the container at any rate, captions in every form, spans of long films, damaged files."""

import json
import shutil
from fractions import Fraction

import av
import numpy as np
import pytest

from motus_jax.data import file_index
from motus_jax.data.source import BrokenData
from motus_jax.data.sources import open_source
from motus_jax.errors import UserError

SIZE = (48, 64)


def grey(frame):
    return 20 + 3 * (frame % 70)


def write(path, times, *, codec="libx264", options=None, size=SIZE):
    """A film whose frame k is of one grey, `grey(k)`, shown at `times[k]` seconds (in units of 1/90000)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30, options={"crf": "8", "g": "12", **(options or {})})
        (stream.height, stream.width), stream.pix_fmt = size, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 90_000)
        for k, seconds in enumerate(times):
            frame = av.VideoFrame.from_ndarray(np.full((*size, 3), grey(k), np.uint8), format="rgb24")
            frame.pts, frame.time_base = round(seconds * 90_000), Fraction(1, 90_000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def even(count, fps, start=0.0):
    return start + np.arange(count) / float(fps)


@pytest.mark.parametrize("fps", [25, Fraction(30000, 1001), 60])
@pytest.mark.parametrize("options", [{"bf": "0"}, {"bf": "3"}])
def test_constant_rates(tmp_path, fps, options):
    """Frames that are shown in another order than they are stored, too."""
    write(tmp_path / "a.mp4", even(70, fps), options=options)
    found = open_source("videos", tmp_path)
    assert found.episode(0).length == 70 and found.fps == pytest.approx(float(fps), rel=1e-3)
    np.testing.assert_allclose(found.times(0), even(70, fps), atol=1e-4)
    rows = [69, 3, 31, 3]
    frames = found.frames(0, "video", rows)
    assert np.abs(frames.mean((1, 2, 3)) - [grey(row) for row in rows]).max() < 2
    assert found.cameras == {"video": SIZE} and (found.state_dim, found.action_dim) == (0, 0)


def test_a_variable_rate_keeps_its_times(tmp_path):
    times = np.cumsum(np.random.default_rng(0).uniform(0.01, 0.2, 60))
    write(tmp_path / "a.mkv", times)
    found = open_source("videos", tmp_path)
    np.testing.assert_allclose(found.times(0), times - times[0], atol=2e-3)  # Matroska counts milliseconds
    assert np.abs(found.frames(0, "video", [0, 17, 59]).mean((1, 2, 3)) - [grey(k) for k in (0, 17, 59)]).max() < 2
    assert found.rows(0).action.shape == (60, 0)


def test_captions_beside_the_films(tmp_path):
    write(tmp_path / "b" / "one.mp4", even(5, 25))
    write(tmp_path / "a.mp4", even(7, 25))
    (tmp_path / "b" / "one.txt").write_text("a dog runs\n\na dog plays\na dog runs\n")
    found = open_source("videos", tmp_path, {"robot": "human"})
    assert [episode.length for episode in found.episodes] == [7, 5]
    assert found.texts(0) == () and found.texts(1) == ("a dog runs", "a dog plays") and found.robot == "human"
    assert found.instruction(1, choice=3) == "a dog plays" and found.instruction(0) == ""
    assert found.all_texts() == ["a dog plays", "a dog runs"]


@pytest.mark.parametrize("form", ["jsonl", "csv", "tsv"])
def test_spans_of_a_long_film(tmp_path, form):
    write(tmp_path / "long.mp4", even(100, 25))
    rows = [("long.mp4", "opens, then closes", 0.4, 1.2), ("long.mp4", "walks", 2.0, None)]
    if form == "jsonl":
        lines = [json.dumps(dict(zip(("file", "text", "start", "end"), row))) for row in rows]
    else:
        mark = "," if form == "csv" else "\t"
        lines = [mark.join(("file", "text", "start", "end"))]
        lines += [mark.join((file, f'"{text}"', str(start), str(end or ""))) for file, text, start, end in rows]
    (tmp_path / f"captions.{form}").write_text("\n".join(lines) + "\n")
    found = open_source("videos", tmp_path)
    assert [episode.length for episode in found.episodes] == [20, 50]
    assert [found.texts(k) for k in (0, 1)] == [("opens, then closes",), ("walks",)]
    assert found.times(1)[0] == 0 and found.times(1)[-1] == pytest.approx(49 / 25)
    assert abs(found.frames(0, "video", [5]).mean() - grey(15)) < 2
    assert abs(found.frames(1, "video", [49]).mean() - grey(99)) < 2


def test_a_second_look_reads_no_film_again(tmp_path, monkeypatch):
    file = write(tmp_path / "a.mp4", even(5, 25))
    open_source("videos", tmp_path)
    assert (tmp_path / file_index.FILE).is_file()
    monkeypatch.setattr("motus_jax.data.video.list_timestamps", None)
    assert open_source("videos", tmp_path).episode(0).length == 5
    write(file, even(9, 25))
    with pytest.raises(TypeError):
        open_source("videos", tmp_path)


def test_a_film_that_goes_bad_moves_no_other_between_the_splits(tmp_path):
    write(tmp_path / "00.mp4", even(3, 25))
    for k in range(1, 20):
        shutil.copy(tmp_path / "00.mp4", tmp_path / f"{k:02}.mp4")
    (tmp_path / "captions.csv").write_text("file,text,start,end\n04.mp4,one,0,0.05\n04.mp4,two,0.05,\n")

    def splits():
        found = open_source("videos", tmp_path)
        return {name: {found.episodes[k].film.file.stem for k in found.split(name)} for name in ("train", "test")}

    before = splits()
    assert before["test"] == {"18", "19"}  # 21 episodes
    for name in ("04", "11", "19"):
        (tmp_path / f"{name}.mp4").write_bytes(b"not a film")
    assert splits() == {name: stems - {"04", "11", "19"} for name, stems in before.items()}
    assert open_source("videos", tmp_path).left_out == [4, 5, 12, 20]


def test_damaged_films_are_left_out_or_named(tmp_path, caplog):
    write(tmp_path / "a.mp4", even(60, 25))
    (tmp_path / "b.mp4").write_bytes(b"not a film")
    found = open_source("videos", tmp_path)
    assert len(found.episodes) == 1 and "1 videos left out" in caplog.text and "b.mp4" in caplog.text
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    (tmp_path / "a.mp4").write_bytes(data[: len(data) // 3])
    with pytest.raises(BrokenData, match=r"episode 0: expected .*a\.mp4"):
        found.frames(0, "video", range(60))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"file": "b.mp4", "text": "x"}, "row 1: expected a video below .*; found no 'b.mp4'"),
        ({"name": "a.mp4"}, "row 1: expected the columns file and text"),
        ({"file": "a.mp4", "text": "x", "start": "soon"}, "row 1: expected start and end in seconds"),
        ({"file": "a.mp4", "text": "x", "start": 9, "end": 12}, r"a span inside its 0\.16 s; found 9.0 to 12.0"),
    ],
)
def test_bad_captions(tmp_path, row, message):
    write(tmp_path / "a.mp4", even(5, 25))
    (tmp_path / "captions.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=message):
        open_source("videos", tmp_path)


def test_nothing_there(tmp_path):
    with pytest.raises(UserError, match=r"expected videos \(\.mp4, .*; found none"):
        open_source("videos", tmp_path)
    with pytest.raises(UserError, match="nowhere: expected a folder of videos; found nothing there"):
        open_source("videos", tmp_path / "nowhere")
    with pytest.raises(UserError, match="unknown option 'fps' of a source; expected one of: robot"):
        open_source("videos", tmp_path, {"fps": 3})
