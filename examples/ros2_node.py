"""A ROS 2 node that shows a policy server what the robot sees and publishes what it answers as a joint trajectory.

  pip install ./motus_jax_client           for the Python of ROS 2: no JAX is needed here
  python3 examples/ros2_node.py --ros-args -p server:=ws://gpu-machine:8000 -p instruction:="lift the cube" \\
      -p cameras:='["top=/top/image_raw", "left_wrist=/left/image_raw", "right_wrist=/right/image_raw"]'

Parameters (`--ros-args -p name:=value`, or a file of parameters):

  server, api_key_file    where `python -m motus_jax.serve` listens; a file with its key, if it asks for one
  timeout                 seconds within which it must answer
  cameras                 CAMERA=TOPIC pairs (sensor_msgs/Image; rgb8, bgr8, rgba8, bgra8 or mono8)
  joint_states            topic (sensor_msgs/JointState)
  joints                  names in that message, in the order of the policy's state; empty: the policy's own names
  instruction             what to do; what arrives on `instruction_topic` (std_msgs/String) takes its place
  trajectory              topic to publish on (trajectory_msgs/JointTrajectory)
  rate                    questions a second; one at a time, a slower server is asked less often
  steps                   actions of a chunk that are published; 0 is all
  stale                   seconds after which a picture or a joint state is too old to act on

Numbers with a point in their default (rate, timeout, stale) are given with one: `-p rate:=5.0`.

The questions are asked in a thread, so that messages arrive meanwhile. A trajectory is stamped with the moment of the
oldest thing that the policy saw, and its points lie `1 / action_hz` apart from there: a controller that follows the
stamp, as ros2_control's does, leaves out what is over when the answer comes.

When a camera or the server falls silent the robot is told to hold where it measures itself; when its joint states do,
nothing is published, and what was published runs out by itself. Grippers are published among the joints, in the
policy's units (0 closed, 1 open). Only policies that answer with joint targets are served here.
"""

import pathlib
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import rclpy
from builtin_interfaces.msg import Duration
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from motus_jax_client import Client, ConnectionLost, Refused

CHANNELS = {"rgb8": (0, 1, 2), "bgr8": (2, 1, 0), "rgba8": (0, 1, 2), "bgra8": (2, 1, 0), "mono8": (0, 0, 0)}
"""Where red, green and blue lie among a pixel's bytes."""
WIDTHS = {"rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4, "mono8": 1}
JOINT_TARGETS = ("absolute", "delta")
"""Action spaces whose answers are joint targets (`motus_jax.data.action_space`)."""
NANO = 1_000_000_000
HOLD_SECONDS = 0.2
"""In which the robot comes to rest where it is told to hold."""
WARN_SECONDS = 2.0
"""Between two warnings."""


class PolicyNode(Node):
    """Listens, asks and publishes.

    Raises:
      ValueError: a parameter that is malformed, or does not fit the policy.
      ConnectionLost, Refused: the server cannot be reached within 30 s, or does not know the key.
    """

    def __init__(self) -> None:
        super().__init__("motus_policy")
        key = self._get("api_key_file", "")
        api_key = pathlib.Path(key).read_text().strip() if key else ""
        server, timeout = self._get("server", "ws://127.0.0.1:8000"), self._get("timeout", 2.0)
        with Client(server, api_key) as patient:  # it may still compile
            self._about = patient.metadata
        self._client = Client(server, api_key, patience=timeout, timeout=timeout)
        cameras = pairs(self._get("cameras", ["top=/top/image_raw"]))
        self._joints = list(self._get("joints", [""]))
        self._joints = [name for name in self._joints if name] or list(self._about["state_names"])
        self._steps = self._get("steps", 0)
        self._stale = int(self._get("stale", 0.5) * NANO)
        check(self._about, cameras, self._joints, self._steps)

        self._instruction = self._get("instruction", "")
        self._seen: dict[str, tuple[int, np.ndarray]] = {}
        self._holds, self._speaking = False, threading.Lock()
        self._thread, self._question = ThreadPoolExecutor(1, thread_name_prefix="policy"), None
        for camera, topic in cameras.items():
            self.create_subscription(Image, topic, self._picture_taker(camera), qos_profile_sensor_data)
        self._cameras = list(cameras)
        joint_states = self._get("joint_states", "/joint_states")
        self.create_subscription(JointState, joint_states, self._take_state, qos_profile_sensor_data)
        self.create_subscription(String, self._get("instruction_topic", "/instruction"), self._take_instruction, 1)
        topic = self._get("trajectory", "/joint_trajectory_controller/joint_trajectory")
        self._publisher = self.create_publisher(JointTrajectory, topic, 1)
        self.create_timer(1 / self._get("rate", 2.0), self.tick)
        self.get_logger().info(f"asks for {self._about['chunk']} actions at {self._about['action_hz']:g} Hz")

    def _get(self, name, default):
        return self.declare_parameter(name, default).value

    def _picture_taker(self, camera):
        def take(message):
            try:
                self._seen[camera] = (self._now(), to_rgb(message))
            except ValueError as error:
                self._warn(f"{camera}: {error}")

        return take

    def _take_state(self, message):
        places = {name: place for place, name in enumerate(message.name)}
        if all(name in places for name in self._joints):  # a driver may publish arms and grippers in messages apart
            positions = [message.position[places[name]] for name in self._joints]
            self._seen["state"] = (self._now(), np.asarray(positions, np.float32))

    def _take_instruction(self, message):
        self._instruction = message.data

    def tick(self) -> None:
        """Asks, unless a question is under way; or holds, where something is missing or too old."""
        if self._question is not None and self._question.done():
            self._question.result()  # a fault in the thread is a fault of the node
            self._question = None
        late = self._late()
        if late:
            self._warn(f"nothing new of {', '.join(late)} for {self._stale / NANO:g} s")
            self._hold()
        elif self._question is None and self._instruction:
            self._question = self._thread.submit(self._ask, dict(self._seen), self._instruction)

    def _late(self):
        now, wanted = self._now(), (*self._cameras, "state")
        return [name for name in wanted if name not in self._seen or now - self._seen[name][0] > self._stale]

    def _ask(self, seen, instruction):
        """In the thread."""
        images = {camera: seen[camera][1] for camera in self._cameras}
        observed = min(moment for moment, _ in seen.values())
        try:
            answer = self._client.infer({"prompt": instruction, "state": seen["state"][1], "images": images})
        except (ConnectionLost, Refused) as error:
            self._warn(str(error))
            self._hold()
            return
        actions = answer["actions"][: self._steps or None]
        period = 1 / self._about["action_hz"]
        if self._now() - observed >= len(actions) * period * NANO:
            self._warn("the answer came when all of it was over")
            self._hold()
            return
        with self._speaking:
            if not self._late():
                self._publish(actions, period * np.arange(1, 1 + len(actions)), observed)
                self._holds = False

    def _hold(self):
        """Tells the robot to stay where it measures itself: once, and only if that is known."""
        with self._speaking:
            now = self._now()
            moment, state = self._seen.get("state", (0, None))
            if not self._holds and state is not None and now - moment <= self._stale:
                self._publish(state[None], [HOLD_SECONDS], now)
                self._holds = True

    def _publish(self, positions, seconds, nanoseconds):
        """Positions [n, joints], each so many seconds after the moment."""
        message = JointTrajectory()
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(nanoseconds, NANO)
        message.joint_names = list(self._joints)
        for row, after in zip(positions, seconds):
            point = JointTrajectoryPoint()
            point.positions = [float(value) for value in row]
            whole, rest = divmod(round(float(after) * NANO), NANO)
            point.time_from_start = Duration(sec=whole, nanosec=rest)
            message.points.append(point)
        self._publisher.publish(message)

    def _now(self):
        return self.get_clock().now().nanoseconds

    def _warn(self, line):
        self.get_logger().warning(line, throttle_duration_sec=WARN_SECONDS)

    def close(self) -> None:
        """Waits for the question under way and ends the connection."""
        self._thread.shutdown(wait=True)
        self._client.close()


def pairs(entries) -> dict[str, str]:
    """NAME=TOPIC entries as a table.

    Raises:
      ValueError: an entry without a name or a topic.
    """
    found = dict(entry.partition("=")[::2] for entry in entries)
    if not all((*found, *found.values())):
        raise ValueError(f"cameras: expected pairs as top=/top/image_raw; found {list(entries)}")
    return found


def check(about, cameras, joints, steps) -> None:
    """Compares the parameters with what the server says of its policy.

    Raises:
      ValueError: they do not fit.
    """
    if about["action_space"] not in JOINT_TARGETS:
        raise ValueError(f"server: expected a policy of joint targets; found action space {about['action_space']!r}")
    if set(cameras) != set(about["cameras"]):
        raise ValueError(f"cameras: expected {', '.join(about['cameras'])}; found {', '.join(cameras)}")
    if not len(joints) == about["state_dim"] == about["action_dim"]:
        dims = f"{about['state_dim']} states, {about['action_dim']} actions"
        raise ValueError(f"joints: expected as many names as the policy has numbers ({dims}); found {len(joints)}")
    if not 0 <= steps <= about["chunk"]:
        raise ValueError(f"steps: expected 0 to {about['chunk']}; found {steps}")


def to_rgb(message) -> np.ndarray:
    """A picture's message as uint8 [h, w, 3], rows' padding left out.

    Raises:
      ValueError: an encoding that is not known here, or fewer bytes than it says.
    """
    if message.encoding not in CHANNELS:
        raise ValueError(f"expected a picture in {', '.join(CHANNELS)}; found {message.encoding!r}")
    width, data = WIDTHS[message.encoding], np.frombuffer(bytes(message.data), np.uint8)
    if message.step < message.width * width or data.size < message.height * message.step:
        raise ValueError(f"expected {message.height} rows of {message.width} pixels; found {data.size} bytes")
    rows = data[: message.height * message.step].reshape(message.height, message.step)[:, : message.width * width]
    return np.ascontiguousarray(rows.reshape(message.height, message.width, width)[..., CHANNELS[message.encoding]])


def main() -> None:
    """Runs until it is interrupted; exits with 2 and one line where it cannot begin."""
    rclpy.init(args=sys.argv)
    try:
        node = PolicyNode()
    except (ValueError, OSError, Refused) as error:
        print(f"error: {error}", file=sys.stderr)
        rclpy.try_shutdown()
        sys.exit(2)
    try:
        rclpy.spin(node)
    except KeyboardInterrupt:
        pass
    finally:
        node.close()
        node.destroy_node()
        rclpy.try_shutdown()


if __name__ == "__main__":
    main()
