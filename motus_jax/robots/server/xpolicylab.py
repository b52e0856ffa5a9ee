"""XPolicyLab's protocol, by which RoboTwin and RoboDojo evaluate (XPolicyLab, client_server/ws).

Every frame is a map of `message_type`, `message_id`, `evaluation_id`, `action_case_id`, `trial_id`, `repeat_index`,
`step`, `sent_at` and `payload`, with arrays as the package `msgpack-numpy` writes them. A request is answered by its
counterpart, or by `error`, under the same id. `infer` carries an observation and returns the chunk, a list of maps from
parts of the robot to numbers; newer clients `call` `update_obs` and `get_action` instead. Observations are those of
"Observation Data Format v1.0": `instruction`, `vision.CAMERA.color` [h, w, 3], `state.PART`. Colours that were
compressed, and batches of environments in one request, are not read.
"""

import datetime
import uuid
from collections.abc import Mapping
from typing import Any

import numpy as np

from motus_jax.errors import UserError
from motus_jax.robots.server import codec
from motus_jax.robots.server.batcher import Answer
from motus_jax.robots.server.dialect import (
    Dialect,
    Frame,
    Kind,
    Turn,
    expect_actions,
    expect_binary,
    expect_map,
    expect_text,
    joined,
)
from motus_jax_client.codec import expect_plain, make_array, plain_dtype

REPLIES = {
    "hello": "hello_ack",
    "prepare_case": "prepare_case_ack",
    "reset": "reset_result",
    "infer": "infer_result",
    "call": "call_result",
    "trial_end": "trial_end_ack",
    "heartbeat": "heartbeat_ack",
}
CODES: dict[Kind, str] = {
    "message": "invalid_frame",
    "request": "infer_failed",
    "timeout": "timeout",
    "internal": "internal",
}
ECHOED = ("message_id", "evaluation_id", "action_case_id", "trial_id", "repeat_index", "step")

ARMS = {7: 6, 8: 7, 14: 6, 16: 7}
"""Joints of each arm, by the numbers of a robot with one arm or two and a gripper on each."""
POSE = 7
"""Numbers of a hand's pose: position, quaternion w x y z."""
HANDS = "end_effector"
"""The action space of poses (`motus_jax.data.action_space`)."""

INSTANCE = uuid.uuid4().hex
"""By which a client sees that the server was started anew."""


class XPolicyLab(Dialect):
    """One or two arms, moved by joints or by poses of their hands."""

    pong_timeout = 300.0

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        super().__init__(metadata)
        expect_actions("xpolicylab", metadata)
        pose = metadata["action_space"] == HANDS
        self._state, self._action = (parts(name, metadata[name], pose) for name in ("state_dim", "action_dim"))
        self._observation: Any = None

    def read(self, frame: Frame) -> dict[str, Any]:
        message = expect_map("message", codec.unpack(expect_binary(frame), revive))
        for name in ("message_type", "message_id", "evaluation_id"):
            if message.get(name) is None:
                raise UserError(f"message: {name} is missing")
        for name in ECHOED:
            if not isinstance(message.get(name), str | int | None):
                raise UserError(f"{name}: expected text or a whole number; found {type(message[name]).__name__}")
        return message

    def turn(self, message: dict[str, Any]) -> Turn:
        kind = expect_text("message_type", message["message_type"])
        payload = expect_map("payload", message.get("payload") or {})
        if kind == "close":
            return Turn(ends=True)
        if kind not in REPLIES:
            raise UserError(f"message_type: expected one of {', '.join(REPLIES)} or close; found {kind!r:.80}")
        if kind == "infer":
            return Turn(observation=self._ours(payload.get("observation")))
        if kind == "call":
            return self._call(message, payload)
        about = {"server": "motus_jax", "server_instance_id": INSTANCE} if kind == "hello" else {}
        return Turn(reply=self._reply(message, {"ok": True} | about), begins=kind == "reset")

    def _call(self, message: dict[str, Any], payload: dict[str, Any]) -> Turn:
        """Calls of a policy's methods by name: of those of XPolicyLab's template, the two that act."""
        name = expect_text("func_name", payload.get("func_name"))
        if name == "update_obs":
            self._observation = self._ours(payload.get("obs"))
            return Turn(reply=self._reply(message, {"ok": True}))
        if name != "get_action":
            raise UserError(f"func_name: expected update_obs or get_action; found {name!r:.80}")
        if self._observation is None:
            raise UserError("get_action: expected an observation by update_obs before")
        return Turn(observation=self._observation)

    def answer(self, message: dict[str, Any], answer: Answer) -> Frame:
        chunk = [split(action, self._action) for action in answer["actions"]]
        named = {"actions": chunk} if message["message_type"] == "infer" else {"ok": True, "result": chunk}
        return self._reply(message, named | {"latency_ms": answer["server_timing"]["infer_ms"]})

    def error(self, message: dict[str, Any] | None, kind: Kind, line: str) -> Frame:
        message = message or {"message_id": "", "evaluation_id": ""}
        unknown = kind == "message" and str(message.get("message_type", "hello")) not in REPLIES  # may be a list
        code = "unknown_message_type" if unknown else CODES[kind]
        return self._frame("error", message, {"code": code, "message": line, "details": {}})

    def _ours(self, observation: Any) -> dict[str, Any]:
        found = expect_map("observation", observation)
        vision, state = (expect_map(name, found.get(name, {})) for name in ("vision", "state"))
        seen = {name: expect_map(name, view).get("color") for name, view in vision.items()}
        return {
            "prompt": found.get("instruction", found.get("instructions")),
            "state": joined(state, [name for name, _ in self._state]),
            "images": seen,
        }

    def _reply(self, message: Mapping[str, Any], payload: dict[str, Any]) -> Frame:
        return self._frame(REPLIES[message["message_type"]], message, payload)

    def _frame(self, kind: str, message: Mapping[str, Any], payload: dict[str, Any]) -> Frame:
        now = datetime.datetime.now(datetime.UTC).isoformat()
        echoed = {name: message.get(name) for name in ECHOED} | {"step": message.get("step") or 0}
        return codec.pack({"message_type": kind, **echoed, "sent_at": now, "payload": payload}, as_map)


def parts(name: str, dims: int, pose: bool) -> tuple[tuple[str, int], ...]:
    """XPolicyLab's names of a robot's numbers in their order, and how many each has.

    Raises:
      UserError: not one or two arms with a gripper each.
    """
    if dims not in ARMS or (pose and ARMS[dims] != POSE):
        raise UserError(
            "--protocol=xpolicylab: expected one or two arms of 6 or 7 joints (or hands of 7 numbers) with a gripper"
            f" each; found {name} {dims}"
        )
    sides = ("left_", "right_") if dims > 8 else ("",)
    moved = "ee_pose" if pose else "arm_joint_state"
    return tuple(part for side in sides for part in ((f"{side}{moved}", ARMS[dims]), (f"{side}ee_joint_state", 1)))


def split(action: np.ndarray, named: tuple[tuple[str, int], ...]) -> dict[str, np.ndarray]:
    """The numbers of one action, by part."""
    ends = np.cumsum([width for _, width in named])
    return {name: part for (name, _), part in zip(named, np.split(action, ends[:-1]), strict=True)}


def as_map(value: Any) -> dict[bytes, Any]:
    """A numpy array or scalar as msgpack-numpy's map.

    Raises:
      TypeError, ValueError: neither, or not of plain numbers.
    """
    expect_plain(value)
    found = {b"nd": isinstance(value, np.ndarray), b"type": value.dtype.str}
    shape = {b"kind": b"", b"shape": value.shape} if found[b"nd"] else {}
    return found | shape | {b"data": value.tobytes()}


def revive(found: dict) -> Any:
    """Back; another map is returned as it is.

    Raises:
      ValueError: a malformed array; one of objects, which would be a pickle, is such.
    """
    if b"nd" not in found:
        return found
    if found[b"nd"] is True:
        return make_array(found.get(b"type"), found.get(b"shape"), found.get(b"data"))
    return make_array(plain_dtype(found.get(b"type")).str, [], found.get(b"data"))[()]
