"""Moves a robot without pauses: the next chunk is computed while the robot executes the last one.

from motus_jax_client import Client, Runner

with Client("ws://gpu-machine:8000") as client:
    runner = Runner(client, observe=robot.observation, act=robot.command, fusion="blend")
    runner.run(seconds=60)
    print(runner.statistics())

Time is counted in ticks of 1 / action_hz. The answer to an observation of tick k has as its action i the target that is
commanded at tick k + i, to be reached a tick later: what is past when it comes is dropped. Where the server takes a
prefix (`python -m motus_jax.serve --prefix=...`), it is told which targets will be commanded until then, as measured
delays foretell, so that the answer goes on from these.
"""

import collections
import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np

from motus_jax_client.fusion import Plan, get_fusion

REMEMBERED_DELAYS = 50
"""Of so many answers: a network that got slower or faster is noticed within as many questions."""
ROUNDING = 1e-6
"""Of a tick; a delay of exactly two ticks is two."""


class Asked(Protocol):
    """What is asked: `motus_jax_client.Client`, or another client of openpi's protocol with these two."""

    @property
    def metadata(self) -> Mapping[str, Any]: ...

    def infer(self, observation: Mapping[str, Any]) -> Mapping[str, Any]: ...


class Clock:
    """Time in seconds, from an arbitrary moment."""

    def now(self) -> float:
        """The time."""
        return time.monotonic()

    def sleep_until(self, moment: float) -> None:
        """Returns at `moment`, or at once where it is past."""
        time.sleep(max(0.0, moment - self.now()))


@dataclasses.dataclass(frozen=True)
class _Answer:
    """A chunk [T, A] for the ticks from that of its observation, of which the first `committed` were sent with it."""

    tick: int
    committed: int
    actions: np.ndarray
    delay: float


class Runner:
    """A control loop; `run` plays one episode after the other.

    Args:
      client: asked in a thread of its own, one question at a time.
      observe: gives an observation (`Client.infer`), quickly: the robot waits for it.
      act: takes a target [A] in the robot's units and sends it off, quickly.
      fusion: how a new chunk joins what is planned, a row of `motus_jax_client.fusion.FUSIONS`.
      every: ticks from one question to the next, at least; a question waits for the answer to the last.
      quantile: of recent delays, that an answer is expected within.
      action_hz: ticks per second; by default the server's.
      clock: time.
      executor: where questions are asked; by default a thread that `run` starts and ends.

    Raises:
      ValueError: an unknown fusion, a number out of range, or no rate.
    """

    def __init__(
        self,
        client: Asked,
        observe: Callable[[], Mapping[str, Any]],
        act: Callable[[np.ndarray], None],
        *,
        fusion: str = "latest",
        every: int = 1,
        quantile: float = 0.95,
        action_hz: float | None = None,
        clock: Clock | None = None,
        executor: Executor | None = None,
    ) -> None:
        metadata = client.metadata
        self.action_hz = action_hz or metadata.get("action_hz")
        if not self.action_hz:
            raise ValueError("action_hz: expected a rate, as the server tells none; found nothing")
        if every < 1 or not 0 < quantile <= 1:
            raise ValueError(f"expected every >= 1 and 0 < quantile <= 1; found {every} and {quantile}")
        self._prefix: Mapping[str, Any] = metadata.get("prefix") or {}
        self._client, self._observe, self._act = client, observe, act
        self._fusion, self._every, self._quantile = get_fusion(fusion), every, quantile
        self._clock, self._executor = clock or Clock(), executor
        self._delays: collections.deque[float] = collections.deque(maxlen=REMEMBERED_DELAYS)
        self._all_delays, self._steps, self._seam_steps = [], [], []
        self._stalls = self._late = 0
        self._reset()

    def run(self, seconds: float = math.inf, done: Callable[[], bool] = lambda: False) -> None:
        """One episode, which begins with a robot that stands still; it moves as soon as the first answer comes.

        Args:
          seconds: how long.
          done: asked before each tick; True ends the episode.

        Raises:
          ValueError: an answer without finite actions [T, A].
          Exception: what the client, `observe` or `act` raised.
        """
        self._reset()
        own = ThreadPoolExecutor(1, thread_name_prefix="runner")
        with own if self._executor is None else contextlib.nullcontext(self._executor) as executor:
            self._start, tick = self._clock.now(), 0
            while tick < seconds * self.action_hz - ROUNDING and not done():
                self._clock.sleep_until(self._time_of(tick))
                self._take(tick)
                self._ask(tick, executor)
                self._command(tick)
                following = max(tick + 1, math.floor((self._clock.now() - self._start) * self.action_hz + ROUNDING))
                self._late += following - tick - 1
                tick = following

    def statistics(self) -> dict[str, float]:
        """Of all runs: answers, their delays [s], ticks without a planned target (`stalls`) and ticks that were skipped
        because `observe` or `act` took too long (`late`), and the largest change of any number of the target within a
        tick, where a chunk begins (`seam`) and elsewhere (`step`)."""
        delays = self._all_delays or [math.nan]
        found = {"answers": len(self._all_delays), "stalls": self._stalls, "late": self._late}
        found |= {f"delay_p{q}": float(np.percentile(delays, q)) for q in (50, 95)}
        for name, steps in (("seam", self._seam_steps), ("step", self._steps)):
            found |= {f"{name}_mean": float(np.mean(steps)) if steps else 0.0, f"{name}_max": max(steps, default=0.0)}
        return found

    def _reset(self) -> None:
        self._plan, self._pending = Plan(), None
        self._held: np.ndarray | None = None
        self._moved = self._seam = -1
        self._next_question = 0

    def _time_of(self, tick: int) -> float:
        return self._start + tick / self.action_hz

    def _take(self, tick: int) -> None:
        """Joins an answer that has come with the plan."""
        if self._pending is None or not self._pending.done():
            return
        answer, self._pending = self._pending.result(), None
        self._delays.append(answer.delay)
        self._all_delays.append(answer.delay)
        begins, first = answer.tick, max(tick, answer.tick + answer.committed)
        if self._moved < answer.tick:  # the robot has stood still since it was observed: nothing is past
            begins = first = tick
        if self._plan.join(begins, answer.actions, first, self._fusion):
            self._seam = first

    def _ask(self, tick: int, executor: Executor) -> None:
        """Asks the next question, unless one is under way."""
        if self._pending is not None or tick < self._next_question:
            return
        observation, committed = dict(self._observe()), self._committed(tick)
        if len(committed):
            observation["prefix"] = committed
            left = self._plan.after(tick + len(committed)) if self._prefix.get("previous") else ()
            observation |= {"previous": np.stack(left)} if left else {}
        self._pending = executor.submit(self._answer, tick, len(committed), observation)
        self._next_question = tick + self._every

    def _answer(self, tick: int, committed: int, observation: Mapping[str, Any]) -> _Answer:
        """Runs in the thread."""
        actions = np.array(self._client.infer(observation)["actions"], np.float32)
        if actions.ndim != 2 or not len(actions) or not np.isfinite(actions).all():
            raise ValueError(f"answer: expected finite actions [T, A]; found {list(actions.shape)}")
        return _Answer(tick, committed, actions, self._clock.now() - self._time_of(tick))

    def _committed(self, tick: int) -> np.ndarray:
        """Targets [d, A] that will be commanded until the answer is there; none where the robot stands still."""
        if not self._prefix or not self._delays or tick not in self._plan:
            return np.zeros((0, 0), np.float32)
        delay = float(np.quantile(self._delays, self._quantile, method="higher"))
        count = max(1, math.ceil(delay * self.action_hz - ROUNDING))
        return self._plan.held(tick, min(count, self._prefix["longest"]))

    def _command(self, tick: int) -> None:
        """Sends the target of this tick; where none is planned, the last one."""
        if tick in self._plan:
            target, self._moved = self._plan[tick], tick
            if self._held is not None:
                step = float(np.abs(target - self._held).max())
                (self._seam_steps if tick == self._seam else self._steps).append(step)
        elif self._held is None:
            return
        else:
            target = self._held
            self._stalls += 1
        self._held = target
        self._plan.forget(tick)
        self._act(target)
