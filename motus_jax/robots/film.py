"""Videos of episodes in closed loop: what was executed beside what the model imagines of it."""

import dataclasses
import pathlib
from collections.abc import Generator

import numpy as np
from jaxtyping import UInt8

from motus_jax.data.cameras import tile_cameras
from motus_jax.robots import catalogue
from motus_jax.robots.closed_loop import Answer, Episode, Observation, Setting, question, unseen_start

EXECUTED, IMAGINED = "executed", "imagined"


@dataclasses.dataclass(frozen=True)
class Film:
    """A film of an episode that was played.

    Attributes:
      episode: whose chunks lie in `episodes/`.
      imagine: the mode that is given actions and returns a video; empty where the server has none.
    """

    episode: Episode
    imagine: str

    def start(self, setting: Setting) -> Generator[Observation, Answer, pathlib.Path]:
        """See `make_film`."""
        return make_film(self, setting)


def make_film(film: Film, setting: Setting) -> Generator[Observation, Answer, pathlib.Path]:
    """Executes the episode's chunks again, from the same start, and writes `videos/NAME.mp4`.

    At each look the model imagines what the whole chunk would lead to; its frames run on beside the executed ones until
    the next look, at which the imagination starts anew from the real picture.

    Returns:
      The file.
    """
    from motus_jax.sampling import pictures  # it takes long to import, and most processes never need it

    episode, contract = film.episode, setting.contract
    world = catalogue.load(setting.robot).begin(episode.task, unseen_start(episode.seed))
    with np.load(setting.folder / "episodes" / f"{episode.name}.npz") as file:
        chunks, executed = file["chunks"], file["executed"]
    target, real = world.state(), [_picture(world, setting)]
    imagined = [real[0]]
    for number, (chunk, count) in enumerate(zip(chunks, executed)):
        times = frame_times(int(count), contract.action_hz, contract.video_hz)[: contract.video_frames]
        if film.imagine:
            asked = question(episode, setting, world, number, film.imagine, actions=chunk, return_video=True)
            answer = yield asked
            imagined += list(answer["video"][1 : 1 + len(times)])
        for step, target_now in enumerate(chunk[:count], start=1):
            world.move(target, target_now, contract.action_hz)
            target = target_now
            real += [_picture(world, setting)] * times.count(step)
    columns = {EXECUTED: np.stack(real)} | ({IMAGINED: np.stack(imagined)} if film.imagine else {})
    path = setting.folder / "videos" / f"{episode.name}.mp4"
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures.write_mp4(path, pictures.side_by_side(columns), contract.video_hz, scale=1)
    return path


def frame_times(count: int, action_hz: float, video_hz: float) -> list[int]:
    """After which of `count` actions each frame after the first is due; the last action has one."""
    a_frame = action_hz / video_hz
    return [min(round(k * a_frame), count) for k in range(1, int(np.ceil(count / a_frame - 1e-9)) + 1)]


def _picture(world: catalogue.World, setting: Setting) -> UInt8[np.ndarray, "H W 3"]:
    views = world.render()
    contract = setting.contract
    return tile_cameras([views[camera][None] for camera in contract.cameras], contract.image_size)[0]
