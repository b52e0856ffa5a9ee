"""Records episodes of a simulated robot's scripted expert as a LeRobot v3.0 dataset (simulator extra).

  python -m motus_jax.data record --robot=aloha --tasks=transfer_cube,insertion --episodes=40 --out=DIR

Only successful episodes are kept; starts, looks and instructions are drawn from the seed, and training and test
episodes from different ones. The result does not depend on the number of workers.
"""

import argparse
import dataclasses
import multiprocessing
import os
import pathlib
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from motus_jax.data.lerobot_writer import LeRobotWriter
from motus_jax.errors import UserError
from motus_jax.robots import catalogue
from motus_jax.robots.episode import Episode

SPLITS = ("train", "test")
ATTEMPTS = 20


@dataclasses.dataclass(frozen=True)
class Job:
    """One episode to be recorded: everything random in it follows from (seed, split, number)."""

    robot: str
    task: str
    seed: int
    split: str
    number: int

    def start(self, attempt: int) -> np.random.SeedSequence:
        """Seed of the attempt's start."""
        return np.random.SeedSequence([self.seed, SPLITS.index(self.split), self.number, attempt])


def record_job(job: Job) -> tuple[Episode, int]:
    """The first successful episode of a job and the number of failures before it.

    Raises:
      UserError: no success in `ATTEMPTS` attempts.
    """
    record = catalogue.robot(job.robot).record
    for attempt in range(ATTEMPTS):
        episode = record(job.task, job.start(attempt))
        if episode.success:
            return episode, attempt
    raise UserError(f"task {job.task}: expected the expert to succeed within {ATTEMPTS} attempts, found only failures")


def record(
    robot_name: str,
    task_names: Sequence[str],
    episodes: int,
    test_episodes: int,
    out: str | pathlib.Path,
    *,
    seed: int = 0,
    workers: int = 1,
    crf: int = 22,
) -> None:
    """Records `episodes` training and `test_episodes` test episodes, the tasks taking turns, into the new folder `out`.

    Raises:
      UserError: unknown robot or task, missing simulator, existing folder.
    """
    robot = catalogue.robot(robot_name)
    for name in task_names:
        if name not in robot.tasks:
            raise UserError(f"task {name!r}: expected one of {', '.join(robot.tasks)} for the robot {robot_name}")
    jobs = [
        Job(robot_name, task_names[number % len(task_names)], seed, split, number)
        for split, count in zip(SPLITS, (episodes, test_episodes), strict=True)
        for number in range(count)
    ]
    names = dict(state_names=robot.state_names, action_names=robot.action_names)
    writer = LeRobotWriter(out, fps=robot.fps, robot_type=robot.robot_type, cameras=robot.cameras, crf=crf, **names)
    failures, began = Counter(), time.monotonic()
    with writer:
        for job, (episode, failed) in zip(jobs, _recorded(jobs, workers), strict=True):
            writer.add_episode(
                state=episode.state, action=episode.action, frames=episode.frames, task=episode.instruction
            )
            failures[job.task] += failed
            _show_progress(writer.episodes, len(jobs), time.monotonic() - began)
        splits = {"train": f"0:{episodes}"}
        if test_episodes:
            splits["test"] = f"{episodes}:{episodes + test_episodes}"
        writer.finish(splits)
    _report(pathlib.Path(out), jobs, failures)


def _recorded(jobs: list[Job], workers: int) -> Iterator[tuple[Episode, int]]:
    """Episodes in the order of the jobs, from spawned processes if there is more than one worker."""
    if workers == 1:
        yield from map(record_job, jobs)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap(record_job, jobs)


def _show_progress(done: int, total: int, seconds: float) -> None:
    left = seconds / done * (total - done)
    line = f"episode {done}/{total}, {done / seconds * 60:.0f} a minute, {left:.0f} s left"
    # A terminal gets one moving line; a log file a line every 20 episodes.
    if sys.stderr.isatty():
        print(f"\r{line}   ", end="" if done < total else "\n", file=sys.stderr, flush=True)
    elif done % 20 == 0 or done == total:
        print(line, file=sys.stderr, flush=True)


def _report(out: pathlib.Path, jobs: list[Job], failures: Counter) -> None:
    megabytes = sum(file.stat().st_size for file in out.rglob("*") if file.is_file()) / 1e6
    print(f"{out}: {len(jobs)} episodes, {megabytes:.2f} MB")
    for task, count in Counter(job.task for job in jobs).items():
        tried = count + failures[task]
        print(f"  {task}: {count} kept of {tried} played ({count / tried:.1%} success)")


def main(argv: Sequence[str]) -> None:
    """The `record` subcommand; `argv[0]` is its name.

    Raises:
      UserError: bad input (see `record`).
    """
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m motus_jax.data record", description=__doc__, formatter_class=layout)
    parser.add_argument("--robot", default="aloha", help=f"one of {', '.join(catalogue.MODULES)}")
    parser.add_argument("--tasks", help="comma-separated, taking turns (default: all of the robot's)")
    parser.add_argument("--episodes", type=int, default=240, help="training episodes")
    parser.add_argument("--test_episodes", type=int, default=48, help="held-out episodes")
    parser.add_argument("--out", required=True, help="folder of the new dataset")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1), help="processes")
    parser.add_argument("--crf", type=int, default=22, help="h264 quality, 0 to 51, lower is better and larger")
    options = parser.parse_args(argv[1:])
    for name, least in (("episodes", 1), ("test_episodes", 0), ("workers", 1), ("seed", 0), ("crf", 0)):
        if getattr(options, name) < least:
            raise UserError(f"--{name}: expected at least {least}, found {getattr(options, name)}")
    task_names = options.tasks.split(",") if options.tasks else catalogue.robot(options.robot).tasks
    record(
        options.robot,
        task_names,
        options.episodes,
        options.test_episodes,
        options.out,
        seed=options.seed,
        workers=options.workers,
        crf=options.crf,
    )
