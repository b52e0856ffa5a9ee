"""An episode and what a model said of it, as a file for the Rerun viewer (the package `rerun-sdk`, an extra).

On the timeline `time`, in seconds of the episode:

  real/picture, imagined/MODE      what happened; what was imagined, of the newest call before the moment
  actions/JOINT/real, .../MODE     targets in the robot's units, likewise of the newest call
  chunks/MODE                      every chunk as a tensor [T, A], at the moment of its call
  milliseconds/MODE                what the call took
  instruction                      the text
"""

import pathlib

import cv2
import numpy as np
from jaxtyping import UInt8

from motus_jax.errors import UserError
from motus_jax.evaluation.episode import Seen

TIMELINE = "time"


def write(path: pathlib.Path, seen: Seen) -> None:
    """Writes `path` and replaces an earlier one only when it is complete.

    Raises:
      UserError: the package is not installed.
    """
    try:
        import rerun
    except ImportError as error:
        raise UserError("--rerun needs the viewer extra: pip install -e '.[viewer]'") from error
    partial = path.with_name(f"{path.name}.partial")
    with rerun.RecordingStream("motus_jax") as stream:
        stream.save(str(partial))
        stream.send_recording_name(seen.title)
        stream.log("instruction", rerun.TextDocument(seen.instruction), static=True)
        _real(rerun, stream, seen)
        for mode in seen.calls:
            _said(rerun, stream, seen, mode)
        stream.flush()
        stream.disconnect()
    partial.replace(path)


def _real(rerun, stream, seen: Seen) -> None:
    for moment, frame, target in zip(seen.times, seen.frames, seen.targets):
        stream.set_time(TIMELINE, duration=float(moment))
        stream.log("real/picture", _picture(rerun, frame))
        stream.set_time(TIMELINE, duration=float(moment + 1 / seen.action_hz))
        for name, value in zip(seen.units.names, target):
            stream.log(f"actions/{name}/real", rerun.Scalars(float(value)))


def _said(rerun, stream, seen: Seen, mode: str) -> None:
    calls = seen.calls[mode]
    ends = [seen.times[call.row] for call in calls[1:]] + [np.inf]
    for call, end in zip(calls, ends):
        stream.set_time(TIMELINE, duration=float(seen.times[call.row]))
        stream.log(f"milliseconds/{mode}", rerun.Scalars(1000 * call.seconds))
        if call.actions is not None:
            stream.log(f"chunks/{mode}", rerun.Tensor(call.actions, dim_names=("action", "dimension")))
            for moment, action in zip(seen.action_times(call.row), call.actions):
                if moment <= end + 1e-6:
                    stream.set_time(TIMELINE, duration=float(moment))
                    for name, value in zip(seen.units.names, action):
                        stream.log(f"actions/{name}/{mode}", rerun.Scalars(float(value)))
        if call.video is not None:
            for moment, frame in zip(seen.frame_times(call.row), call.video):
                if moment < end - 1e-6:
                    stream.set_time(TIMELINE, duration=float(moment))
                    stream.log(f"imagined/{mode}", _picture(rerun, frame))


def _picture(rerun, frame: UInt8[np.ndarray, "H W 3"]):
    _, data = cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 92])
    return rerun.EncodedImage(contents=data.tobytes(), media_type="image/jpeg")
