"""A robot with one arm, and the simplest clients of the protocols beside openpi's."""

import contextlib

import msgpack
import numpy as np
from fake_policy import FakePolicy
from served import serving
from websockets.sync.client import connect

from motus_jax.errors import UserError
from motus_jax.robots.server import codec, vla_eval, xpolicylab

CAMERAS = ("exterior_image_0_left", "exterior_image_1_left", "wrist_image_left")
ABOUT = {
    "mode": "vla",
    "returns": {"vla": ["actions"], "video": ["video"]},
    "cameras": list(CAMERAS),
    "state_dim": 8,
    "action_dim": 8,
    "action_space": "absolute",
}


class OneArm(FakePolicy):
    """The fake policy as a robot of seven joints and a gripper: twice its state, in a chunk of four; -1 is a fault."""

    def __init__(self):
        super().__init__()
        self.metadata, self.seen = ABOUT, []

    def prepare(self, observation, draw):
        self.seen.append(observation)
        state = observation.get("state")
        if np.shape(state) != (8,):
            raise UserError(f"state: expected [8] numbers; found {np.shape(state)}")
        mode = "broken" if state[0] == -1 else "vla"
        return super().prepare({"state": np.asarray(state)[:2], "mode": mode}, draw)

    def _answer(self, request):
        return super()._answer(request) | {"actions": np.outer(np.arange(4), np.ones(8)).astype(np.float32)}


class Frames:
    """A client of `protocol` that sends and receives its maps."""

    def __init__(self, port, revive, as_map):
        self._context = connect(f"ws://127.0.0.1:{port}", compression=None, max_size=None)
        self.socket, self._revive, self._as_map = self._context.__enter__(), revive, as_map

    def receive(self):
        return msgpack.unpackb(self.socket.recv(timeout=20), object_hook=self._revive)

    def send(self, message):
        self.socket.send(message if isinstance(message, bytes | str) else codec.pack(message, self._as_map))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._context.__exit__(None, None, None)


class Xpl(Frames):
    """As XPolicyLab's client."""

    def __init__(self, port):
        super().__init__(port, xpolicylab.revive, xpolicylab.as_map)
        self._sent = 0

    def ask(self, kind, payload=None, **more):
        self._sent += 1
        message = {
            "message_type": kind, "message_id": f"m{self._sent}", "evaluation_id": "e", "action_case_id": None,
            "trial_id": "t", "repeat_index": None, "step": 3, "sent_at": "2026-07-22T00:00:00+00:00",
            "payload": payload or {},
        }  # fmt: skip
        self.send(message | more)
        reply = self.receive()
        assert set(reply) == set(message)
        return reply

    def infer(self, observation):
        return self.ask("infer", {"observation": observation})


class VlaEvalFrames(Frames):
    """As vla-eval's client."""

    def __init__(self, port):
        super().__init__(port, vla_eval._Pictures().revive, vla_eval.as_map)

    def ask(self, kind, payload, seq=5):
        self.send({"type": kind, "payload": payload, "seq": seq, "timestamp": 0.0})
        return self.receive()


def for_xpolicylab(observation):
    state = observation["state"]
    vision = {name: {"color": image, "depth": None} for name, image in observation["images"].items()}
    parts = {"arm_joint_state": state[:7], "ee_joint_state": state[7:], "ee_pose": np.zeros(7)}
    return {
        "instruction": observation["prompt"],
        "vision": vision,
        "state": parts,
        "additional_info": {"frequency": 30},
    }


def for_roboarena(observation):
    images = {f"observation/{name}": image for name, image in observation["images"].items()}
    state = {"joint_position": observation["state"][:7], "gripper_position": observation["state"][7:]}
    state |= {"cartesian_position": np.zeros(6)}
    named = {f"observation/{name}": value for name, value in state.items()}
    return {"endpoint": "infer", "prompt": observation["prompt"], "session_id": "s", **images, **named}


def for_vla_eval(observation):
    return {"images": observation["images"], "states": observation["state"], "task_description": observation["prompt"]}


OBSERVATION = {
    "prompt": "lift the cube",
    "state": np.linspace(0, 1, 8, dtype=np.float32),
    "images": {name: np.full((24, 32, 3), 10 * number, np.uint8) for number, name in enumerate(CAMERAS)},
}


def frame_of(protocol, observation=None):
    """A good message of a protocol."""
    asked = OBSERVATION if observation is None else observation
    envelope = {"message_type": "infer", "message_id": "1", "evaluation_id": "e"}
    return {
        "openpi": lambda: codec.pack(asked),
        "roboarena": lambda: codec.pack(for_roboarena(asked)),
        "xpolicylab": lambda: codec.pack(
            envelope | {"payload": {"observation": for_xpolicylab(asked)}}, xpolicylab.as_map
        ),
        "vla_eval": lambda: codec.pack(
            {"type": "observation", "payload": for_vla_eval(asked), "seq": 1, "timestamp": 0.0}, vla_eval.as_map
        ),
    }[protocol]()


@contextlib.contextmanager
def serving_one_arm(protocol):
    policy = OneArm()
    with serving(policy, protocol=protocol) as server:
        yield server, policy
