"""The launchers for slices, clusters and GPU machines; their gcloud records what it is asked, and fails on demand."""

import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import time

import pytest

REPOSITORY = pathlib.Path(__file__).parents[2]
GCLOUD = r"""#!/bin/bash
# States, ends of the training and answers are taken line by line from files; the last one stays.
echo "$*" >> "$FAKE/calls"
take() {
  local line; line=$(head -1 "$FAKE/$1" 2>/dev/null)
  if [ "$(wc -l < "$FAKE/$1" 2>/dev/null || echo 0)" -gt 1 ]; then sed -i 1d "$FAKE/$1"; fi
  echo "$line"
}
case "$*" in
  *describe*)
    found=$(take states)
    if [ "$found" = NONE ]; then echo "ERROR: NOT_FOUND: no such resource" >&2; exit 1; fi
    if [ "$found" = BROKEN ]; then echo "ERROR: UNAVAILABLE: try again" >&2; exit 1; fi
    echo "$found" ;;
  *"host.sh wait"*) exit "$(take ends)" ;;
  *"host.sh status"*) found=$(take told); if [ "$found" = unreachable ]; then exit 255; fi; echo "$found" ;;
  *"host.sh stopped"*) [ -f "$FAKE/stopped" ] ;;
  *"host.sh install"*) if [ "$(take installs)" = broken ]; then exit 1; fi ;;
esac
"""
GIVEN = ("--name=pod", "--type=v5p-32", "--zone=us-east5-a", "--workdir=gs://bucket/run")


@pytest.fixture
def pod(tmp_path):
    """Runs launch/tpu_pod.sh against the fake; (process, calls of gcloud)."""
    (tmp_path / "bin").mkdir()
    fake = tmp_path / "bin" / "gcloud"
    fake.write_text(GCLOUD)
    fake.chmod(0o755)

    def run(*arguments, **files):
        for name, lines in files.items():
            (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
        environment = os.environ | {"PATH": f"{fake.parent}:{os.environ['PATH']}", "FAKE": str(tmp_path),
                                    "MOTUS_POLL": "0", "TMPDIR": str(tmp_path)}  # fmt: skip
        done = subprocess.run(["launch/tpu_pod.sh", *arguments], cwd=REPOSITORY, env=environment, timeout=60,
                              capture_output=True, text=True)  # fmt: skip
        calls = tmp_path / "calls"
        return done, calls.read_text().splitlines() if calls.exists() else []

    return run


def kinds(calls):
    """What each call was about."""
    names = ("describe", "create", "delete", "scp", "tar xzf", "install", "start", "wait", "status", "stopped", "kill")
    return [next(name for name in names if name in call.replace("host.sh ", "")) for call in calls]


RUN = ["scp", "tar xzf", "install", "start"]


def test_a_slice_is_asked_for_awaited_and_used(pod):
    states = ["NONE", "WAITING_FOR_RESOURCES", "BROKEN", "PROVISIONING", "ACTIVE"]
    cameras = "--config.data.cameras=('front','left wrist')"
    done, calls = pod("experiments/phase2.py", *GIVEN, "--spot", cameras, states=states, ends=["0"])
    assert done.returncode == 0, done.stderr
    assert kinds(calls) == ["describe", "create", *["describe"] * 4, *RUN, "wait"]
    create = calls[1]
    assert "queued-resources create pod --accelerator-type=v5p-32 --runtime-version=v2-alpha-tpuv5 --spot" in create
    assert "--node-id=pod --zone=us-east5-a" in create
    start = re.search(r"--command=(cd motus_jax_pod && launch/host\.sh start.*) --zone", calls[-2])[1]
    assert "--worker=all" in calls[-2] and "--worker=0" in calls[-1]
    assert shlex.split(start)[5:] == [
        ".venv/bin/python", "-m", "motus_jax.train", "--config=experiments/phase2.py", "--workdir=gs://bucket/run",
        cameras,
    ]  # fmt: skip
    assert "pod: WAITING_FOR_RESOURCES" in done.stdout and "trained; the slice is still there" in done.stdout


def test_what_is_copied_is_this_folder_without_what_git_ignores(pod, tmp_path):
    pod("experiments/phase2.py", *GIVEN, states=["ACTIVE"], ends=["0"])
    listed = subprocess.run(["tar", "tzf", tmp_path / "pod.tar.gz"], check=True, capture_output=True, text=True).stdout
    names = listed.splitlines()
    assert {"setup.py", "launch/host.sh", "motus_jax/train.py", "experiments/phase2.py"} <= set(names)
    assert not [name for name in names if name.startswith((".git/", ".venv/", "runs/"))]


def test_a_preempted_slice_is_replaced_and_the_run_goes_on(pod):
    states = ["ACTIVE", "SUSPENDED", "SUSPENDED", "SUSPENDED", "NONE", "ACTIVE"]
    done, calls = pod("experiments/phase2.py", *GIVEN, states=states, ends=["255", "0"], told=["unreachable"])
    assert done.returncode == 0, done.stderr
    after = kinds(calls)[kinds(calls).index("status") :]
    asked = ["describe", "describe", "describe", "delete", "describe", "create", "describe"]
    assert after == ["status", *asked, *RUN, "wait"]
    assert "the slice is gone (SUSPENDED): going on with another" in done.stdout
    assert "delete pod --force --quiet" in next(call for call in calls if "delete" in call)


def test_a_lost_connection_starts_nothing(pod):
    done, calls = pod("experiments/phase2.py", *GIVEN, states=["ACTIVE"], ends=["255", "255", "0"], told=["running"])
    assert done.returncode == 0 and kinds(calls) == ["describe", *RUN, "wait", "status", "wait", "status", "wait"]


@pytest.mark.parametrize(("code", "attempts"), [("2", 1), ("1", 3), ("137", 3)])
def test_bad_input_ends_at_once_and_other_failures_after_some_tries(pod, code, attempts):
    done, calls = pod("experiments/phase2.py", *GIVEN, "--retries=2", states=["ACTIVE"], ends=[code],
                      told=[f"ended with {code}"])  # fmt: skip
    assert done.returncode == int(code) and kinds(calls).count("start") == attempts
    assert kinds(calls).count("kill") == attempts - 1, "no host is left running where it is started again"
    assert ("the training failed 3 times" in done.stderr) == (attempts == 3)


def test_a_failed_installation_is_tried_again(pod):
    done, calls = pod("experiments/phase2.py", *GIVEN, states=["ACTIVE"], ends=["0"], installs=["broken", "fine"])
    assert done.returncode == 0 and kinds(calls).count("start") == 1 and kinds(calls).count("install") == 2


def test_maintenance_goes_on_and_a_stop_that_was_asked_for_does_not(pod, tmp_path):
    ends, told = ["143", "143", "0"], ["ended with 143"]
    done, calls = pod("experiments/phase2.py", *GIVEN, "--retries=0", states=["ACTIVE"], ends=ends, told=told)
    assert done.returncode == 0 and kinds(calls).count("start") == 3
    (tmp_path / "stopped").touch()
    done, _ = pod("experiments/phase2.py", *GIVEN, states=["ACTIVE"], ends=["143"], told=told)
    assert done.returncode == 143 and "stopped, as asked for" in done.stdout


def test_two_slices(pod):
    done, calls = pod("experiments/phase2.py", *GIVEN, "--slices=2", "--setup=gcsfuse data /data",
                      "--config.mesh.replica=2", states=["NONE", "ACTIVE"], ends=["0"])  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "--node-count=2 --node-prefix=pod" in calls[1]
    starts = [call for call in calls if "host.sh start" in call]
    assert sorted(re.search(r"ssh (\S+)", call)[1] for call in starts) == ["pod-0", "pod-1"]
    assert all("install tpu && gcsfuse data /data" in call for call in calls if "host.sh install" in call)
    assert re.search(r"ssh (\S+) --worker=0", calls[-1])[1] == "pod-0"


def test_a_dry_run_prints_all_and_runs_nothing(pod):
    done, calls = pod("experiments/phase2.py", *GIVEN, "--project=mine", "--dry_run")
    assert done.returncode == 0 and not calls
    lines = [line for line in done.stdout.splitlines() if line.startswith("+ gcloud compute tpus")]
    assert kinds(lines) == ["create", *RUN, "wait"] and all("--project=mine" in line for line in lines)


def test_other_commands(pod):
    assert pod("logs", *GIVEN, ends=["0"])[0].returncode == 0
    done, calls = pod("status", *GIVEN, states=["ACTIVE"], told=["running"])
    assert "pod: ACTIVE\nrunning" in done.stdout
    done, calls = pod("delete", *GIVEN)
    assert "queued-resources delete pod --force --quiet" in calls[-1]
    done, calls = pod("stop", *GIVEN)
    assert "--worker=all --command=cd motus_jax_pod && launch/host.sh stop" in calls[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("experiments/none.py", *GIVEN), "an experiment file, e.g. experiments/phase2.py; found no experiments/none"),
        (("experiments/phase2.py", *GIVEN[1:]), "--name is missing"),
        (("experiments/phase2.py", *GIVEN[:3]), "--workdir: expected a place that all hosts see, gs://BUCKET/RUN"),
        (("experiments/phase2.py", *GIVEN, "--slices=two"), "--slices: expected a number from 1, found two"),
        (("experiments/phase2.py", *GIVEN, "--type=gpu"), "--runtime is missing: none is known for gpu"),
        (("experiments/phase2.py", *GIVEN, "config.x=1"), "unknown argument config.x=1"),
    ],
)  # fmt: skip
def test_bad_arguments(pod, arguments, message):
    done, calls = pod(*arguments)
    assert done.returncode == 2 and not calls
    assert done.stderr.startswith("error: ") and message in done.stderr and done.stderr.count("\n") == 1


@pytest.fixture
def host(tmp_path):
    """Runs launch/host.sh in a folder of its own."""
    (tmp_path / "launch").mkdir()
    shutil.copy(REPOSITORY / "launch" / "host.sh", tmp_path / "launch")

    def run(*arguments, **environment):
        done = subprocess.run(["launch/host.sh", *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=60,
                              env=os.environ | {"MOTUS_POLL": "0.1"} | environment)  # fmt: skip
        return done.returncode, done.stdout.strip()

    yield run
    run("kill", MOTUS_GRACE="0")


SAVES = """
import os, signal, sys, time
print("hosts", os.environ["MOTUS_HOSTS"], sys.argv[1:], flush=True)
signal.signal(signal.SIGTERM, lambda *_: (print("saving", flush=True), sys.exit(143)))
time.sleep(60)
"""


def test_a_host_starts_once_tells_and_stops(host):
    assert host("status") == (0, "nothing")
    code, said = host("start", sys.executable, "-c", SAVES, "a b", "('c',)")
    assert code == 0 and said.startswith("started")
    assert host("status") == (0, "running") and "is running already" in host("start", "false")[1]
    assert host("stopped")[0] == 1
    time.sleep(1)  # until it has its handler
    assert host("stop") == (0, "told to stop")
    code, log = host("wait")
    assert code == 143 and log == "hosts auto ['a b', \"('c',)\"]\nsaving"
    assert host("status") == (0, "ended with 143") and host("stopped")[0] == 0
    assert host("start", "sh", "-c", "exit 7")[0] == 0 and host("stopped")[0] == 1
    assert host("wait")[0] == 7


def test_a_host_that_does_not_listen_is_killed(host, tmp_path):
    host("start", sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)")
    time.sleep(1)
    assert host("kill", MOTUS_GRACE="1") == (0, "ended with 137")
    pid = (tmp_path / "run.pid").read_text().strip()
    listed = subprocess.run(["ps", "-A", "-o", "pgid=,stat="], check=True, capture_output=True, text=True).stdout
    left = [state for group, state in map(str.split, listed.splitlines()) if group == pid]
    assert not [state for state in left if not state.startswith("Z")]  # dead ones may wait to be reaped


def dry(*arguments, **environment):
    done = subprocess.run(arguments, cwd=REPOSITORY, capture_output=True, text=True, env=os.environ | environment)
    return done.returncode, done.stdout.splitlines(), done.stderr


def test_gpu_machines():
    given = ("launch/gpu_node.sh", "experiments/phase3.py", "--workdir=runs/x", "--config.steps=7", "--dry_run")
    code, (install, train), _ = dry(*given)
    assert code == 0 and install == "+ launch/host.sh install cuda12"
    words = shlex.split(train)
    assert words[-1] == "--config.steps=7" and "--config.platform=gpu" in words and "JAX_" not in train
    assert any(word.startswith("XLA_FLAGS=--xla_gpu_enable_latency_hiding_scheduler=true") for word in words)
    _, (_, train), _ = dry(*given, "--nodes=4", "--node=3", "--coordinator=a:1")
    assert "JAX_COORDINATOR_ADDRESS=a:1 JAX_NUM_PROCESSES=4 JAX_PROCESS_ID=3" in train
    assert "MOTUS_HOSTS=auto" in dry(*given, SLURM_NTASKS="2")[1][1]
    assert dry(*given, "--nodes=4")[2] == "error: --nodes=4: expected --node=K and --coordinator=HOST:PORT too\n"
    error = dry(*given, "--nodes=4", "--node=4", "--coordinator=a:1")[2]
    assert error.startswith("error: --node: expected a number below 4")


def test_kubernetes():
    given = ("launch/xpk.sh", "experiments/phase2.py", "--name=x", "--cluster=c", "--type=v6e-16", "--dry_run")
    code, (line,), _ = dry(*given, "--workdir=gs://b/r", "--zone=z", "--config.mesh.replica=2", "--slices=2")
    words = shlex.split(line)
    assert code == 0 and words[1:4] == ["xpk", "workload", "create"] and {"--num-slices=2", "--zone=z"} <= set(words)
    command = next(word for word in words if word.startswith("--command="))
    expected = "-m motus_jax.train --config=experiments/phase2.py --workdir=gs://b/r --config.mesh.replica=2"
    assert command.endswith(expected)
    assert dry(*given)[0] == 2


@pytest.mark.skipif(not (pathlib.Path(sys.executable).parent / "shellcheck").exists(), reason="no shellcheck")
def test_the_shell_is_clean():
    files = [*sorted((REPOSITORY / "launch").glob("*.sh")), REPOSITORY / ".ci" / "run"]
    command = [pathlib.Path(sys.executable).parent / "shellcheck", "-x", *files]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
