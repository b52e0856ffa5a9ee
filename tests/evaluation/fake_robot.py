"""A robot without physics, and a policy that knows the way: what closed loop needs, on any machine.

Three numbers that go where they are told. `reach` wants the first two near 0, from 0.5 to 1 at the start; `toil` can
never be done. The file named by `DIES_ONCE`, where there is one, makes the next episode take its process with it.
"""

import contextlib
import dataclasses
import os
import pathlib

import numpy as np

from motus_jax.errors import UserError
from motus_jax.robots.catalogue import Robot, Trial

DIES_ONCE = "FAKE_ROBOT_DIES_ONCE"
NAMES = ("shoulder", "elbow", "gripper")
GREY = 40


class World:
    """The point, painted as a square that gets brighter where it nears 0."""

    def __init__(self, task, rng):
        with contextlib.suppress(FileNotFoundError):
            pathlib.Path(os.environ.get(DIES_ONCE, "/nowhere")).unlink()
            os._exit(3)
        self.instruction, self._task = f"{task} 0", task
        self._place = rng.uniform(0.5, 1.0, 3).astype(np.float32)

    def state(self):
        return self._place.copy()

    def render(self):
        nearness = 1 - np.clip(np.abs(self._place[:2]).max(), 0, 1)
        return {"top": np.full((32, 32, 3), GREY + int(200 * nearness), np.uint8)}

    def move(self, previous, target, hz):
        assert hz == 10
        self._place = np.asarray(target, np.float32)

    def stage(self):
        if self._task == "toil":
            return 0
        return sum(np.abs(self._place[:2]).max() < limit for limit in (0.25, 0.05))


ROBOT = Robot(
    robot_type="fake", fps=10, cameras={"top": (32, 32)}, state_names=NAMES, action_names=NAMES,
    tasks=("reach", "toil"), record=lambda task, seed: None,
    trials={"reach": Trial(("reach 0", "go home"), 2), "toil": Trial(("toil 0",), 2)}, begin=World,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Request:
    program: str
    asked: dict


class Guide:
    """Served: `vla` reaches 0 with its third target, `joint` stops at 0.2, `world_model` imagines bright grey."""

    modes = ("vla", "joint", "world_model")

    def __init__(self, metadata, chunk=4):
        self.metadata = {**metadata, "mode": "vla", "modes": list(self.modes)}
        self.asked, self.batches, self._chunk = [], [], chunk

    def prepare(self, observation, draw):
        if observation["mode"] not in self.modes:
            raise UserError(f"mode: expected one of {', '.join(self.modes)}; found {observation['mode']}")
        assert draw == 0, "the noise is that of the question alone"
        self.asked.append({name: observation[name] for name in ("mode", "seed", "session_id", "prompt")})
        return Request(observation["mode"], observation)

    def answer(self, requests):
        self.batches.append(len(requests))
        return [{"mode": request.program, **getattr(self, request.program)(request.asked)} for request in requests]

    def vla(self, asked):
        way = np.minimum(np.arange(1, self._chunk + 1) / 3, 1)[:, None]
        return {"actions": (asked["state"] * (1 - way)).astype(np.float32)}

    def joint(self, asked):
        return {"actions": np.full((self._chunk, 3), 0.2, np.float32)}

    def world_model(self, asked):
        assert asked["actions"].shape == (self._chunk, 3)
        return {"video": np.full((3, 32, 32, 3), 220, np.uint8)}
