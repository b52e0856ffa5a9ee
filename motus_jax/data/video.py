"""Frames out of a video file, by time."""

from collections.abc import Callable, Iterator
from fractions import Fraction

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from jaxtyping import Float, Int, UInt8

from motus_jax.data import storage
from motus_jax.data.source import BrokenData

GAP = 10.0
"""Seconds between two wanted frames from which on seeking is tried in place of decoding all that lies between."""
LONGEST_WAIT = 64
"""Packets that are read ahead to see which of them are needed."""
SEEK_EARLIER = (0.0, 2.0, 20.0, np.inf)
"""Seconds before the wanted one to seek to, one after the other: some containers seek by the time of decoding, which
may be a key frame too late for the frame that is shown then."""


def read_frames(
    path: storage.Path,
    rows: Int[np.ndarray, "n"],
    fps: float,
    begin: float,
    size: tuple[int, int] | None,
    label: str,
) -> UInt8[np.ndarray, "n h w 3"]:
    """Decodes the frames at `begin + rows / fps` seconds: the nearest ones, up to half a row away.

    So the file's own rate may differ a little from `fps` (29.97 and 30), as long as it has a frame for every row.

    Args:
      path: the video file.
      rows: wanted rows, any order, repeats allowed.
      fps: rows per second.
      begin: the second in the file at which row 0 stands.
      size: expected (height, width) in pixels; None where it is not known.
      label: what is read, for messages.

    Raises:
      BrokenData: as `read_at`.
    """
    # A little more than half: the times of many containers are rounded to milliseconds.
    return read_at(path, begin + np.asarray(rows) / fps, 0.5 / fps + 1e-3, size, label)


def read_at(
    path: storage.Path,
    seconds: Float[np.ndarray, "n"],
    tolerance: float,
    size: tuple[int, int] | None,
    label: str,
) -> UInt8[np.ndarray, "n h w 3"]:
    """Decodes the frames that are nearest to given moments; constant rate or not.

    Seeks to the key frame before the first wanted frame and stops after the last; does so anew after long gaps.

    Args:
      path: the video file.
      seconds: wanted moments in the file's own time, any order, repeats allowed.
      tolerance: seconds that a frame may be away, at most half the time between two frames.
      size: expected (height, width) in pixels; None where it is not known.
      label: what is read, for messages.

    Returns:
      RGB frames, turned upright where the file says that the camera was held otherwise.

    Raises:
      BrokenData: the file is missing, is no video, has another picture size, or lacks a wanted frame (truncated).
    """
    if not path.is_file():
        raise BrokenData(f"{label}: expected the video {path}; found no such file")
    wanted, places = np.unique(np.asarray(seconds, np.float64), return_inverse=True)
    try:
        frames = _decode(path, wanted, tolerance)
    except (av.FFmpegError, IndexError) as error:
        raise BrokenData(f"{label}: expected a readable video in {path}; found: {_fault(error)}") from error
    for moment, frame in zip(wanted, frames):
        if frame is None:
            raise BrokenData(
                f"{label}: expected a frame at {moment:.3f} s in {path}; found none; "
                "the file is truncated or of another rate"
            )
        expected, found = tuple(size or frames[0].shape[:2]), frame.shape[:2]
        if found != expected:
            raise BrokenData(
                f"{label}: expected pictures of {expected[1]}x{expected[0]} in {path}; found {found[1]}x{found[0]}"
            )
    found = np.stack(frames)
    return found if np.array_equal(places, np.arange(len(found))) else found[places]


def list_timestamps(path: storage.Path) -> tuple[Fraction, tuple[int, int], Int[np.ndarray, "n"]]:
    """Time base in seconds, (height, width) as stored, and the timestamps of all frames shown, rising; decodes nothing.

    Raises:
      BrokenData: the file is no video, or holds no frame.
    """
    label = f"video {path.name}"
    try:
        with storage.local(path) as local, av.open(str(local)) as container:
            stream = _pictures(container)
            is_vp8 = stream.codec_context.codec.canonical_name == "vp8"
            stamps = {packet.pts for packet in container.demux(stream) if _is_shown(packet, is_vp8)} - {None}
            base, size = stream.time_base, (stream.height, stream.width)
    except (av.FFmpegError, IndexError, FileNotFoundError) as error:
        raise BrokenData(f"{label}: expected a readable video in {path}; found: {_fault(error)}") from error
    if not stamps:
        raise BrokenData(f"{label}: expected frames in {path}; found none")
    return base, size, np.array(sorted(stamps), np.int64)


def _pictures(container: av.container.InputContainer) -> av.VideoStream:
    """The film itself: some files carry a picture of their cover as a video stream of its own."""
    stream = container.streams.best("video")
    if stream is None:
        raise IndexError("no video stream")
    return stream


def _is_shown(packet: av.Packet, is_vp8: bool) -> bool:
    """Whether a packet gives a frame: not if an edit list cuts it off. VP8 has some that only others refer to."""
    if not packet.size or packet.is_discard:
        return False
    return not is_vp8 or bool(memoryview(packet)[0] & 0x10)  # show_frame (RFC 6386, section 9.1)


def _fault(error: Exception) -> str:
    """What is wrong with a file, in a few words."""
    if isinstance(error, av.FFmpegError):
        return f"{error.strerror} (truncated?)"
    return "no such file" if isinstance(error, FileNotFoundError) else "no video stream"


def _decode(
    path: storage.Path, wanted: Float[np.ndarray, "n"], tolerance: float
) -> list[UInt8[np.ndarray, "h w 3"] | None]:
    """The frame nearest to each of the rising moments; None where the file holds none."""
    # One for all frames: `frame.to_ndarray(format="rgb24")` sets up a new one each time, at thrice the cost.
    reformatter = VideoReformatter()

    def picture(frame: av.VideoFrame) -> UInt8[np.ndarray, "h w 3"]:
        found = reformatter.reformat(frame, format="rgb24").to_ndarray()
        turns = round(frame.rotation / 90) % 4
        return np.ascontiguousarray(np.rot90(found, turns)) if turns else found

    frames: list[np.ndarray | None] = []
    with storage.local(path) as local, av.open(str(local)) as container:
        _pictures(container).thread_type = "NONE"  # clips are short: starting threads costs more than it gives
        for part in np.split(wanted, np.flatnonzero(np.diff(wanted) > GAP) + 1):
            frames += _nearest(_frames_from(container, part, tolerance), part, tolerance, picture)
    return frames


def _frames_from(
    container: av.container.InputContainer, wanted: Float[np.ndarray, "n"], tolerance: float
) -> Iterator[tuple[float, av.VideoFrame]]:
    """(second, frame) in order of time, from the last key frame on that is not later than the first wanted moment;
    frames that are of no use may lack."""
    stream, second = _pictures(container), wanted[0] - tolerance
    unit = float(stream.time_base)
    for earlier in SEEK_EARLIER:
        target = max(second - earlier, 0.0) if np.isfinite(earlier) else 0.0
        container.seek(int(target / unit), stream=stream, backward=True)
        packets = _useful_packets(container, stream, wanted, tolerance)
        frames = (
            (frame.pts * unit, frame) for packet in packets for frame in packet.decode() if frame.pts is not None
        )
        first = next(frames, None)
        if first is None or first[0] <= second or target == 0.0:
            break
    if first is not None:
        yield first
        yield from frames


def _useful_packets(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    wanted: Float[np.ndarray, "n"],
    tolerance: float,
) -> Iterator[av.Packet]:
    """Packets to decode for the wanted moments. Where frames are stored in the order in which they are shown, a key
    frame needs nothing before it: between two of them nothing is decoded behind the last wanted frame."""
    unit, end = float(stream.time_base), wanted[-1] + tolerance
    if stream.codec_context.has_b_frames:
        yield from container.demux(stream)
        return
    first, all_of_them = True, False
    waiting: list[av.Packet] = []
    for packet in container.demux(stream):
        if packet.is_keyframe:
            yield from _until_last_wanted(waiting, wanted, tolerance, unit, at_least=int(first))
            first, all_of_them, waiting = first and not waiting, False, []
        waiting.append(packet)
        # Beyond the end only frames that the decoder holds back may still be wanted: whatever comes brings them out.
        all_of_them |= packet.pts is None or packet.pts * unit > end or len(waiting) == LONGEST_WAIT
        if all_of_them:
            yield from waiting
            first, waiting = False, []
    yield from waiting


def _until_last_wanted(
    packets: list[av.Packet], wanted: Float[np.ndarray, "n"], tolerance: float, unit: float, at_least: int
) -> list[av.Packet]:
    """The packets from one key frame to the next as far as they are needed."""
    stamps = [packet.pts for packet in packets]
    if not packets or not packets[0].is_keyframe or None in stamps or any(np.diff(stamps) <= 0):
        return packets
    seconds = np.array(stamps) * unit
    following = np.searchsorted(wanted, seconds - tolerance)
    near = wanted[np.minimum(following, len(wanted) - 1)] <= seconds + tolerance
    hits = np.flatnonzero(near & (following < len(wanted)))
    return packets[: max(at_least, hits[-1] + 1 if len(hits) else 0)]


def _nearest(
    frames: Iterator[tuple[float, av.VideoFrame]],
    wanted: Float[np.ndarray, "n"],
    tolerance: float,
    picture: Callable[[av.VideoFrame], UInt8[np.ndarray, "h w 3"]],
) -> list[UInt8[np.ndarray, "h w 3"] | None]:
    """The picture nearest to each of the rising moments, None where there is none within `tolerance`.

    Nothing is decoded beyond the last wanted frame: one that is within half the tolerance has no nearer successor.
    """
    found: list[np.ndarray | None] = []
    before: tuple[float, av.VideoFrame] | None = None
    try:
        for time, frame in frames:
            made = None
            while len(found) < len(wanted) and time >= wanted[len(found)] - tolerance / 2:
                moment = wanted[len(found)]
                if before is not None and moment - before[0] < abs(time - moment):
                    found.append(picture(before[1]) if moment - before[0] <= tolerance else None)
                elif abs(time - moment) <= tolerance:
                    made = picture(frame) if made is None else made
                    found.append(made)
                else:
                    found.append(None)
            if len(found) == len(wanted):
                return found
            before = (time, frame)
    except av.FFmpegError:
        if before is None:
            raise
        # What was decoded stays; the caller names the first frame that is missing.
    if before is not None and len(found) < len(wanted) and abs(wanted[len(found)] - before[0]) <= tolerance:
        found.append(picture(before[1]))
    return found + [None] * (len(wanted) - len(found))
