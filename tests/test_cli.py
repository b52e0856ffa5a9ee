"""The commands as a user meets them: help with an example, one line on bad input, and a run from training to report."""

import json
import pathlib
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from absl import flags
from websockets.sync.client import connect

from motus_jax import cli, convert, evaluate, sample, serve, train, view
from motus_jax.data import __main__ as data
from motus_jax.evaluation import report
from motus_jax.robots.policy import Policy
from motus_jax.robots.server import codec, xpolicylab

REPOSITORY = pathlib.Path(__file__).parents[1]
sys.path.append(str(REPOSITORY))  # experiments import each other by the name of their folder
sys.path.append(str(REPOSITORY / "tests" / "data"))
import lerobot_fixture  # noqa: E402

SHORT = ["--config.steps=2", "--config.validate_every=0", "--config.optimizer.schedule.warmup=1"]
SHORT += ["--config.optimizer.name=adamw"]  # less to compile than Muon
DEBUG = f"--config={REPOSITORY / 'experiments' / 'debug.py'}"
MAINS = {
    "train": train.main,
    "sample": sample.main,
    "view": view.main,
    "evaluate": evaluate.main,
    "serve": serve.main,
    "convert": convert.main,
    "data": data.main,
    "evaluation.report": report.main,
}


def run(command, *arguments):
    """The command's exit code, in this process; its flags are forgotten afterwards, so that it can run again."""
    before, argv = set(flags.FLAGS), sys.argv
    name, *subcommand = command.split()
    sys.argv = [name, *subcommand, *map(str, arguments)]
    try:
        cli.run(MAINS[name], sys.argv)
    except SystemExit as stop:
        return stop.code
    finally:
        sys.argv = argv
        for flag in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, flag)
    return 0


@pytest.fixture
def refuses(capsys):
    """Runs a command that must fail with one line that holds all the words, after nothing but progress."""

    def refused(command, *arguments, words):
        capsys.readouterr()
        code = run(command, *arguments)
        *before, line = capsys.readouterr().err.splitlines()
        assert code == 2 and line.startswith("error: ")
        assert not [other for other in before if "rror" in other or "Traceback" in other]
        assert [word for word in words if word not in line] == [], line

    return refused


@pytest.mark.parametrize(
    "command", [*MAINS, *(f"data {name}" for name in ("bench", "inspect", "statistics", "encode", "record"))]
)
def test_help_has_an_example(command, capsys):
    assert run(command, "--help") == 0
    out = capsys.readouterr().out
    example = f"python -m motus_jax.{command} "
    assert any(line.strip().startswith(example) and "--" in line for line in out.splitlines()), out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config.optimizer.schedule.paek=1"], ["unknown config key", "paek", "peak"]),
        (["--config.not_a_key=1"], ["unknown config key", "not_a_key"]),
        (["--config.steps=many"], ["config.steps", "many"]),
        (["--config.mode=dance"], ["unknown mode 'dance'", "world_model", "unified"]),
        (["--config.mode=vla:much"], ["config.mode", "vla:much"]),
        (["--config.platform=abacus"], ["config.platform", "abacus", "cpu"]),
        (["--config.data.path=nowhere"], ["nowhere", "LeRobot dataset"]),
        (["--config.data.action_dim=7"], ["action", "7", "14"]),
        (["--config.model.variant=huge"], ["unknown model variant 'huge'", "demo"]),
        (["vla"], ["unexpected argument 'vla'"]),
    ],
    ids=lambda value: value[0] if value[0].startswith("-") else "",
)
def test_train_refuses(refuses, tiny, tmp_path, arguments, words):
    workdir = tmp_path / "run"
    path = [f"--config.data.path={tiny}"]
    refuses("train", DEBUG, f"--workdir={workdir}", *path, *arguments, words=words)
    assert not list(workdir.glob("checkpoints/*")), "nothing that looks like a run is left behind"


def test_train_names_a_missing_flag(refuses, tmp_path):
    refuses("train", DEBUG, words=["--workdir is missing"])
    refuses("train", f"--workdir={tmp_path / 'run'}", words=["--config is missing"])
    refuses("train", f"--workdir={tmp_path / 'run'}", "--config=nothing.py", words=["nothing.py"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("command", "arguments", "words"),
    [
        ("sample", ["--mode=dance", "--out={out}"], ["unknown mode 'dance'", "inverse_dynamics"]),
        ("sample", ["--out={out}"], ["no checkpoint", "motus_jax.train"]),
        ("view", ["--out={out}"], ["no checkpoint", "motus_jax.train"]),
        ("view", [], ["--out is missing", "view.html", "--rerun"]),
        ("view", ["--modes=vla,dance", "--out={out}"], ["unknown mode 'dance'"]),
        ("view", ["--every=0", "--out={out}"], ["--every", "at least 1"]),
        ("evaluate", ["--out={out}"], ["no checkpoint", "motus_jax.train"]),
        ("evaluate", ["--modes=dance", "--out={out}"], ["unknown mode 'dance'"]),
        ("evaluation.report", [], ["metrics.json", "motus_jax.evaluate"]),
        ("serve", [], ["no checkpoint", "motus_jax.train"]),
        ("serve", ["--mode=dance"], ["unknown mode 'dance'"]),
        ("serve", ["--modes=vla,dance"], ["unknown mode 'dance'"]),
        ("serve", ["--protocol=ros"], ["--protocol", "openpi, vla_eval, roboarena, xpolicylab", "'ros'"]),
        ("serve", ["--port=70000"], ["port", "70000", "65535"]),
        ("serve", ["--max_batch=0"], ["max_batch", "0"]),
        ("serve", ["--api_key_file={out}"], ["--api_key_file", "expected a file with a key"]),
        ("serve", ["vla"], ["unexpected argument 'vla'"]),
    ],
)
def test_commands_refuse_an_empty_workdir_and_unknown_modes(refuses, tmp_path, command, arguments, words):
    (tmp_path / "run").mkdir()
    filled = [argument.format(out=tmp_path / "out") for argument in arguments]
    refuses(command, f"--workdir={tmp_path / 'run'}", *filled, words=words)
    assert [path.name for path in tmp_path.rglob("*")] == ["run"]


def test_serve_names_what_is_missing_or_no_key(refuses, tmp_path):
    refuses("serve", words=["--workdir is missing"])
    for text in ("", "two words"):
        (tmp_path / "key").write_text(text)
        arguments = (f"--workdir={tmp_path}", f"--api_key_file={tmp_path / 'key'}")
        refuses("serve", *arguments, words=["--api_key_file", "one key on one line", f"{len(text.split())} words"])


def test_convert_names_the_missing_golden_file(refuses, tmp_path):
    arguments = (f"--golden={tmp_path}", f"--config={tmp_path / 'config.json'}")
    refuses("convert verify", *arguments, words=["config.json does not exist", "--golden"])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A dataset of four training and two held-out episodes."""
    lengths, splits = (30, 32, 26, 24, 28, 26), {"train": "0:4", "test": "4:6"}
    return lerobot_fixture.write(tmp_path_factory.mktemp("tiny") / "set", lengths=lengths, splits=splits)


@pytest.fixture(scope="module")
def workdir(tiny, tmp_path_factory):
    """Two steps of the debug experiment in every mode at once."""
    workdir = tmp_path_factory.mktemp("run") / "debug"
    assert run("train", DEBUG, f"--workdir={workdir}", f"--config.data.path={tiny}", *SHORT) == 0
    return workdir


def test_sample_writes_pictures_and_arrays_in_robot_units(workdir, tiny, tmp_path, capsys):
    assert run("sample", f"--workdir={workdir}", "--mode=joint", "--episode=1", "--frame=3", f"--out={tmp_path}") == 0
    ends = [".npz", ".mp4", ".png", "_actions.png"]
    files = [tmp_path / f"joint_test_episode1_frame3{end}" for end in ends]
    assert capsys.readouterr().out.split() == [str(file) for file in files]
    assert all(file.stat().st_size > 500 for file in files)
    arrays = np.load(files[0])
    assert arrays["video"].shape == arrays["real_video"].shape == (5, 112, 96, 3)
    assert arrays["actions"].shape == (8, 14) and np.isfinite(arrays["actions"]).all()
    np.testing.assert_array_equal(arrays["video"][0], arrays["real_video"][0])
    real = [[lerobot_fixture.value(5, 4 + step, dim) for dim in range(14)] for step in range(8)]
    np.testing.assert_allclose(arrays["real_actions"], real, rtol=1e-5)


@pytest.mark.thorough
def test_view_writes_a_page_of_an_episode(workdir, refuses, tmp_path, capsys):
    page = tmp_path / "new" / "view.html"
    command = (f"--workdir={workdir}", "--modes=vla,world_model", "--every=8", f"--out={page}")
    refuses("view", *command, "--episode=2", words=["episode 2", "'test'", "0 to 1"])
    assert not page.parent.exists()
    assert run("view", *command, "--episode=1") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("vla: 4 chunks, ") and lines[1].startswith("world_model: 4 chunks, ")
    assert "test episode 1" in page.read_text()


def test_evaluate_and_report(workdir, tmp_path, capsys):
    copy = shutil.copytree(workdir, tmp_path / "debug")
    assert run("evaluate", f"--workdir={copy}", "--modes=vla", "--chunks=16", "--batch_size=16") == 0
    found = json.loads((copy / "metrics.json").read_text())
    assert found["modes"].keys() == {"vla"} and found["facts"]["step"] == 2
    assert "vla" in capsys.readouterr().out
    assert run("evaluation.report", f"--workdir={copy}") == 0
    assert "Act (VLA)" in (copy / "report" / "index.html").read_text()


def test_training_again_says_that_it_is_done(workdir, tiny, capsys):
    assert run("train", DEBUG, f"--workdir={workdir}", f"--config.data.path={tiny}", *SHORT) == 0
    assert "trained to step 2 of 2: nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--episode=2"], ["episode 2", "'test'", "0 to 1"]),
        (["--frame=26", "--episode=1"], ["frame 26", "0 to 25"]),
        (["--split=holiday"], ["'holiday'", "train, test"]),
        (["--step=7"], ["step 7", "found steps"]),
        (["--solver=guess"], ["unknown solver 'guess'", "heun"]),
        (["--video_steps=0"], ["video_steps", "at least 1"]),
    ],
)
def test_sample_refuses(refuses, workdir, tmp_path, arguments, words):
    refuses("sample", f"--workdir={workdir}", "--mode=joint", *arguments, f"--out={tmp_path / 'out'}", words=words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--step=7"], ["step 7", "found steps"]),
        (["--modes=joint", "--mode=vla"], ["mode", "expected one of joint", "'vla'"]),
        (["--max_batch=1000"], ["max_batch", "1 to 256", "1000"]),
        (["--source=nobody"], ["'nobody'"]),
        (["--cameras=top"], ["--cameras", "top=cam_high"]),
        (["--cameras=nose=cam_high"], ["camera_names", "left_wrist", "'nose'"]),
        (["--modes=vla", "--solver=guess"], ["unknown solver 'guess'", "heun"]),
    ],
)
def test_serve_refuses(refuses, workdir, arguments, words):
    refuses("serve", f"--workdir={workdir}", *arguments, words=words)


OBSERVATION = {
    "prompt": "lift the cube",
    "state": np.linspace(0, 1, 14),
    "images": {name: np.full((*size, 3), 99, np.uint8) for name, size in lerobot_fixture.CAMERAS.items()},
}


@pytest.mark.thorough
def test_serve_answers_a_robot_and_stops_on_sigterm(workdir, tmp_path):
    """A fresh process from a trained run: what it answers is what the run's policy answers."""
    (tmp_path / "key").write_text("sesame\n")
    command = [sys.executable, "-m", "motus_jax.serve", f"--workdir={workdir}", "--port=0", "--modes=vla,joint"]
    command += [f"--api_key_file={tmp_path / 'key'}", "--max_batch=1"]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    try:
        lines = [next(process.stdout)]
        while not lines[-1].startswith("ready on ws://127.0.0.1:"):
            lines.append(next(process.stdout))
        assert lines[0] == f"checkpoint of step 2 in {workdir}\n"
        compiled = [line.partition(":")[0] for line in lines[1:-2]]
        assert compiled == ["vla, batch 1", "joint, batch 1", "joint with video, batch 1"]
        key = {"Authorization": "Api-Key sesame"}
        with connect(lines[-1].split()[-1], compression=None, max_size=None, additional_headers=key) as robot:
            assert codec.unpack(robot.recv(timeout=20))["modes"] == ["vla", "joint"]
            answers = []
            for more in ({}, {"mode": "joint", "return_video": True}):
                robot.send(codec.pack(OBSERVATION | more))
                answers.append(codec.unpack(robot.recv(timeout=20)))
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
    policy = Policy.load(workdir, modes=("vla",), max_batch=1)
    np.testing.assert_allclose(answers[0]["actions"], policy.infer(OBSERVATION)["actions"], atol=1e-5)
    assert answers[1]["video"].shape == (5, 112, 96, 3) and answers[1]["actions"].shape == (8, 14)


@pytest.mark.thorough
def test_serve_speaks_another_protocol(workdir):
    command = [sys.executable, "-m", "motus_jax.serve", f"--workdir={workdir}", "--port=0", "--protocol=xpolicylab"]
    command += ["--modes=vla", "--max_batch=1", "--cameras=top=cam_head"]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    try:
        address = next(line.split()[-1] for line in process.stdout if line.startswith("ready on"))
        names = ("left_arm_joint_state", "left_ee_joint_state", "right_arm_joint_state", "right_ee_joint_state")
        state = dict(zip(names, np.split(OBSERVATION["state"], [6, 7, 13]), strict=True))
        seen = {name.replace("top", "cam_head"): {"color": image} for name, image in OBSERVATION["images"].items()}
        observation = {"instruction": OBSERVATION["prompt"], "vision": seen, "state": state}
        request = {"message_type": "infer", "message_id": "1", "evaluation_id": "e"}
        with connect(address, compression=None, max_size=None) as robot:
            robot.send(codec.pack(request | {"payload": {"observation": observation}}, xpolicylab.as_map))
            reply = codec.unpack(robot.recv(timeout=20), xpolicylab.revive)
        assert reply["message_type"] == "infer_result", reply["payload"]
        assert len(reply["payload"]["actions"]) == 8 and set(reply["payload"]["actions"][0]) == set(names)
    finally:
        process.kill()
        process.wait()


def test_sample_refuses_data_that_break_the_contract_or_are_broken(refuses, workdir, tiny, tmp_path):
    def refused(dataset, *words):
        command = (f"--workdir={workdir}", f"--dataset={dataset}", "--mode=world_model", f"--out={tmp_path / 'out'}")
        refuses("sample", *command, words=words)

    wide = lerobot_fixture.write(tmp_path / "wide", lengths=(24, 24), dim=15)
    refused(wide, "15", "14")
    one_camera = lerobot_fixture.write(tmp_path / "one", lengths=(24, 24), cameras={"top": (72, 96)})
    refused(one_camera, "left_wrist", "top")
    broken = pathlib.Path(shutil.copytree(tiny, tmp_path / "broken"))
    (video,) = (broken / "videos" / "observation.images.top").rglob("*.mp4")
    video.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    refused(broken, str(video))
    video.unlink()
    refused(broken, str(video))
    assert not (tmp_path / "out").exists()


def test_python_dash_m_ends_with_2_and_without_a_traceback(tmp_path):
    command = [sys.executable, "-m", "motus_jax.train", "--config=experiments/debug.py", "--config.mode=dance"]
    command += [f"--workdir={tmp_path / 'run'}"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: unknown mode 'dance'")
