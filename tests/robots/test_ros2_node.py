"""The ROS 2 example against a served policy. ROS itself is not here: its modules are replaced by ones that record."""

import importlib.util
import pathlib
import sys
import time
import types

import numpy as np
import pytest
from fake_policy import FakePolicy
from served import serving

from motus_jax.data.action_space import ACTION_SPACES

REPOSITORY = pathlib.Path(__file__).parents[2]

ABOUT = {
    "server": "fake", "chunk": 4, "action_hz": 10.0, "action_space": "delta", "cameras": ["top", "wrist"],
    "state_dim": 2, "action_dim": 2, "state_names": ["elbow", "gripper"], "action_names": ["elbow", "gripper"],
}  # fmt: skip
NANO = 1_000_000_000


class Message(types.SimpleNamespace):
    """A message whose fields come to be when they are asked for, as those of ROS are there from the beginning."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        value = [] if name in ("points", "joint_names", "positions") else Message()
        setattr(self, name, value)
        return value


class Node:
    """What of `rclpy.node.Node` the example uses."""

    parameters, instances = {}, []

    def __init__(self, name):
        self.subscriptions_, self.published, self.timers_, self.warnings, self.clock = {}, [], [], [], 100 * NANO
        Node.instances.append(self)

    def declare_parameter(self, name, default):
        value = Node.parameters.get(name, default)
        assert type(value) is type(default), "ROS keeps a parameter's type"
        return types.SimpleNamespace(value=value)

    def create_subscription(self, kind, topic, callback, qos):
        self.subscriptions_[topic] = callback

    def create_publisher(self, kind, topic, qos):
        return types.SimpleNamespace(publish=lambda message: self.published.append((topic, message)))

    def create_timer(self, period, callback):
        self.timers_.append((period, callback))

    def get_clock(self):
        return types.SimpleNamespace(now=lambda: types.SimpleNamespace(nanoseconds=self.clock))

    def get_logger(self):
        def warning(line, throttle_duration_sec):
            self.warnings.append(line)

        return types.SimpleNamespace(info=lambda line: None, warning=warning)

    def destroy_node(self):
        self.destroyed = True


MODULES = {
    "rclpy": {"init": lambda args: None, "spin": lambda node: None, "try_shutdown": lambda: None},
    "rclpy.node": {"Node": Node},
    "rclpy.qos": {"qos_profile_sensor_data": object()},
    "builtin_interfaces.msg": {"Duration": Message},
    "sensor_msgs.msg": {"Image": Message, "JointState": Message},
    "std_msgs.msg": {"String": Message},
    "trajectory_msgs.msg": {"JointTrajectory": Message, "JointTrajectoryPoint": Message},
}


@pytest.fixture
def ros2(monkeypatch):
    for name, members in MODULES.items():
        module = types.ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setitem(sys.modules, name.partition(".")[0], sys.modules.get(name.partition(".")[0], module))
    spec = importlib.util.spec_from_file_location("ros2_node", REPOSITORY / "examples" / "ros2_node.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    Node.instances.clear()
    return module


class Robot:
    """A node and what it hears."""

    def __init__(self, ros2, port, **parameters):
        cameras = ["top=/top/image_raw", "wrist=/wrist/image_raw"]
        own = {"server": f"ws://127.0.0.1:{port}", "cameras": cameras, "instruction": "lift", "timeout": 20.0}
        Node.parameters = own | parameters
        self.node = ros2.PolicyNode()
        ((self.period, self.tick),) = self.node.timers_

    def hear(self, state=(1.0, 2.0), cameras=("top", "wrist"), names=("gripper", "other", "elbow")):
        for camera in cameras:
            self.node.subscriptions_[f"/{camera}/image_raw"](picture())
        if state is not None:
            positions = {"elbow": state[0], "gripper": state[1], "other": 9.0}
            message = Message(name=list(names), position=[positions[name] for name in names])
            self.node.subscriptions_["/joint_states"](message)

    def wait(self):
        """For the answer to the question under way."""
        end = time.monotonic() + 20
        while self.node._question is not None and not self.node._question.done():
            assert time.monotonic() < end
            time.sleep(0.005)

    def said(self):
        """Topic, names, stamp in seconds, positions [n, joints] and seconds of what was published last."""
        topic, message = self.node.published[-1]
        stamp = message.header.stamp.sec + message.header.stamp.nanosec / NANO
        after = [point.time_from_start.sec + point.time_from_start.nanosec / NANO for point in message.points]
        return topic, message.joint_names, stamp, np.array([point.positions for point in message.points]), after


def picture(encoding="rgb8", height=2, width=3, padding=1):
    channels = {"mono8": 1, "rgba8": 4, "bgra8": 4}.get(encoding, 3)
    rows = np.arange(height * (width * channels + padding), dtype=np.uint8).reshape(height, -1)
    return Message(encoding=encoding, height=height, width=width, step=rows.shape[1], data=rows.tobytes())


@pytest.fixture
def robot(ros2):
    made, policy = [], FakePolicy()
    policy.metadata = ABOUT
    with serving(policy) as server:

        def make(**parameters):
            made.append(Robot(ros2, server.port, **parameters))
            made[-1].policy, made[-1].server = policy, server
            return made[-1]

        yield make
        for one in made:
            one.node.close()


def test_an_answer_becomes_a_trajectory(robot):
    one = robot(rate=4.0)
    assert one.period == 0.25
    one.hear()
    one.node.clock += NANO // 10
    one.tick()
    one.wait()
    topic, names, stamp, positions, after = one.said()
    assert topic == "/joint_trajectory_controller/joint_trajectory" and names == ["elbow", "gripper"]
    assert stamp == 100.0, "the moment of what the policy saw"
    np.testing.assert_allclose(positions, np.outer(np.arange(4), (1.0, 2.0)))
    np.testing.assert_allclose(after, [0.1, 0.2, 0.3, 0.4])
    assert all(type(value) is float for value in one.node.published[-1][1].points[0].positions)


def test_names_topics_and_steps_are_parameters(robot):
    one = robot(joints=["other", "elbow"], steps=2, trajectory="/arm/trajectory", instruction="")
    one.hear()
    one.tick()
    assert one.node._question is None, "nothing was asked of it yet"
    one.node.subscriptions_["/instruction"](Message(data="lift"))
    one.tick()
    one.wait()
    topic, names, _, positions, _ = one.said()
    assert (topic, names) == ("/arm/trajectory", ["other", "elbow"])
    np.testing.assert_allclose(positions, np.outer(np.arange(2), (9.0, 1.0)))


def test_only_one_question_is_under_way(robot):
    one = robot()
    one.policy.seconds = 0.3
    one.hear()
    for _ in range(5):
        one.tick()
    one.wait()
    assert len(one.policy.batches) == 1
    one.tick()
    one.wait()
    assert len(one.policy.batches) == 2 and len(one.node.published) == 2


def test_holds_once_when_a_camera_falls_silent_and_goes_on_when_it_is_back(robot):
    one = robot(stale=0.5)
    one.tick()
    assert not one.node.published and "top, wrist, state" in one.node.warnings[-1], "nobody knows where it is"
    one.hear()
    one.node.clock += 2 * NANO
    one.hear(state=(0.5, 0.6), cameras=("top",))
    for _ in range(3):
        one.tick()
    assert one.node._question is None and len(one.node.published) == 1
    assert "nothing new of wrist for 0.5 s" in one.node.warnings[-1]
    _, _, stamp, positions, after = one.said()
    np.testing.assert_allclose(positions, [[0.5, 0.6]])
    assert stamp == 102.0 and after == [0.2]
    one.hear()
    one.tick()
    one.wait()
    assert len(one.node.published) == 2 and len(one.said()[3]) == 4


def test_silent_joints_are_not_commanded(robot):
    one = robot()
    one.hear()
    one.node.clock += 2 * NANO
    one.hear(state=None)
    one.tick()
    assert not one.node.published and "nothing new of state" in one.node.warnings[-1]
    one.hear(names=("elbow", "other"), cameras=())
    one.tick()
    assert not one.node.published, "another device's message"


def test_an_answer_to_what_is_long_past_is_not_published(robot):
    one = robot(stale=5.0)
    one.policy.seconds = 0.2
    one.hear()
    one.tick()
    one.node.clock += NANO // 2
    one.wait()
    assert "all of it was over" in one.node.warnings[-1]
    assert len(one.said()[3]) == 1, "it holds"


def test_a_refusing_server_is_told_of(robot):
    one = robot()
    one.hear(state=(float("nan"), 1.0))
    one.tick()
    one.wait()
    assert "not finite" in one.node.warnings[-1]


def test_a_silent_server_is_told_of_and_the_robot_holds(robot):
    one = robot(timeout=0.2)
    one.policy.seconds = 1.0
    one.hear()
    one.tick()
    one.wait()
    assert "no answer within 0.2 s" in one.node.warnings[-1]
    np.testing.assert_allclose(one.said()[3], [[1.0, 2.0]])


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"cameras": ["top=/top", "wrist"]}, "cameras: expected pairs"),
        ({"cameras": ["top=/top"]}, "cameras: expected top, wrist; found top"),
        ({"joints": ["elbow"]}, "joints: expected as many names"),
        ({"steps": 5}, "steps: expected 0 to 4; found 5"),
    ],
)
def test_parameters_that_do_not_fit_the_policy(robot, parameters, words):
    with pytest.raises(ValueError, match=words):
        robot(**parameters)


def test_only_joint_targets_are_published(ros2):
    for space in ACTION_SPACES:
        about = ABOUT | {"action_space": space}
        if space in ros2.JOINT_TARGETS:
            ros2.check(about, {"top": "", "wrist": ""}, ["a", "b"], 0)
        else:
            with pytest.raises(ValueError, match=f"joint targets; found action space '{space}'"):
                ros2.check(about, {"top": "", "wrist": ""}, ["a", "b"], 0)


def test_pictures_of_every_encoding(ros2):
    firsts = {"rgb8": [0, 1, 2], "bgr8": [2, 1, 0], "rgba8": [0, 1, 2], "bgra8": [2, 1, 0], "mono8": [0] * 3}
    for encoding, first in firsts.items():
        found = ros2.to_rgb(picture(encoding))
        assert found.shape == (2, 3, 3) and found.dtype == np.uint8 and found[0, 0].tolist() == first
    second = ros2.to_rgb(picture("rgb8"))[1, 0].tolist()
    assert second == [10, 11, 12], "the padding of a row is left out"
    lying = [Message(**vars(picture()) | change) for change in ({"height": 9}, {"step": 2})]
    for message in (picture("yuv422"), *lying):
        with pytest.raises(ValueError, match="expected"):
            ros2.to_rgb(message)


def test_a_broken_picture_leaves_its_camera_silent(robot):
    one = robot()
    one.hear(cameras=("top",))
    one.node.subscriptions_["/wrist/image_raw"](picture("yuv422"))
    one.tick()
    assert "wrist: expected a picture in rgb8" in one.node.warnings[0]
    assert "nothing new of wrist" in one.node.warnings[1]


def test_the_command_begins_and_ends(ros2, capsys, monkeypatch):
    policy = FakePolicy()
    policy.metadata = ABOUT
    with serving(policy) as server:
        cameras = ["top=/top/image_raw", "wrist=/wrist/image_raw"]
        Node.parameters = {"server": f"ws://127.0.0.1:{server.port}", "cameras": cameras}
        ros2.main()
        assert Node.instances[-1].destroyed
        Node.parameters["cameras"] = ["nose=/nose"]
        with pytest.raises(SystemExit) as stop:
            ros2.main()
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("error: cameras: expected top, wrist; found nose")
