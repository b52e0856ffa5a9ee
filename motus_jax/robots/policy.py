"""A trained model as a robot asks it: one observation in, one answer in the robot's units out, any of the five modes,
or planning with all of them.

An observation is a dictionary, as openpi's clients send it:

  prompt            the instruction
  state             [Pr] measured, in the robot's units; or `observation/state`
  images            {camera: uint8 [h, w, 3] or [3, h, w]}, RGB; or `observation/CAMERA` for each. Others are ignored
  mode              optional: a row of `motus_jax.modes.MODES`, or `plan` (`motus_jax.sampling.planning`)
  return_video      optional: also the imagined video, where the mode imagines one
  actions           [T, Ar] absolute targets in the robot's units, for modes that are given actions
  video             uint8 [1+Nf, H, W, 3] tiled as an answer's `video`, for modes that are given one; without it each
                    camera's image is a clip [1+Nf, h, w, 3] there
  seed              optional: of the noise
  prefix            optional, where the policy takes one: [d, Ar] absolute targets, 0 <= d < T, that the robot executes
                    while the answer is made. The first is the answer's first; the answer goes on from the last
  previous          optional, with guided: [n, Ar] what the former chunk has behind them, which the answer may change

An answer has `actions` float32 [T, Ar] (absolute targets, radians for joints) and `video` uint8 [1+Nf, H, W, 3] where
the mode returns them, `mode`, and `policy_timing`.
"""

import dataclasses
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8, UInt32

from motus_jax import compiler
from motus_jax.data.cameras import tile_cameras
from motus_jax.data.contract import Contract
from motus_jax.data.texts import Texts
from motus_jax.errors import UserError
from motus_jax.models.system import System
from motus_jax.modes import Role
from motus_jax.robots.committed import Committed
from motus_jax.robots.fields import found, numbers
from motus_jax.sampling import jobs
from motus_jax.sampling.jobs import get_job
from motus_jax.sampling.observation import observe
from motus_jax.sampling.planning import planning_function
from motus_jax.sampling.precision import prepared
from motus_jax.sampling.prefix import takes_prefix
from motus_jax.sampling.sampler import Sampler, sampling_function
from motus_jax.training.checkpoint import Loaded, load_for_inference

LONGEST_PROMPT = 2000
MOST_BATCH = 256
SMALLEST_SIDE, LARGEST_SIDE = 2, 8192
"""Of a camera's picture, in pixels."""

Answer = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Program:
    """What is compiled apart: a mode, whether its video is decoded, and whether it goes on from committed actions."""

    mode: str
    video: bool
    prefix: bool = False


@dataclasses.dataclass(frozen=True)
class Request:
    """An observation that was checked and prepared.

    Attributes:
      program: what answers it.
      batch: a batch of one row (`motus_jax.data.example`).
      raw_state: [Pr] in the robot's units.
      noise: uint32 [2], the seed and the number of the draw.
    """

    program: Program
    batch: dict[str, np.ndarray]
    raw_state: Float[np.ndarray, " Pr"]
    noise: UInt32[np.ndarray, " 2"]


class Policy:
    """A run's model, compiled for every mode and batch size before the first question.

    Args:
      loaded: a run's checkpoint (`motus_jax.training.checkpoint.load_for_inference`).
      source: of a mixture, whose contract holds; by default the one that evaluation takes.
      mode: where an observation says none; by default the one that acts, else the first of `modes`.
      modes: the modes to compile; all that the model can do by default, without planning.
      max_batch: observations answered by one call.
      prefix: how answers go on from committed actions, a row of `motus_jax.sampling.prefix.METHODS`; without, none is
        taken.
      sampling: replaces `config.sampling`.
      plan: how planning draws and judges.
      seed: of the noise, where an observation says none.
      camera_names: what clients call a camera of the contract, where they call it something else.
      ahead: compile everything now. Without, where nobody minds waiting, a program is compiled at its first question,
        for `max_batch` observations alone, to which fewer are filled up.
      say: takes a line for each program that is ready.

    Raises:
      UserError: the model cannot do a mode or `prefix`, `mode` is none of `modes`, or `camera_names` has an unknown
        camera.
    """

    def __init__(
        self,
        loaded: Loaded,
        *,
        source: str = "",
        mode: str = "",
        modes: Sequence[str] = (),
        max_batch: int = 4,
        prefix: str = "",
        sampling: Any = None,
        plan: jobs.Planning = jobs.DEFAULT,
        seed: int = 0,
        camera_names: Mapping[str, str] = MappingProxyType({}),
        ahead: bool = True,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._system, self._plan, self._say = System(loaded.config), plan, say
        self.modes = tuple(dict.fromkeys(modes)) or self._system.supported_modes
        self.mode, self.seed = mode or next(filter(acts, self.modes), self.modes[0]), seed
        self.contract = Contract.from_json(loaded.contract(source))
        self.cameras = self._called(camera_names)
        self.batch_sizes = batch_sizes(max_batch)[0 if ahead else -1 :]
        self._check_mode(self.mode)
        self.committed = Committed.by(prefix, self._system)
        self._texts = Texts(self.contract, loaded.config.data)
        self.metadata = self._describe(loaded.step)
        self._sampling = loaded.config.sampling if sampling is None else sampling
        self._trees = (prepared(self._system, loaded.params, self._sampling), loaded.frozen)
        self._compiled: dict[tuple[Program, int], Callable] = {}
        for program, size in itertools.product(self._programs() if ahead else (), self.batch_sizes):
            self._executable(program, size)

    @classmethod
    def load(cls, workdir: str, step: int | None = None, **how: Any) -> "Policy":
        """The policy of a run's checkpoint, by default the newest; `how` as above.

        Raises:
          UserError: as `load_for_inference`, and as above.
        """
        return cls(load_for_inference(workdir, step), **how)

    def infer(self, observation: Mapping[str, Any], draw: int = 0) -> Answer:
        """The answer to one observation; equal ones get equal answers.

        Args:
          observation: see above.
          draw: another number draws other noise.

        Raises:
          UserError: a field is missing or wrong (its name, what was expected, what was found), or the model's answer is
            not finite.
        """
        (answer,) = self.answer([self.prepare(observation, draw)])
        if isinstance(answer, Exception):
            raise answer
        return answer

    def prepare(self, observation: Mapping[str, Any], draw: int = 0) -> Request:
        """Checks an observation against the contract and makes the model's input of it.

        Raises:
          UserError: see `infer`.
        """
        program = self._program_of(observation)
        row, c = get_job(program.mode), self.contract
        state = numbers("state", _find(observation, "state"), (c.robot_state_dim,))
        frames = self._video(observation) if row.video is Role.GIVEN else self._pictures(observation)
        prompt = observation.get("prompt")
        if not isinstance(prompt, str) or len(prompt) > LONGEST_PROMPT:
            raise UserError(f"prompt: expected at most {LONGEST_PROMPT} characters of text; found {found(prompt)}")
        actions = None
        if row.action is Role.GIVEN:
            actions = numbers("actions", observation.get("actions"), (c.chunk, c.raw_action_dim))[None]
        batch = observe(c, self._texts, frames, state[None], [prompt], actions)
        if overlap := self.committed.fields(observation, c, state):
            if not takes_prefix(program.mode):
                raise UserError(f"prefix: expected none in mode {program.mode}, which takes none")
            program, batch = dataclasses.replace(program, prefix=True), batch | overlap
        return Request(program, batch, state, self._noise(observation, draw))

    def answer(self, requests: Sequence[Request]) -> list[Answer | Exception]:
        """Answers to requests of one program in one call; unused rows of the compiled batch repeat the last request.

        An answer that is not finite is an error in its place. In a larger batch an answer is the same up to rounding.
        """
        started = time.monotonic()
        program, count = requests[0].program, len(requests)
        size = next(size for size in self.batch_sizes if size >= count)
        rows = [*requests, *[requests[-1]] * (size - count)]
        batch = {name: np.concatenate([row.batch[name] for row in rows]) for name in rows[0].batch}
        result = self._executable(program, size)(*self._trees, batch, np.stack([row.noise for row in rows]))
        result = {name: np.asarray(value) for name, value in result.items()}
        timing = {"infer_ms": 1000 * (time.monotonic() - started)}
        return [
            self._in_robot_units(request, {name: value[row] for name, value in result.items()}, timing)
            for row, request in enumerate(requests)
        ]

    def _in_robot_units(
        self, request: Request, result: Mapping[str, np.ndarray], timing: Mapping[str, float]
    ) -> Answer | Exception:
        if not all(np.isfinite(value).all() for value in result.values()):
            return UserError("answer: the model's answer to this observation is not finite; nothing is returned")
        answer: Answer = {"mode": request.program.mode, "policy_timing": dict(timing)}
        if "actions" in result:
            answer["actions"] = self.contract.denormalise_actions(result["actions"], request.raw_state)
        if "video" in result:
            answer["video"] = np.round(np.clip(result["video"], 0, 1) * 255).astype(np.uint8)
        return answer

    def _programs(self) -> list[Program]:
        """A mode's video is decoded only where it is asked for, unless it is all that the mode returns."""
        found = []
        for mode in self.modes:
            row = get_job(mode)
            found += [Program(mode, False)] * row.returns_actions + [Program(mode, True)] * row.returns_video
        if self.committed.method:
            found += [dataclasses.replace(one, prefix=True) for one in found if takes_prefix(one.mode)]
        return found

    def _check_mode(self, mode: Any) -> None:
        if not isinstance(mode, str) or mode not in self.modes:
            raise UserError(f"mode: expected one of {', '.join(self.modes)}; found {mode!r:.80}")

    def _program_of(self, observation: Mapping[str, Any]) -> Program:
        mode, video = observation.get("mode", self.mode), observation.get("return_video", False)
        self._check_mode(mode)
        if not isinstance(video, bool | np.bool_):
            raise UserError(f"return_video: expected true or false; found {found(video)}")
        row = get_job(mode)
        if video and not row.returns_video:
            able = ", ".join(name for name in self.modes if get_job(name).returns_video) or "none"
            raise UserError(f"return_video: expected a mode that imagines a video ({able}); found mode {mode}")
        return Program(mode, bool(video) or not row.returns_actions)

    def _noise(self, observation: Mapping[str, Any], draw: int) -> UInt32[np.ndarray, " 2"]:
        seed = observation.get("seed", self.seed)
        if not (isinstance(seed, int | np.integer) and 0 <= seed < 2**32):
            raise UserError(f"seed: expected a number from 0 to 2^32 - 1; found {found(seed)}")
        return np.array([seed, draw % 2**32], np.uint32)

    def _called(self, camera_names: Mapping[str, str]) -> tuple[str, ...]:
        """What clients call each camera of the contract."""
        for camera in camera_names:
            if camera not in self.contract.cameras:
                raise UserError(f"camera_names: expected one of {', '.join(self.contract.cameras)}; found {camera!r}")
        return tuple(camera_names.get(camera, camera) for camera in self.contract.cameras)

    def _pictures(self, observation: Mapping[str, Any]) -> dict[str, UInt8[np.ndarray, "1 h w 3"]]:
        return {
            camera: _picture(name, _camera(observation, name), axes=3)[None]
            for camera, name in zip(self.contract.cameras, self.cameras, strict=True)
        }

    def _video(self, observation: Mapping[str, Any]) -> UInt8[np.ndarray, "1 1+Nf H W 3"]:
        """The given video: tiled already, or a clip of every camera."""
        c = self.contract
        shape = (1 + c.video_frames, *c.image_size, 3)
        if "video" in observation:
            video = observation["video"]
            if not (isinstance(video, np.ndarray) and video.dtype == np.uint8 and video.shape == shape):
                raise UserError(f"video: expected uint8 {list(shape)}; found {found(video)}")
            return video[None]
        clips = [_picture(name, _camera(observation, name), axes=4) for name in self.cameras]
        for name, clip in zip(self.cameras, clips, strict=True):
            if len(clip) != shape[0]:
                raise UserError(f"image {name!r}: expected {shape[0]} frames; found {len(clip)}")
        return tile_cameras(clips, c.image_size)[None]

    def _describe(self, step: int) -> dict[str, Any]:
        """What a client has to know, as plain values; sent to each before anything else."""
        return {
            **describe(self.contract, step),
            "mode": self.mode,
            "modes": list(self.modes),
            "returns": {mode: _returned(mode) for mode in self.modes},
            "max_batch": self.batch_sizes[-1],
            "cameras": list(self.cameras),
        } | self.committed.facts()

    def _example(self, program: Program) -> dict[str, Any]:
        """An observation of nothing, with which programs are compiled and tried."""
        c = self.contract
        return {
            "mode": program.mode,
            "prefix": np.zeros((int(program.prefix), c.raw_action_dim), np.float32),
            "prompt": "",
            "state": np.float32(c.state.offset),
            "images": {name: np.zeros((*c.image_size, 3), np.uint8) for name in self.cameras},
            "video": np.zeros((1 + c.video_frames, *c.image_size, 3), np.uint8),
            "actions": np.zeros((c.chunk, c.raw_action_dim), np.float32),
        }

    def _executable(self, program: Program, size: int) -> Callable:
        if (program, size) not in self._compiled:
            self._compiled[program, size] = self._compile(program, size)
        return self._compiled[program, size]

    def _function(self, program: Program) -> Sampler:
        if program.mode == jobs.PLAN:
            return planning_function(self._system, self._sampling, self._plan)
        method = self.committed.method if program.prefix else ""
        return sampling_function(self._system, program.mode, self._sampling, method)

    def _compile(self, program: Program, size: int) -> Callable:
        sample = self._function(program)

        def run(
            params: Mapping, frozen: Mapping, batch: Mapping[str, Array], noise: UInt32[Array, "B 2"]
        ) -> dict[str, Array]:
            keys = jax.vmap(lambda own: jax.random.fold_in(jax.random.key(own[0]), own[1]))(noise)
            result = sample(params, frozen, batch, keys)
            return {name: value for name, value in result.items() if name != "video" or program.video}

        request = self.prepare(self._example(program))
        batch = {name: jnp.repeat(value, size, axis=0) for name, value in request.batch.items()}
        arguments = (*self._trees, batch, jnp.zeros((size, 2), jnp.uint32))
        started = time.monotonic()
        # An executable refuses other shapes, where a jitted function would compile again in the middle of a request.
        compiled = jax.jit(run, compiler_options=compiler.options()).lower(*arguments).compile()
        took = time.monotonic() - started
        jax.block_until_ready(compiled(*arguments))
        started = time.monotonic()
        jax.block_until_ready(compiled(*arguments))
        answers = 1000 * (time.monotonic() - started)
        video = " with video" if program.video else ""
        video += f" after a prefix ({self.committed.method})" if program.prefix else ""
        self._say(f"{program.mode}{video}, batch {size}: compiled in {took:.1f} s, answers in {answers:.0f} ms")
        return compiled


def describe(c: Contract, step: int) -> dict[str, Any]:
    """What every server of a checkpoint says of it, whatever it was started with."""
    return {
        "server": "motus_jax",
        "step": step,
        "robot": c.robot,
        "cameras": list(c.cameras),
        "image_size": list(c.image_size),
        "state_dim": c.robot_state_dim,
        "state_names": list(c.state_names),
        "action_dim": c.raw_action_dim,
        "action_names": list(c.action_names),
        "action_space": c.action_space,
        "action_hz": c.action_hz,
        "chunk": c.chunk,
        "video_hz": c.video_hz,
        "video_frames": c.video_frames,
    }


def acts(mode: str) -> bool:
    """Whether a mode goes from the present alone to actions: what a robot asks for."""
    row = get_job(mode)
    return row.video is Role.NOISE and row.action is Role.DENOISED


def _returned(mode: str) -> list[str]:
    """What a mode's answer can hold."""
    row = get_job(mode)
    return ["actions"] * row.returns_actions + ["video"] * row.returns_video


def batch_sizes(most: int) -> tuple[int, ...]:
    """The sizes that are compiled: powers of two below `most`, and `most`.

    Raises:
      UserError: `most` is not 1 to 256.
    """
    if not 1 <= most <= MOST_BATCH:
        raise UserError(f"max_batch: expected 1 to {MOST_BATCH}; found {most}")
    return (*(2**k for k in range(most.bit_length()) if 2**k < most), most)


def _find(observation: Mapping[str, Any], name: str) -> Any:
    return observation.get(name, observation.get(f"observation/{name}"))


def _camera(observation: Mapping[str, Any], camera: str) -> Any:
    images = observation.get("images", {})
    if not isinstance(images, Mapping):
        raise UserError(f"images: expected a map from cameras to pictures; found {found(images)}")
    return images.get(camera, observation.get(f"observation/{camera}"))


def _picture(camera: str, value: Any, axes: int) -> UInt8[np.ndarray, "*n h w 3"]:
    """A picture (3 axes) or a clip (4), channels last."""
    if isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == axes:
        if value.shape[-1] != 3 and value.shape[-3] == 3:
            value = np.moveaxis(value, -3, -1)
        sides = value.shape[-3:-1]
        if value.shape[-1] == 3 and min(sides) >= SMALLEST_SIDE and max(sides) <= LARGEST_SIDE:
            return np.ascontiguousarray(value)
    frames = "frames, " * (axes - 3)
    raise UserError(
        f"image {camera!r}: expected uint8 RGB [{frames}h, w, 3] or [{frames}3, h, w] of {SMALLEST_SIDE} to"
        f" {LARGEST_SIDE} pixels a side; found {found(value)}"
    )
