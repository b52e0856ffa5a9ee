"""Video folders: what films of the wild have that test films rarely do. Each is read frame by frame, as a clip is."""

import json
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from test_videos import SIZE, even, grey, write

from motus_jax.data import storage, video
from motus_jax.data.source import BrokenData
from motus_jax.data.sources import open_source
from motus_jax.errors import UserError


def brightness(found, rows, index=0):
    return found.frames(index, "video", rows).mean((1, 2, 3))


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_open_groups_of_pictures(tmp_path, name):
    """Frames that are shown before the key frame that stands before them cannot be decoded from it."""
    options = {"x264-params": "open-gop=1:bframes=3:b-adapt=0:scenecut=0:keyint=12"}
    write(tmp_path / name, even(60, 25), options=options)
    found = open_source("videos", tmp_path)
    single = [brightness(found, [row])[0] for row in range(60)]
    assert np.abs(np.array(single) - [grey(row) for row in range(60)]).max() < 2


def test_an_edit_list_cuts_the_beginning_off(tmp_path):
    """A cut without encoding anew leaves the frames before it in the file, hidden."""
    file = write(tmp_path / "a.mp4", even(50, 25), options={"bf": "3"})
    data = bytearray(file.read_bytes())
    entry = data.find(b"elst") + 12  # version and flags, count, then the first entry: duration, media time
    duration, begin = struct.unpack_from(">Ii", data, entry)
    with av.open(str(file)) as container:
        cut = round(17 / 25 / container.streams.video[0].time_base)
    struct.pack_into(">Ii", data, entry, duration, begin + cut)
    file.write_bytes(data)
    found = open_source("videos", tmp_path)
    assert found.episode(0).length == 33 and found.times(0)[-1] == pytest.approx(32 / 25)
    assert np.abs(brightness(found, [0, 1, 32]) - [grey(17), grey(18), grey(49)]).max() < 2


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_a_camera_held_sideways(tmp_path, degrees):
    """Degrees to the left by which a player turns the picture; telephones write 270 for upright films."""
    stored = np.zeros((*SIZE, 3), np.uint8)
    stored[:16, :16] = 255
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "5"})
        (stream.height, stream.width), stream.pix_fmt = SIZE, "yuv420p"
        if degrees:
            stream.set_display_rotation(degrees)
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(stored, format="rgb24")))
        container.mux(stream.encode())
    shown = open_source("videos", tmp_path).frames(0, "video", [1])[0]
    assert np.abs(shown.astype(int) - np.rot90(stored, degrees // 90)).mean() < 3


def test_hidden_pictures_of_vp8(tmp_path):
    """An alternate reference has a packet and a time of its own, and is never shown."""
    with av.open(str(tmp_path / "a.webm"), "w") as container:
        stream = container.add_stream("libvpx", rate=25, options={"crf": "4", "b": "2M", "g": "10"})
        (stream.height, stream.width), stream.pix_fmt = SIZE, "yuv420p"
        packets = []
        for k in range(30):
            frame = av.VideoFrame.from_ndarray(np.full((*SIZE, 3), grey(k), np.uint8), format="rgb24")
            packets += stream.encode(frame)
        for k, packet in enumerate([*packets, *stream.encode()]):
            begin = packet.pts * packet.time_base
            container.mux(packet)
            if k % 10 == 9:  # what comes next is a key frame, on which the change has no effect
                data = bytearray(bytes(packet))
                data[0] &= 0xEF  # the same once more, not shown
                hidden = av.Packet(bytes(data))
                hidden.stream, hidden.time_base = stream, Fraction(1, 1000)
                hidden.pts = hidden.dts = int(begin * 1000) + 7
                container.mux(hidden)
    with av.open(str(tmp_path / "a.webm")) as container:
        assert sum(1 for packet in container.demux(video=0) if packet.size) == 33
    found = open_source("videos", tmp_path)
    assert found.episode(0).length == 30
    assert np.abs(brightness(found, range(30)) - [grey(k) for k in range(30)]).max() < 4


def test_a_cover_is_not_the_film(tmp_path):
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        cover = container.add_stream("mjpeg", rate=1)
        cover.height, cover.width, cover.pix_fmt = 32, 32, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        film = container.add_stream("libx264", rate=25, options={"crf": "8"})
        (film.height, film.width), film.pix_fmt = SIZE, "yuv420p"
        container.mux(cover.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
        for k in range(20):
            picture = np.full((*SIZE, 3), grey(k), np.uint8)
            container.mux(film.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(film.encode())
    found = open_source("videos", tmp_path)
    assert found.episode(0).length == 20 and found.cameras == {"video": SIZE}
    assert np.abs(brightness(found, [0, 9]) - [grey(0), grey(9)]).max() < 2


def test_a_long_film_is_not_decoded_to_its_start(tmp_path, monkeypatch):
    """An hour at two frames a second with a narration near its end, and a look at both ends."""
    count = 7200
    write(tmp_path / "long.mp4", even(count, 2), size=(16, 16), options={"preset": "ultrafast", "bf": "2"})
    row = {"file": "long.mp4", "text": "a hand moves", "start": 3500.0, "end": 3504.0}
    (tmp_path / "captions.jsonl").write_text(json.dumps(row))
    found = open_source("videos", tmp_path)
    assert found.episode(0).length == 8 and isinstance(found.episode(0).film.stamps, range)
    decoded, whole = [], video._frames_from
    monkeypatch.setattr(video, "_frames_from", lambda *given: (decoded.append(item) or item for item in whole(*given)))
    assert np.abs(brightness(found, [7, 0]) - [grey(7007), grey(7000)]).max() < 2
    assert len(decoded) <= 12 + 8
    decoded.clear()
    ends = video.read_at(storage.path(tmp_path / "long.mp4"), np.array([3599.5, 0.0]), 0.1, None, "film")
    assert np.abs(ends.mean((1, 2, 3)) - [grey(7199), grey(0)]).max() < 2 and len(decoded) <= 2 * 12 + 1


def test_rates_of_containers_that_round_times(tmp_path):
    """Matroska counts milliseconds: 33, 34, 33 are 29.97 a second, not 30.30."""
    write(tmp_path / "a.mkv", even(200, Fraction(30000, 1001)))
    found = open_source("videos", tmp_path)
    assert found.fps == pytest.approx(29.97, abs=0.01) and not isinstance(found.episode(0).film.stamps, range)
    assert np.abs(brightness(found, [0, 150, 199]) - [grey(k) for k in (0, 150, 199)]).max() < 2


def test_pauses_and_bursts(tmp_path):
    """A screen recording: nothing for seconds, then frames 2 ms apart; those of its last burst stay apart."""
    times = [0.0, 5.0, 5.002, 5.004, 30.0, 30.002]
    write(tmp_path / "a.mp4", times)
    found = open_source("videos", tmp_path)
    np.testing.assert_allclose(found.times(0), times, atol=1e-4)
    assert np.abs(brightness(found, [0, 1, 2, 3, 4, 5]) - [grey(k) for k in range(6)]).max() < 1.4
    assert np.abs(brightness(found, [2]) - grey(2)).max() < 1.4


def test_a_single_frame(tmp_path):
    write(tmp_path / "a.mp4", [0.0])
    found = open_source("videos", tmp_path)
    assert found.episode(0).length == 1 and abs(brightness(found, [0])[0] - grey(0)) < 2 and found.fps == 1.0
    with pytest.raises(BrokenData, match=r"video of episode 0 in .*a\.mp4: expected rows 0 to 0; found 1"):
        found.frames(0, "video", [0, 1])


def test_rows_of_one_span_are_in_equal_right(tmp_path):
    write(tmp_path / "sub" / "a.mp4", even(50, 25))
    write(tmp_path / "b.mp4", even(10, 25))
    (tmp_path / "b.txt").write_text("not looked at: the table has it\n")
    rows = ["file,text,start,end", "sub/a.mp4,cuts bread,0.4,1.2", "sub/a.mp4,eats,1.2,",
            "sub/a.mp4,slices a loaf,0.4,1.2", "b.mp4, ,,", 'b.mp4,"says ""go"", goes",,',
            "sub/a.mp4,all,,"]  # fmt: skip
    (tmp_path / "captions.csv").write_text("\ufeff" + "\r\n".join(rows) + "\r\n")
    found = open_source("videos", tmp_path)
    assert [found.texts(k) for k in range(4)] == [
        ('says "go", goes',),
        ("cuts bread", "slices a loaf"),
        ("eats",),
        ("all",),
    ]
    assert [episode.length for episode in found.episodes] == [10, 20, 20, 50]
    assert abs(brightness(found, [0], 2)[0] - grey(30)) < 2


def test_captions_without_words(tmp_path):
    write(tmp_path / "a.mp4", even(5, 25))
    (tmp_path / "captions.jsonl").write_text('{"file": "a.mp4", "text": null}\n')
    found = open_source("videos", tmp_path)
    assert found.texts(0) == () and found.all_texts() == []


def test_a_table_with_an_open_quote(tmp_path):
    """Read leniently, it would swallow the rows that follow."""
    write(tmp_path / "a.mp4", even(5, 25))
    (tmp_path / "captions.tsv").write_text('file\ttext\na.mp4\t"go\na.mp4\tstop\n')
    with pytest.raises(UserError, match=r"captions\.tsv: expected a table with closed quotes; found"):
        open_source("videos", tmp_path)


CODECS = {
    "keys_every_2": ("libx264", {"g": "2", "bf": "0"}),
    "keys_every_12": ("libx264", {"g": "12", "bf": "0"}),
    "one_key": ("libx264", {"g": "400", "bf": "0", "sc_threshold": "0"}),
    "b_frames": ("libx264", {"g": "12", "bf": "3"}),
    "open_groups": ("libx264", {"g": "12", "bf": "3", "x264-params": "open-gop=1"}),
    "av1": ("libsvtav1", {"g": "2", "preset": "12"}),
    "vp9": ("libvpx-vp9", {"g": "10", "deadline": "realtime", "cpu-used": "8"}),
    "mpeg4": ("mpeg4", {"g": "8"}),
}


@pytest.mark.parametrize("codec", CODECS)
def test_any_rows_equal_those_of_the_whole_film(tmp_path, codec):
    """What is left out between key frames changes no picture that is asked for."""
    name, options = CODECS[codec]
    file, random = tmp_path / "film.mp4", np.random.default_rng(0)
    canvas = random.integers(0, 256, (64, 64, 3), np.uint8).repeat(3, 0).repeat(3, 1)
    with av.open(str(file), "w") as container:
        stream = container.add_stream(name, rate=30, options=options)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for k in range(90):
            picture = np.ascontiguousarray(canvas[k : k + 64, (k * 3) % 90 : (k * 3) % 90 + 96])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    with av.open(str(file)) as container:
        whole = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert len(whole) == 90 and len({picture.tobytes() for picture in whole}) == 90
    every = [np.arange(start, 90, step) for start in (0, 1, 5, 11, 13, 40, 88) for step in (1, 6, 7, 30)]
    for rows in [*every, [89], [0], [12, 12, 11, 24, 23], [3, 80], *(random.integers(0, 90, 9) for _ in range(10))]:
        found = video.read_frames(file, np.asarray(rows), 30, 0.0, (64, 96), "film")
        np.testing.assert_array_equal(found, whole[rows], err_msg=str(rows))


def test_little_is_decoded(tmp_path, monkeypatch):
    """Of a film as LeRobot writes it, with a key frame at every second picture, a frame costs at most two."""
    file, decoded = tmp_path / "film.mp4", []
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"g": "2", "bf": "0"})
        stream.width, stream.height = 96, 64
        for k in range(90):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((64, 96, 3), k, np.uint8), format="rgb24")))
        container.mux(stream.encode())
    useful = video._useful_packets
    monkeypatch.setattr(video, "_useful_packets", lambda *rest: (decoded.append(p) or p for p in useful(*rest)))
    rows = np.arange(7, 60, 6)
    video.read_frames(file, rows, 30, 0.0, (64, 96), "film")
    assert len(rows) <= len(decoded) <= 2 * len(rows) + 1
