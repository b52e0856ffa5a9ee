"""The protocols beside openpi's: their own clients where there are some, bytes written out where there are none."""

import asyncio
import dataclasses
import io

import msgpack
import numpy as np
import pytest
from PIL import Image
from served import Client, http_get, serving
from speakers import (
    ABOUT,
    CAMERAS,
    OBSERVATION,
    OneArm,
    VlaEvalFrames,
    Xpl,
    for_roboarena,
    for_vla_eval,
    for_xpolicylab,
    frame_of,
    serving_one_arm,
)  # fmt: skip
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from motus_jax.errors import UserError
from motus_jax.robots.server import codec, xpolicylab
from motus_jax.robots.server.protocols import PROTOCOLS, get_protocol
from motus_jax.robots.server.websocket import FAULT


def ask_openpi(port, observation):
    with Client(port) as client:
        return client.send(codec.pack(observation))["actions"]


def ask_roboarena(port, observation):
    with Client(port) as client:
        return client.send(codec.pack(for_roboarena(observation)))


def ask_xpolicylab(port, observation):
    with Xpl(port) as client:
        actions = client.infer(for_xpolicylab(observation))["payload"]["actions"]
    return np.stack([np.concatenate([action["arm_joint_state"], action["ee_joint_state"]]) for action in actions])


def ask_vla_eval(port, observation, chunk=8):
    with VlaEvalFrames(port) as client:
        asked = for_vla_eval(observation)
        return np.stack([client.ask("observation", asked)["payload"]["actions"] for _ in range(chunk)])


ASK = {"openpi": ask_openpi, "roboarena": ask_roboarena, "xpolicylab": ask_xpolicylab, "vla_eval": ask_vla_eval}


@pytest.fixture(scope="module")
def one_arm(loaded):
    """The real policy, of a robot with seven joints and a gripper."""
    from motus_jax.data.contract import Affine, Contract
    from motus_jax.robots.policy import Policy

    contract = Contract.from_json(loaded.contracts["data"])
    numbers = Affine(contract.state.offset[:8], contract.state.scale[:8])
    contract = dataclasses.replace(contract, state=numbers, action=numbers)
    loaded = dataclasses.replace(loaded, contracts={"data": contract.to_json()})
    names = dict(zip(contract.cameras, CAMERAS, strict=True))
    return Policy(loaded, modes=("vla",), max_batch=1, camera_names=names)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_same_observation_gets_the_same_bytes_over_every_protocol(one_arm, protocol):
    expected = one_arm.infer(OBSERVATION)["actions"]
    assert expected.shape == (8, 8) and expected.dtype == np.float32
    with serving(one_arm, protocol=protocol) as server:
        found = ASK[protocol](server.port, OBSERVATION)
    assert found.dtype == np.float32 and found.tobytes() == expected.tobytes()


def test_two_arms_over_xpolicylab_and_vla_eval(policy, observation):
    expected, state = policy.infer(observation)["actions"], observation["state"]
    parts = ("left_arm_joint_state", "left_ee_joint_state", "right_arm_joint_state", "right_ee_joint_state")
    named = dict(zip(parts, np.split(state, [6, 7, 13]), strict=True))
    with serving(policy, protocol="xpolicylab") as server, Xpl(server.port) as client:
        actions = client.infer(for_xpolicylab(observation) | {"state": named})["payload"]["actions"]
        assert np.stack([np.concatenate([action[part] for part in parts]) for action in actions]).tobytes() == (
            expected.tobytes()
        )
    with serving(policy, protocol="vla_eval") as server, VlaEvalFrames(server.port) as client:
        asked = {"images": observation["images"], "task_description": observation["prompt"], "joint_state": state}
        found = [client.ask("observation", asked)["payload"]["actions"] for _ in expected]
        assert np.stack(found).tobytes() == expected.tobytes()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_key_limits_and_draining_are_the_same(protocol):
    with serving(OneArm(), protocol=protocol, api_key="sesame", max_bytes=10_000) as server:
        address = f"ws://127.0.0.1:{server.port}"
        with pytest.raises(InvalidStatus, match="401"), connect(address):
            pass
        headers = {"Authorization": "Api-Key sesame"}
        with connect(address, additional_headers=headers) as large, pytest.raises(ConnectionClosed) as closed:
            large.send(b"\0" * 20_000)
            while True:
                large.recv(timeout=10)
        assert closed.value.rcvd.code == 1009
        client = connect(address, additional_headers=headers).__enter__()
    with client, pytest.raises(ConnectionClosed) as closed:
        while True:
            client.recv(timeout=10)
    assert closed.value.rcvd.code == 1001


def test_unknown_protocols_and_modes_without_actions_are_refused():
    with pytest.raises(
        UserError, match="--protocol: expected one of openpi, vla_eval, roboarena, xpolicylab; found 'ros'"
    ):
        get_protocol("ros")
    for name in ("vla_eval", "roboarena", "xpolicylab"):
        with pytest.raises(UserError, match=f"--protocol={name}: expected a mode that returns actions; found video"):
            PROTOCOLS[name](ABOUT | {"mode": "video"})


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_changed_and_cut_frames_are_refused_in_one_line(protocol):
    rng, good = np.random.default_rng(0), frame_of(protocol)
    dialect, refused = PROTOCOLS[protocol](ABOUT), 0
    assert dialect.turn(dialect.read(good)).observation["prompt"] == OBSERVATION["prompt"]
    places = [place for place in range(len(good)) if good[place] or place % 500 == 0]  # few in the pictures
    for _ in range(2000):
        frame, message = bytearray(good), None
        for place in rng.choice(places, rng.integers(1, 4)):
            frame[place] = rng.integers(256)
        try:
            message = dialect.read(bytes(frame[: rng.integers(len(frame))] if rng.random() < 0.1 else frame))
            dialect.turn(message)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error) and len(dialect.error(message, "message", str(error))) < 1000
    assert refused > 200


# vla-eval


def test_vla_eval_own_client_plays_episodes():
    connection = pytest.importorskip("vla_eval.connection")

    async def play(port):
        async with connection.Connection(f"ws://127.0.0.1:{port}", max_retries=1) as client:
            chunks = []
            for _ in range(2):
                await client.start_episode({"task": {"name": "lift"}})
                chunks.append([(await client.act(for_vla_eval(OBSERVATION)))["actions"] for _ in range(6)])
                await client.end_episode({"metrics": {"success": True}})
            with pytest.raises(RuntimeError, match=r"state: expected \[8\] numbers"):
                await client.start_episode({})
                await client.act({"images": {}})
            assert (await client.act(for_vla_eval(OBSERVATION)))["actions"].shape == (8,)
            return client.server_info, chunks

    with serving_one_arm("vla_eval") as (server, policy):
        about, chunks = asyncio.run(play(server.port))
    assert about["protocol_version"] == 1
    assert about["observation_params"] == {"send_state": True, "send_wrist_image": True}
    for chunk in chunks:
        np.testing.assert_array_equal(np.stack(chunk)[:, 0], [0, 1, 2, 3, 0, 1])
    assert len(policy.batches) == 5, "an episode begins with a new chunk"
    for name, image in OBSERVATION["images"].items():
        np.testing.assert_array_equal(policy.seen[0]["images"][name], image)


def test_vla_eval_own_runner_and_a_benchmark():
    """As the harness evaluates; the benchmark draws nothing between the policy's questions, as RoboTwin's can."""
    benchmarks, runners = (
        pytest.importorskip(f"vla_eval.{name}") for name in ("benchmarks.base", "runners.sync_runner")
    )
    connection = pytest.importorskip("vla_eval.connection")

    class Counting(benchmarks.StepBenchmark):
        def get_tasks(self):
            return [{"name": "count"}]

        def reset(self, task):
            self.taken = []
            return 0

        def step(self, action):
            self.taken.append(action["actions"])
            return benchmarks.StepResult(len(self.taken), 0.0, len(self.taken) == 10, {})

        def make_obs(self, raw_obs, task):
            seen = raw_obs % 4 == 0
            return for_vla_eval(OBSERVATION) if seen else {"task_description": OBSERVATION["prompt"]}

        def get_step_result(self, step_result):
            return {"success": step_result.done}

        def get_metadata(self):
            return {"max_steps": 20}

    async def evaluate(port):
        benchmark = Counting()
        async with connection.Connection(f"ws://127.0.0.1:{port}", max_retries=1) as client:
            result = await runners.SyncEpisodeRunner().run_episode(benchmark, {"name": "count"}, client, max_steps=20)
        return benchmark.taken, result

    with serving_one_arm("vla_eval") as (server, policy):
        taken, result = asyncio.run(evaluate(server.port))
    assert result["metrics"] == {"success": True} and result["steps"] == 10
    np.testing.assert_array_equal(np.stack(taken)[:, 0], [0, 1, 2, 3, 0, 1, 2, 3, 0, 1])
    assert len(policy.batches) == 3


def test_vla_eval_pages():
    with serving_one_arm("vla_eval") as (server, _):
        assert http_get(server.port, "/health") == (200, "application/json", '{"status": "ok"}\n')
        assert http_get(server.port, "/healthz")[0] == 200


def png(width, height):
    stream = io.BytesIO()
    Image.new("L", (width, height)).save(stream, "PNG")
    return {"__image__": True, "format": "png", "data": stream.getvalue(), "shape": [height, width]}


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("text", "expected a binary frame"),
        (b"\xc1", "expected msgpack"),
        ([1], "expected a map"),
        ({"type": "hello"}, "payload, seq, timestamp missing"),
        ({"type": "dance", "payload": {}, "seq": 1, "timestamp": 0}, "type: expected one of hello"),
        ({"type": np.zeros(3), "payload": {}, "seq": 1, "timestamp": 0}, "type: expected text"),
        ({"type": "hello", "payload": {}, "seq": [1], "timestamp": 0}, "seq: expected a whole number"),
        ({"type": "observation", "payload": [], "seq": 1, "timestamp": 0}, "payload: expected a map"),
        ({"type": "observation", "payload": png(5000, 5000), "seq": 1, "timestamp": 0}, "expected compressed pictures"),
        (
            {"type": "observation", "payload": png(9, 9) | {"data": b"x"}, "seq": 1, "timestamp": 0},
            "neither PNG nor JPEG",
        ),
        (
            {"type": "observation", "payload": {"__ndarray__": True, "dtype": "O"}, "seq": 1, "timestamp": 0},
            "dtype 'O'",
        ),
    ],
)
def test_vla_eval_bad_messages(message, words):
    with serving_one_arm("vla_eval") as (server, _), VlaEvalFrames(server.port) as client:
        client.send(message)
        reply = client.receive()
        assert reply["type"] == "error" and words in reply["payload"]["error"]
        assert client.ask("observation", for_vla_eval(OBSERVATION))["type"] == "action"


# RoboArena


def test_roboarena_says_what_it_wants_and_resets():
    with serving_one_arm("roboarena") as (server, policy), Client(server.port) as client:
        assert client.metadata == {
            "image_resolution": None, "needs_wrist_camera": True, "n_external_cameras": 2,
            "needs_stereo_camera": False, "needs_session_id": True, "action_space": "joint_position",
        }  # fmt: skip
        asked = codec.pack(for_roboarena(OBSERVATION))
        assert client.send(asked).shape == (4, 8)
        assert client.send(codec.pack({"endpoint": "reset", "session_id": "s"})) == "reset successful"
        assert client.send(codec.pack(for_roboarena(OBSERVATION) | {"session_id": np.ones(1, np.int32)})).shape == (
            4,
            8,
        )
    assert [request["session_id"] for request in policy.seen] == ["s", 1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"endpoint": "dance"}, "endpoint: expected infer or reset"),
        ({"endpoint": np.zeros(2)}, "endpoint: expected text"),
        ({"observation/joint_position": None}, "observation/joint_position: expected a list of numbers"),
        ({"observation/gripper_position": np.zeros(2)}, "state: expected [8] numbers"),
        ({"session_id": np.zeros(2)}, "session_id: expected"),
    ],
)
def test_roboarena_bad_messages(change, words):
    with serving_one_arm("roboarena") as (server, _), Client(server.port) as client:
        reply = client.send(codec.pack(for_roboarena(OBSERVATION) | change))
        assert isinstance(reply, str) and words in reply
        assert client.send(codec.pack(for_roboarena(OBSERVATION))).shape == (4, 8)


def test_roboarena_has_one_arm_and_its_own_cameras():
    def config(**change):
        return codec.unpack(PROTOCOLS["roboarena"](ABOUT | change).greeting())

    poses = config(state_dim=7, action_dim=7, cameras=["exterior_image_0_left", "exterior_image_0_right"])
    assert poses["action_space"] == "cartesian_position" and poses["needs_stereo_camera"]
    assert not poses["needs_wrist_camera"] and poses["n_external_cameras"] == 1
    for change, words in (
        ({"action_dim": 14}, "found state_dim 8|found action_dim 14"),
        ({"cameras": ["top"]}, "see --cameras; found 'top'"),
        ({"cameras": ["exterior_image_2_left"]}, "found 'exterior_image_2_left'"),
    ):
        with pytest.raises(UserError, match=words):
            config(**change)


# XPolicyLab


def test_xpolicylab_a_trial():
    with serving_one_arm("xpolicylab") as (server, policy), Xpl(server.port) as client:
        hello = client.ask("hello")
        assert hello["message_type"] == "hello_ack" and hello["payload"]["ok"] is True
        assert (hello["message_id"], hello["evaluation_id"], hello["trial_id"], hello["step"]) == ("m1", "e", "t", 3)
        for kind, reply in (("prepare_case", "prepare_case_ack"), ("heartbeat", "heartbeat_ack")):
            assert client.ask(kind)["message_type"] == reply
        for _ in range(2):
            assert client.ask("reset", {"trial_id": "t"})["message_type"] == "reset_result"
            result = client.infer(for_xpolicylab(OBSERVATION))
            assert result["message_type"] == "infer_result" and result["payload"]["latency_ms"] > 0
            assert len(result["payload"]["actions"]) == 4
            widths = {name: value.shape for name, value in result["payload"]["actions"][0].items()}
            assert widths == {"arm_joint_state": (7,), "ee_joint_state": (1,)}
        assert client.ask("trial_end", {"success": True})["message_type"] == "trial_end_ack"
        client.send({"message_type": "close", "message_id": "x", "evaluation_id": "e"})
        with pytest.raises(ConnectionClosed) as closed:
            client.socket.recv(timeout=10)
        assert closed.value.rcvd.code == 1000
    np.testing.assert_array_equal(policy.seen[0]["state"], OBSERVATION["state"])


def test_xpolicylab_newer_clients_call_methods():
    with serving_one_arm("xpolicylab") as (server, _), Xpl(server.port) as client:
        early = client.ask("call", {"func_name": "get_action"})
        assert early["payload"]["code"] == "invalid_frame" and "update_obs before" in early["payload"]["message"]
        updated = client.ask("call", {"func_name": "update_obs", "obs": for_xpolicylab(OBSERVATION)})
        assert updated["message_type"] == "call_result" and updated["payload"] == {"ok": True}
        result = client.ask("call", {"func_name": "get_action"})["payload"]
        assert result["ok"] is True and len(result["result"]) == 4


@pytest.mark.parametrize(
    ("message", "code", "words"),
    [
        ("text", "invalid_frame", "expected a binary frame"),
        (b"\xc1", "invalid_frame", "expected msgpack"),
        ({"message_type": "infer"}, "invalid_frame", "message_id is missing"),
        ({"message_type": "infer", "message_id": [[1]], "evaluation_id": "e"}, "invalid_frame", "message_id: expected"),
        ({"message_type": "dance", "message_id": "1", "evaluation_id": "e"}, "unknown_message_type", "'dance'"),
        ({"message_type": [1], "message_id": "1", "evaluation_id": "e"}, "unknown_message_type", "expected text"),
        (
            {"message_type": "infer", "message_id": "1", "evaluation_id": "e"},
            "invalid_frame",
            "observation: expected a map",
        ),
        (
            {"message_type": "infer", "message_id": "1", "evaluation_id": "e", "payload": {"observation": {}}},
            "invalid_frame",
            "arm_joint_state: expected a list of numbers",
        ),
        (
            {"message_type": "call", "message_id": "1", "evaluation_id": "e", "payload": {"func_name": "quit"}},
            "invalid_frame",
            "func_name: expected update_obs or get_action; found 'quit'",
        ),
        (
            {"message_type": "hello", "message_id": "1", "evaluation_id": "e", "payload": {b"nd": True, b"type": "|O"}},
            "invalid_frame",
            "dtype '|O'",
        ),
    ],
)
def test_xpolicylab_bad_messages(message, code, words):
    with serving_one_arm("xpolicylab") as (server, _), Xpl(server.port) as client:
        client.send(message)
        reply = client.receive()
        assert reply["message_type"] == "error" and reply["payload"]["code"] == code
        assert words in reply["payload"]["message"]
        assert client.infer(for_xpolicylab(OBSERVATION))["message_type"] == "infer_result"


def test_xpolicylab_refusals_and_faults():
    with serving_one_arm("xpolicylab") as (server, _), Xpl(server.port) as client:
        wide = for_xpolicylab(OBSERVATION | {"state": np.zeros(9)})
        refused = client.infer(wide)["payload"]
        assert refused["code"] == "infer_failed" and "state: expected [8]" in refused["message"]
        fault = client.infer(for_xpolicylab(OBSERVATION | {"state": np.full(8, -1)}))["payload"]
        assert (fault["code"], fault["message"]) == ("internal", FAULT)
        with pytest.raises(ConnectionClosed) as closed:
            client.socket.recv(timeout=10)
        assert closed.value.rcvd.code == 1011


def test_xpolicylab_arrays_are_those_of_msgpack_numpy():
    theirs = pytest.importorskip("msgpack_numpy")
    values = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.int64(3), "c": [1, "x", None]}
    ours = codec.pack(values, xpolicylab.as_map)
    assert ours == msgpack.packb(values, default=theirs.encode)
    found = codec.unpack(ours, xpolicylab.revive)
    np.testing.assert_array_equal(found["a"], values["a"])
    assert found["b"] == 3 and found["b"].dtype == np.int64


def test_xpolicylab_parts_of_robots():
    left, right = ((f"{side}_arm_joint_state", 6) for side in ("left", "right"))
    grippers = [(f"{side}_ee_joint_state", 1) for side in ("left", "right")]
    assert xpolicylab.parts("action_dim", 14, False) == (left, grippers[0], right, grippers[1])
    assert [name for name, _ in xpolicylab.parts("action_dim", 16, True)][::2] == ["left_ee_pose", "right_ee_pose"]
    for dims, pose in ((9, False), (14, True)):
        with pytest.raises(UserError, match=f"--protocol=xpolicylab: expected one or two arms.*action_dim {dims}"):
            xpolicylab.parts("action_dim", dims, pose)
