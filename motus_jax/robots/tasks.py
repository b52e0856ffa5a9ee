"""The ALOHA tasks as one table: where objects start, what is said, what the scripted expert does, what is success.

The order of the waypoints of transfer and insertion follows the well-known scripted ALOHA policies; poses, timing,
inverse kinematics and the other tasks are ours. Positions in metres, times in seconds, grippers 0 closed .. 1 open.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from motus_jax.errors import UserError
from motus_jax.robots.aloha import Aloha
from motus_jax.robots.kinematics import Quaternion, Vector, about, compose, rotate

LEFT, RIGHT = 0, 1
PLAN_HZ = 10
TOOL = 0.15  # from gripper_link to the point between the fingertips, along the link's x axis
PLAY_SECONDS = 3.0
MEETING_POINT = np.array([0.0, 0.5, 0.25])

Waypoint = tuple[float, Vector, Quaternion, float]
Plan = tuple[list[Waypoint], list[Waypoint]]


@dataclasses.dataclass(frozen=True)
class Task:
    """One row of the table.

    Attributes:
      layout: gym-aloha scene that holds the objects.
      instructions: paraphrases; an episode draws one.
      place: draws the objects' start positions by body name.
      plan: the expert's waypoints of the gripper_link bodies, left and right arm; an arm without any stays still.
      stages: what has to be true of the world one after another; the last one is success. Without any the task is
        play, whose whole plan counts as fulfilled.
    """

    layout: str
    instructions: tuple[str, ...]
    place: Callable[[np.random.Generator], dict[str, Vector]]
    plan: Callable[[Aloha], Plan]
    stages: tuple[Callable[[Aloha], bool], ...]


def _link(tool: Vector, rotation: Quaternion, reach: float = TOOL) -> Vector:
    """Where gripper_link must be for the tool point to be at `tool`."""
    return np.asarray(tool, np.float64) - rotate(rotation, np.array([reach, 0.0, 0.0]))


def _downwards(arm: int) -> Quaternion:
    """The hand points from its own side to the middle and steeply down."""
    return about((0, 1, 0), 55) if arm == LEFT else compose(about((0, 1, 0), -55), about((0, 0, 1), 180))


def _pick(rotation: Quaternion, target: Vector) -> list[Waypoint]:
    """Over the target, down, and close: 1.65 s."""
    above = target + np.array([0.0, 0.0, 0.08])
    return [
        (0.85, _link(above, rotation), rotation, 1.0),
        (1.25, _link(target, rotation), rotation, 1.0),
        (1.55, _link(target, rotation), rotation, 0.0),
        (1.65, _link(target, rotation), rotation, 0.0),
    ]


def _transfer_plan(world: Aloha) -> Plan:
    """Right arm lifts the cube to the meeting point; left arm takes it from the side."""
    down, side = _downwards(RIGHT), about((1, 0, 0), 90)
    near = _link(MEETING_POINT + np.array([-0.10, 0, 0]), side, 0.135)
    at = _link(MEETING_POINT + np.array([-0.01, 0, 0]), side, 0.135)
    meet = _link(MEETING_POINT, down)
    away = _link(MEETING_POINT + np.array([0.14, 0, 0.03]), down)
    give = _pick(down, world.position("box"))
    give += [(2.2, meet, down, 0.0), (2.9, meet, down, 0.0), (3.1, meet, down, 1.0), (3.6, away, down, 1.0)]
    take = [(1.1, near, side, 1.0), (2.1, near, side, 1.0)]
    take += [(2.5, at, side, 1.0), (2.8, at, side, 0.0), (3.15, at, side, 0.0), (3.6, near, side, 0.0)]
    return take, give


def _holds(world: Aloha, arm: int, geoms: set[int]) -> bool:
    """The arm's fingers touch the object and the table does not."""
    return world.held_by(arm, geoms) and not world.touching(geoms, world.geoms("table"))


def _holds_cube(world: Aloha, arm: int) -> bool:
    return _holds(world, arm, world.geoms("red_box"))


def _transferred(world: Aloha) -> bool:
    return _holds_cube(world, LEFT) and not world.held_by(RIGHT, world.geoms("red_box"))


def _insertion_plan(world: Aloha) -> Plan:
    """Left arm lifts the socket, right arm the peg; both meet over the middle and the peg goes in."""
    plans = []
    # The peg hangs lower in the fingers than the socket: level hands would miss the hole by a centimetre.
    for arm, sign, body, height in ((LEFT, -1, "socket", 0.2), (RIGHT, 1, "peg", 0.213)):
        turn = _downwards(arm)
        path = _pick(turn, np.append(world.position(body)[:2], 0.02))
        for time, distance in ((2.2, 0.12), (2.4, 0.12), (2.75, 0.083), (3.1, 0.046), (3.6, 0.044)):
            path.append((time, _link(np.array([sign * distance, 0.5, height]), turn), turn, 0.0))
        plans.append(path)
    return plans[LEFT], plans[RIGHT]


def _holds_both(world: Aloha) -> bool:
    socket = world.geoms(*(f"socket-{side}" for side in (1, 2, 3, 4)))
    return _holds(world, LEFT, socket) and _holds(world, RIGHT, world.geoms("red_peg"))


def _inserted(world: Aloha) -> bool:
    """The peg sticks in the socket, in the air.

    Both are 12 cm long: with less than 10.5 cm between their centres the peg is in by at least 1.5 cm. The touch of its
    tip at the bottom, the usual test, comes and goes while the hands press.
    """
    along, *aside = world.position("peg") - world.position("socket")
    return bool(abs(along) < 0.105 and np.abs(aside).max() < 0.015) and _holds_both(world)


def _lift_plan(world: Aloha, arm: int) -> Plan:
    """The named arm lifts the cube towards its own side; the other arm stays."""
    sign = -1 if arm == LEFT else 1
    turn = _downwards(arm)
    path = _pick(turn, world.position("box"))
    path.append((2.3, _link(np.array([sign * 0.12, 0.5, 0.22]), turn), turn, 0.0))
    path.append((2.8, _link(np.array([sign * 0.22, 0.55, 0.24]), turn), turn, 0.0))
    return (path, []) if arm == LEFT else ([], path)


def _lifted(world: Aloha, arm: int) -> bool:
    alone = not world.held_by(1 - arm, world.geoms("red_box"))
    return _holds_cube(world, arm) and alone and bool(world.position("box")[2] > 0.15)


def _play_plan(world: Aloha) -> Plan:
    """Each hand wanders over its half of the table and opens and closes: motion that nothing but the actions foretells.

    The halves keep the arms apart; low targets push and sometimes grasp the cube.
    """
    plans = []
    for arm, sign in ((LEFT, -1), (RIGHT, 1)):
        path, time = [], 0.0
        while time < PLAY_SECONDS:
            time += world.rng.uniform(0.4, 0.9)
            place = world.rng.uniform((0.04, 0.40, 0.02), (0.26, 0.62, 0.26)) * (sign, 1, 1)
            turn = compose(about((0, 0, 1), world.rng.uniform(-30, 30)), _downwards(arm))
            path.append((time, _link(place, turn), turn, world.rng.uniform()))
        plans.append(path)
    return plans[LEFT], plans[RIGHT]


def _uniform(rng: np.random.Generator, x: tuple[float, float], height: float) -> Vector:
    return np.array([rng.uniform(*x), rng.uniform(0.42, 0.6), height])


def _lift_task(arm: int, side: str) -> Task:
    return Task(
        layout="transfer_cube",
        instructions=(
            f"lift the red cube with the {side} arm",
            f"pick up the red cube using your {side} hand",
            f"use the {side} gripper to raise the cube",
            f"grab the cube with the {side} arm and hold it up",
        ),
        # In reach of both arms: only the instruction tells which one is meant.
        place=lambda rng: {"box": _uniform(rng, (-0.1, 0.1), 0.02)},
        plan=lambda world: _lift_plan(world, arm),
        stages=(lambda world: _holds_cube(world, arm), lambda world: _lifted(world, arm)),
    )


TASKS = {
    "transfer_cube": Task(
        layout="transfer_cube",
        instructions=(
            "pass the red cube from the right arm to the left arm",
            "hand the red cube over to the left gripper",
            "pick up the cube with the right arm and give it to the left",
            "transfer the red cube to the left arm",
        ),
        place=lambda rng: {"box": _uniform(rng, (-0.02, 0.2), 0.02)},
        plan=_transfer_plan,
        stages=(
            lambda world: _holds_cube(world, RIGHT),
            lambda world: _holds_cube(world, RIGHT) and _holds_cube(world, LEFT),
            _transferred,
        ),
    ),
    "insertion": Task(
        layout="insertion",
        instructions=(
            "insert the red peg into the blue socket",
            "put the peg in the socket",
            "pick up the peg and the socket and join them",
            "plug the red peg into the blue socket",
        ),
        place=lambda rng: {"peg": _uniform(rng, (0.1, 0.2), 0.01), "socket": _uniform(rng, (-0.2, -0.1), 0.022)},
        plan=_insertion_plan,
        stages=(
            lambda world: _holds(world, RIGHT, world.geoms("red_peg")),
            _holds_both,
            _inserted,
        ),
    ),
    "lift_left": _lift_task(LEFT, "left"),
    "lift_right": _lift_task(RIGHT, "right"),
    "play": Task(
        layout="transfer_cube",
        instructions=("move both arms around freely", "play with the arms over the table"),
        place=lambda rng: {"box": _uniform(rng, (-0.2, 0.2), 0.02)},
        plan=_play_plan,
        stages=(),
    ),
}


def task(name: str) -> Task:
    """A task by name.

    Raises:
      UserError: no such task.
    """
    if name not in TASKS:
        raise UserError(f"task {name!r}: expected one of {', '.join(TASKS)} for the robot aloha")
    return TASKS[name]


def reset(name: str, rng: np.random.Generator) -> tuple[Aloha, str]:
    """A fresh world for the task and the instruction that goes with it; everything random comes from `rng`."""
    chosen = task(name)
    instruction = str(rng.choice(chosen.instructions))
    return Aloha(chosen.layout, chosen.place(rng), rng), instruction


def reached_stage(name: str, world: Aloha) -> int:
    """How many stages of the task the world now fulfils, counted up to the last one that is true."""
    stages = task(name).stages
    return max((number for number, holds in enumerate(stages, start=1) if holds(world)), default=0)


def succeeded(name: str, world: Aloha) -> bool:
    """Whether the world now fulfils the instruction; play never does before its end."""
    stages = task(name).stages
    return bool(stages) and stages[-1](world)


def expert_targets(name: str, world: Aloha) -> Float[np.ndarray, "T 14"]:
    """Joint targets of the scripted expert at `PLAN_HZ`, the first one 1 / PLAN_HZ s after the present.

    To be interpolated linearly up to the control rate, starting from the present state. Between waypoints the joints
    move in straight lines: following the hands' straight lines would whirl the wrist where its axes align.
    """
    plan = task(name).plan(world)
    kinematics, state = world.stage.kinematics, world.state()
    steps = round(max(path[-1][0] for path in plan if path) * PLAN_HZ)
    times = np.arange(1, steps + 1) / PLAN_HZ
    targets = np.tile(state, (steps, 1))
    for arm, path in enumerate(plan):
        joints = kinematics.joints[arm]
        qpos = world.data.qpos.copy()
        knots = [state[7 * arm : 7 * arm + 7]]
        for _, position, rotation, gripper in path:
            qpos = kinematics.solve(qpos, arm, position, rotation)
            knots.append(np.append(qpos[joints], gripper))
        moments = [0.0] + [waypoint[0] for waypoint in path]
        for dimension in range(7):
            targets[:, 7 * arm + dimension] = np.interp(times, moments, [knot[dimension] for knot in knots])
    return targets
