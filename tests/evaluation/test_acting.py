"""Closed loop without a simulator: episodes in processes of their own, a server in this one, everything kept."""

import argparse
import dataclasses
import json
import subprocess
import sys

import av
import fake_robot
import numpy as np
import pytest
import synthetic

from motus_jax import evaluate
from motus_jax.data.texts import Texts
from motus_jax.errors import UserError
from motus_jax.evaluation import acting, acting_flags, acting_names, acting_page, acting_record, acting_setup
from motus_jax.evaluation.acting_setup import Model, Options
from motus_jax.robots import baselines, catalogue
from motus_jax.robots.closed_loop import Actor, Episode, Lateness, Result, Setting, play
from motus_jax.robots.film import Film, frame_times, make_film
from motus_jax.robots.policy import describe
from motus_jax.robots.server.background import serving
from motus_jax.robots.server.websocket import Settings
from motus_jax.robots.workers import Missing, Server, Workers
from motus_jax_client.fusion import FUSIONS
from tests.robots.playing import answered

CONTRACT = dataclasses.replace(synthetic.contract(), robot="fake", state_names=fake_robot.NAMES)
METADATA = describe(CONTRACT, 7)
VLA = Actor("vla", "k", mode="vla")


@pytest.fixture(autouse=True)
def robot(monkeypatch):
    monkeypatch.setattr(catalogue, "MODULES", {"fake": "fake_robot"})


def setting(folder):
    return Setting("fake_robot", CONTRACT, ("top",), execute=2, seconds=1.0, seed=5, folder=folder)


def run_with(guide, asking):
    """What an episode returns, asked in this process."""
    return answered(asking, lambda asked: guide.answer([guide.prepare(asked, 0)])[0], waited=0.5)


def test_an_episode_is_questions_and_what_follows(tmp_path):
    guide, episode = fake_robot.Guide(METADATA), Episode(VLA, "reach", 3)
    result = run_with(guide, episode.start(setting(tmp_path)))
    # Two of four targets, then a look: each leaves a third of the way. 1/27 is near enough.
    assert result.success and result.reward == 1.0 and result.seconds_per_answer == 0.5
    assert result.answers == len(guide.asked) == 3 and result.steps in (5, 6)
    with np.load(tmp_path / "episodes" / "vla_reach_3_k.npz") as file:
        assert file["chunks"].shape == (result.answers, 4, 3)
        assert file["executed"].tolist() == [2, 2, result.steps - 4]
    again, other = fake_robot.Guide(METADATA), fake_robot.Guide(METADATA)
    assert run_with(again, episode.start(setting(tmp_path))) == result
    run_with(other, Episode(VLA, "reach", 4).start(setting(tmp_path)))
    assert again.asked == guide.asked, "the same noise, whatever was played before"
    seeds = [asked["seed"] for asked in guide.asked + other.asked]
    assert len(set(seeds)) == len(seeds)
    assert len({asked["session_id"] for asked in guide.asked}) == result.answers


LATE = {"late, not told": (2, False, False), "told": (2, True, False), "and what may change": (1, True, True)}


@pytest.mark.parametrize("late", LATE.values(), ids=list(LATE))
def test_answers_that_are_late_find_the_robot_further_on(tmp_path, late):
    guide, episode = fake_robot.Guide(METADATA), Episode(Actor("joint", "k", mode="joint"), "reach", 3)
    guide.joint = lambda asked: {"actions": np.full((4, 3), len(guide.asked) / 10, np.float32)}  # 0.1, 0.2, ...
    asks = dataclasses.replace(setting(tmp_path), lateness=Lateness(*late))
    asked = []
    result = answered(episode.start(asks), lambda o: asked.append(o) or guide.answer([guide.prepare(o, 0)])[0], 0.5)
    with np.load(tmp_path / "episodes" / "joint_reach_3_k.npz") as file:
        chunks, executed = file["chunks"][..., 0], file["executed"]
    ticks, told, more = late
    assert (result.steps, executed.tolist()) == (10, [2] * 5)
    assert chunks[0].tolist() == pytest.approx([0.1] * 4), "the first answer is waited for"
    for number in range(1, 5):  # the chunk before goes on until the answer is there
        before, own = number / 10, (number + 1) / 10
        assert chunks[number].tolist() == pytest.approx([before] * ticks + [own] * (4 - ticks))
        np.testing.assert_allclose(asked[number]["state"], chunks[number - 1][1], rtol=1e-6)
        assert ("prefix" in asked[number], "previous" in asked[number]) == (told, more)
        if told:
            np.testing.assert_allclose(asked[number]["prefix"], np.full((ticks, 3), before), rtol=1e-6)
        if more:
            np.testing.assert_allclose(asked[number]["previous"], np.full((1, 3), before), rtol=1e-6)
    assert not {"prefix", "previous"} & asked[0].keys()


def test_late_chunks_may_fade_into_each_other(tmp_path):
    guide, episode = fake_robot.Guide(METADATA), Episode(Actor("joint", "k", mode="joint"), "reach", 3)
    guide.joint = lambda asked: {"actions": np.full((4, 3), len(guide.asked) / 10, np.float32)}
    late = dataclasses.replace(setting(tmp_path), lateness=Lateness(1, fusion="blend"))
    run_with(guide, episode.start(late))
    with np.load(tmp_path / "episodes" / "joint_reach_3_k.npz") as file:
        assert file["chunks"][1, :, 0].tolist() == pytest.approx([0.1, 0.15, 0.2, 0.2])
    assert tuple(FUSIONS) == acting_names.FUSIONS


def test_policies_without_a_model_are_never_late(tmp_path):
    seen = []
    held = Actor("hold_the_state", "k", begin=lambda contract, rng: lambda state: seen.append(state) or state[None])
    late = dataclasses.replace(setting(tmp_path), lateness=Lateness(2))
    assert run_with(None, Episode(held, "reach", 3).start(late)).steps == 10
    assert len(seen) == 10


def test_time_is_up_and_half_of_the_stages_count(tmp_path):
    half = run_with(
        fake_robot.Guide(METADATA), Episode(Actor("joint", "k", mode="joint"), "reach", 3).start(setting(tmp_path))
    )
    assert (half.success, half.reward, half.steps, half.answers) == (False, 0.5, 10, 5)
    held = Actor("hold_the_state", "k", begin=baselines.hold_the_state)
    still = run_with(None, Episode(held, "reach", 3).start(setting(tmp_path)))
    assert (still.reward, still.steps, still.answers, still.seconds_per_answer) == (0.0, 10, 0, 0.0)


@pytest.mark.parametrize("actions", [np.zeros((4, 2)), np.zeros(3), np.zeros((0, 3)), np.full((4, 3), np.nan)], ids=str)
def test_targets_that_are_none_are_refused(tmp_path, actions):
    asking = play(Episode(VLA, "reach", 3), setting(tmp_path))
    next(asking)
    with pytest.raises(UserError, match=r"expected finite targets of shape \[T, 3\]; found \["):
        asking.send({"actions": actions, "waited": 0.0})


def test_policies_without_a_model():
    state, rng = np.float32([0.5, 0.2, 0.1]), np.random.default_rng(0)
    assert (baselines.hold_the_state(CONTRACT, rng)(state) == state).all()
    wander = baselines.random_motion(CONTRACT, rng)(state)
    steps = np.diff(np.concatenate([state[None], wander]), axis=0)
    np.testing.assert_allclose(steps, np.repeat(steps[:1], 4, axis=0), atol=1e-6)
    assert np.abs(steps).max() > 0.01
    mean = baselines.MeanAction(np.float32(np.ones((4, 3))))
    np.testing.assert_allclose(mean(CONTRACT, rng)(state), np.tile(synthetic.SCALE, (4, 1)))
    assert not baselines.states_are_targets(dataclasses.replace(CONTRACT, state_names=("a", "b", "c")))


@pytest.mark.parametrize(
    ("count", "rates", "times"),
    [(4, (10, 5), [2, 4]), (3, (10, 5), [2, 3]), (1, (10, 5), [1]), (2, (10, 10), [1, 2]), (6, (30, 8), [4, 6])],
)
def test_frames_fall_on_actions(count, rates, times):
    assert frame_times(count, *rates) == times


def test_a_film_shows_what_was_executed_beside_what_was_imagined(tmp_path):
    guide, episode = fake_robot.Guide(METADATA), Episode(VLA, "reach", 3)
    result = run_with(guide, episode.start(setting(tmp_path)))
    film = run_with(fake_robot.Guide(METADATA), make_film(Film(episode, "world_model"), setting(tmp_path)))
    with av.open(str(film)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 1 + result.answers, "a frame every 0.2 s, as the contract says"
    left, right = (np.stack(frames)[:, 60:100, x : x + 40].mean(axis=(1, 2, 3)) for x in (20, 130))
    assert abs(left[0] - right[0]) < 8, "both begin with the real picture"
    assert (np.abs(right[1:] - 220) < 8).all()
    assert left[0] + 20 < left[1] < left[2] < left[3] < fake_robot.GREY + 208
    alone = run_with(fake_robot.Guide(METADATA), make_film(Film(episode, ""), setting(tmp_path)))
    with av.open(str(alone)) as container:
        assert container.streams.video[0].width == 96


def test_processes_play_at_once_and_what_goes_wrong_is_told(tmp_path):
    guide, said = fake_robot.Guide(METADATA), []
    with (
        serving(guide, Settings(port=0, max_batch=4, wait=0.2)) as server,
        Workers(1, 4, setting(tmp_path), Server(f"ws://127.0.0.1:{server.port}"), said.append) as workers,
    ):
        found = {episode.seed: result for episode, result in workers.run([Episode(VLA, "reach", n) for n in range(6)])}
        assert sorted(found) == list(range(6)) and all(result.success for result in found.values())
        assert max(guide.batches) > 1, "questions of several episodes are answered by one call"
        alone = run_with(fake_robot.Guide(METADATA), Episode(VLA, "reach", 4).start(setting(tmp_path)))
        assert dataclasses.replace(alone, seconds_per_answer=found[4].seconds_per_answer) == found[4]
        ((_, missing),) = workers.run([Episode(VLA, "dance", 0)])
        assert missing == Missing("KeyError: 'dance'")
        with pytest.raises(UserError, match="mode: expected one of vla, joint, world_model; found plan"):
            list(workers.run([Episode(Actor("plan", "k", mode="plan"), "reach", 0)]))
    assert said == []


@pytest.fixture
def model():
    """Counts how often a server is started."""
    made = []

    def serve():
        made.append(fake_robot.Guide(METADATA))
        return made[-1]

    found = Model(CONTRACT, np.zeros((4, 3), np.float32), {"weights": "w"}, {"candidates": 8}, serve, METADATA)
    return found, made


def test_everything_is_kept_and_goes_on_where_it_stopped(model, tmp_path, monkeypatch):
    model, made = model
    said, marker = [], tmp_path / "dies"
    marker.touch()
    monkeypatch.setenv(fake_robot.DIES_ONCE, str(marker))
    options = Options(
        policies=("vla", "joint", "hold_the_state"), episodes=12, seed=5, workers=2, lanes=2, videos=1
    )  # fmt: skip
    entry = acting.success_rates(model, ("reach", "toil"), options, tmp_path, said.append)
    folder = tmp_path / "closed_loop"

    # One of two processes died with at most two episodes; they are missing, and no failures.
    lost = sum(own["missing"] for own in entry["policies"].values())
    assert 1 <= lost <= 2
    assert any("simulator" in line and "died (exit code 3)" in line for line in said)
    assert len((folder / "results.jsonl").read_text().splitlines()) == 36 - lost

    # The second time only those are played; a line that was cut short is played again, too.
    lines = (folder / "results.jsonl").read_text().splitlines(keepends=True)
    (folder / "results.jsonl").write_text("".join(lines[:-1]) + lines[-1][:20])
    said.clear()
    entry = acting.success_rates(model, ("reach", "toil"), options, tmp_path, said.append)
    assert said[0] == f"closed loop: {35 - lost} of 36 episodes were played before"
    vla = entry["policies"]["vla"]
    assert (vla["successes"], vla["episodes"], vla["missing"], vla["reward"]) == (6, 12, 0, 0.5)
    assert vla["interval"] == pytest.approx([0.2538, 0.7462], abs=1e-4)
    assert "  acts: vla              6 of 12 (25 to 75 %), progress 50 %" in evaluate.summary(
        {"modes": {}, "closed_loop": entry}
    )
    assert vla["tasks"]["reach"]["successes"] == 6 and vla["tasks"]["toil"]["successes"] == 0
    assert vla["beats_baselines"], "6 to 0: 2 * 0.5^6 = 0.031"
    assert not entry["policies"]["joint"]["beats_baselines"] and entry["beats_baselines"] is False
    assert entry["policies"]["joint"]["reward"] == 0.25 and entry["policies"]["hold_the_state"]["reward"] == 0
    assert vla["seconds_per_answer"] > 0 and entry["policies"]["hold_the_state"]["seconds_per_answer"] is None

    # A success and a failure of vla, a failure of joint; the policy without a model is not filmed.
    assert [(film["policy"], film["success"], film["seed"]) for film in entry["videos"]] == [
        ("vla", True, 0), ("vla", False, 1), ("joint", False, 0),
    ]  # fmt: skip
    assert all((tmp_path / film["file"]).is_file() for film in entry["videos"])
    assert json.loads((folder / "results.json").read_text()) == entry
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["starts"][:3] == [
        {"task": "reach", "seed": 0},
        {"task": "toil", "seed": 1},
        {"task": "reach", "seed": 2},
    ]
    assert manifest["contract"] == CONTRACT.to_json() and manifest["versions"]["numpy"] == np.__version__
    assert "api_key" not in json.dumps(manifest) and manifest["policies"]["vla"] != manifest["policies"]["joint"]
    assert manifest["code"] is None or set(manifest["code"]) == {"commit", "changed"}

    # Nothing is left to do: no process, and the file stays as it is. Other weights begin anew, beside the old ones.
    before = (folder / "results.jsonl").read_text()
    monkeypatch.setattr(Workers, "_start", lambda self: pytest.fail("a process was started"))
    assert (
        acting.success_rates(model, ("reach", "toil"), options, tmp_path, said.append)["policies"] == entry["policies"]
    )
    assert (folder / "results.jsonl").read_text() == before
    other = dataclasses.replace(model, facts={"weights": "another"})
    keys = [{a.name: a.key for a in acting_setup.actors_of(m, options, METADATA)} for m in (model, other)]
    assert keys[0]["vla"] != keys[1]["vla"] and keys[0]["hold_the_state"] == keys[1]["hold_the_state"]
    planned = dataclasses.replace(options, policies=("vla", "plan"))
    other = dataclasses.replace(model, planning={"candidates": 9})
    keys = [{a.name: a.key for a in acting_setup.actors_of(m, planned, METADATA)} for m in (model, other)]
    assert keys[0]["vla"] == keys[1]["vla"] and keys[0]["plan"] != keys[1]["plan"]
    assert len(made) == 3


def test_a_policy_without_any_episode_is_no_result(model, tmp_path):
    options = Options(policies=("hold_the_state",), episodes=2, workers=1)
    with pytest.raises(UserError, match="no episode of hold_the_state came to its end: KeyError: 'dance'"):
        acting.success_rates(model[0], ("dance",), options, tmp_path, lambda line: None)
    assert not model[1], "no model acts, so none is served"


def test_a_server_elsewhere_must_be_of_this_checkpoint(model, tmp_path):
    options = Options(policies=("vla",), episodes=1, server="ws://127.0.0.1:9")
    served = {**METADATA, "modes": ["vla"]}
    acting_setup.check_server("U", served, METADATA, ("vla",))
    acting_setup.check_server("U", {**served, "cameras": ["cam_high"]}, METADATA, ("vla",))
    for change, message in (
        ({"chunk": 8}, "--server=U: expected chunk 4, as the checkpoint has; found 8"),
        ({"cameras": []}, "--server=U: expected cameras 1, as the checkpoint has; found 0"),
        ({"step": 8}, "--server=U: expected step 7"),
        ({"robot": None}, "--server=U: expected robot 'fake'"),
        ({"modes": ["joint"]}, "serves vla; found joint: start it with --modes=joint,vla"),
    ):
        with pytest.raises(UserError) as error:
            acting_setup.check_server("U", {**served, **change}, METADATA, ("vla",))
        assert message in str(error.value)
    told = {**served, "prefix": {"method": "hard"}}
    acting_setup.check_server("U", told, METADATA, ("vla",), "hard")
    for found, said in ((told, "hard"), (served, "none")):
        with pytest.raises(UserError, match=f"started with --prefix=guided; found {said}"):
            acting_setup.check_server("U", found, METADATA, ("vla",), "guided")
    with serving(fake_robot.Guide({**METADATA, "chunk": 8}), Settings(port=0, api_key="secret")) as server:
        for key, message in (("", "does not know this api_key"), ("secret", "expected chunk 4")):
            asked = dataclasses.replace(options, server=f"ws://127.0.0.1:{server.port}", api_key=key)
            with pytest.raises(UserError, match=message):
                acting.success_rates(model[0], ("reach",), asked, tmp_path, lambda line: None)
    assert not model[1]


@pytest.mark.parametrize(("successes", "better"), [(0, False), (3, False), (5, False), (6, True), (50, True)])
def test_success_must_not_be_luck(successes, better):
    """Against a policy that never succeeds: 2 * 0.5^5 = 0.0625 could be luck, 2 * 0.5^6 = 0.031 not."""
    own = np.arange(50) < successes
    assert acting.succeeds_more(own, np.zeros(50, bool)) == better
    assert not acting.succeeds_more(np.zeros(50, bool), own)


def test_tasks_are_found_by_their_instructions():
    made = Texts(dataclasses.replace(CONTRACT, instruction_length=16), {})
    tokens = np.stack([made(text)["instruction"] for text in ("go home", "something else")])
    assert acting_setup.simulated_tasks(tokens, CONTRACT, made) == ("reach",)
    assert acting_setup.simulated_tasks(tokens, CONTRACT, made, ("toil",)) == ("toil",)
    with pytest.raises(UserError, match="found none: name some with --tasks"):
        acting_setup.simulated_tasks(tokens[1:], CONTRACT, made)
    with pytest.raises(UserError, match="--tasks: expected some of reach, toil; found 'dance'"):
        acting_setup.simulated_tasks(tokens, CONTRACT, made, ("reach", "dance"))
    with pytest.raises(UserError, match="--closed_loop: expected robot fake; found 'panda'"):
        acting_setup.simulated_tasks(tokens, dataclasses.replace(CONTRACT, robot="panda"), made)


def parsed(*arguments):
    parser = argparse.ArgumentParser()
    acting_flags.define(parser)
    args = parser.parse_args(arguments)
    acting_flags.check(args)
    return args


def test_a_missing_package_is_told_before_anything_is_read():
    asked = "sys.modules['websockets'] = None; sys.argv = ['evaluate', '--workdir=nowhere', '--closed_loop']"
    code = f"import runpy, sys; {asked}; runpy.run_module('motus_jax.evaluate', None, '__main__')"
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True)
    assert done.returncode == 2
    assert done.stderr == "error: --closed_loop needs the package websockets: pip install -e '.[simulator]'\n"


def test_flags():
    assert parsed().policies == acting_names.POLICIES
    args = parsed("--policies=vla, plan", "--tasks=reach", "--candidates=3", "--candidates_of=joint")
    assert (args.policies, args.tasks, args.planning.candidates) == (("vla", "plan"), ("reach",), 3)
    for argument, message in (
        ("--policies=vla,fly", "--policies: expected some of vla, joint, plan, hold_the_state"),
        ("--policies=", "found none"),
        ("--episodes=0", "--episodes: expected at least 1, found 0"),
        ("--lanes=0", "--lanes: expected at least 1, found 0"),
        ("--videos=-1", "--videos: expected at least 0, found -1"),
        ("--candidates=0", "expected 1 to 256 candidates; found 0"),
        ("--prefix=soft", "--prefix: expected one of hard, guided, conditioned; found 'soft'"),
        ("--fusion=mean", "--fusion: expected one of latest, blend, average; found 'mean'"),
        ("--candidates_of=video", "expected candidates of vla or joint; found 'video'"),
    ):
        with pytest.raises(UserError, match=message):
            parsed(argument)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"delay": 3}, "--delay: expected 0 to 2 actions, as the robot looks again after so many; found 3"),
        ({"delay": -1}, "--delay: expected 0 to 2 actions"),
        ({"prefix": "hard"}, "--prefix=hard: expected --delay of at least 1"),
        ({"delay": 2, "prefix": "conditioned"}, "--delay: expected at most 1, as far as the model takes"),
        ({"delay": 1, "prefix": "hard", "policies": ("vla", "plan")}, "hard: expected --policies without plan, which"),
    ],
)
def test_delays_that_cannot_be(change, message):
    acting_setup.check_delay(Options(policies=("vla",), delay=1, prefix="hard"), CONTRACT, 1)
    with pytest.raises(UserError) as error:
        acting_setup.check_delay(Options(**{"policies": ("vla",), **change}), CONTRACT, 1)
    assert message in str(error.value)


def test_late_answers_are_episodes_of_their_own_and_said_on_the_page(model, tmp_path):
    at_once = Options(policies=("joint", "hold_the_state"), episodes=2, videos=0)
    late = dataclasses.replace(at_once, delay=2, fusion="blend")
    entries = [
        acting.success_rates(model[0], ("reach",), options, tmp_path, lambda line: None) for options in (at_once, late)
    ]
    assert entries[0]["delay"] == {"actions": 0, "prefix": "", "fusion": "latest"}
    assert entries[1]["delay"] == {"actions": 2, "prefix": "", "fusion": "blend"}
    played = acting_record.read(tmp_path / acting_record.FOLDER).values()
    assert len({one.key for one in played if one.policy == "joint"}) == 2
    assert len({one.key for one in played if one.policy == "hold_the_state"}) == 1, "it is never late"
    pages = [acting_page.section(entry, tmp_path, tmp_path) for entry in entries]
    assert ["2 actions late" in page and "their blend" in page for page in pages] == [False, True]


def test_processes_and_batches_follow_the_work():
    assert Options(workers=3, lanes=4, episodes=50).processes == 3
    assert Options(workers=3, lanes=4, episodes=5).processes == 2
    assert Options(workers=3, lanes=4, episodes=50).max_batch == 12
    assert Options(workers=64, lanes=4, episodes=500).max_batch == 32
    assert Options(policies=("vla", "mean_action")).modes == ("vla", "world_model")
    assert Options(policies=("vla",), videos=0).modes == ("vla",)
    assert Options(policies=("mean_action",)).modes == ()


def test_lines_of_a_file_that_was_cut_short(tmp_path):
    row = Result("vla", "k", "reach", 1, "reach 0", True, 1.0, 5, 3, 0.1)
    (tmp_path / acting_record.LINES).write_text('{"policy": "vla", "ke')
    for seed in (1, 2):
        acting_record.append(tmp_path, dataclasses.replace(row, seed=seed))
    assert acting_record.read(tmp_path) == {("k", "reach", n): dataclasses.replace(row, seed=n) for n in (1, 2)}
    assert acting_record.read(tmp_path / "none") == {}


def test_the_commit_is_that_of_our_repository_or_none(monkeypatch, tmp_path):
    found = acting_record.commit()
    assert found is None or (len(found["commit"]) == 40 and isinstance(found["changed"], bool))
    monkeypatch.setattr(acting_record, "__file__", str(tmp_path / "a" / "b" / "c.py"))
    assert acting_record.commit() is None


def test_the_page_shows_films_and_old_results(tmp_path):
    rate = {"value": 0.8, "interval": [0.49, 0.943], "successes": 8, "episodes": 10, "reward": 0.9}
    old = {"beats_baselines": True, "tasks": ["push"], "policies": {"this_model": {**rate, "tasks": {"push": rate}}}}
    (tmp_path / "media").mkdir()
    assert "<video" not in acting_page.section(old, tmp_path, tmp_path)
    (tmp_path / "closed_loop").mkdir()
    (tmp_path / "closed_loop" / "a.mp4").write_bytes(b"film")
    film = {"file": "closed_loop/a.mp4", "policy": "plan", "success": True, "seed": 3, "instruction": "go <home>"}
    new = {
        **old, "beats_baselines": None, "videos": [film, {**film, "file": "closed_loop/gone.mp4"}],
        "policies": {"plan": {**rate, "missing": 2, "seconds_per_answer": 0.123, "tasks": {}}},
    }  # fmt: skip
    text = acting_page.section(new, tmp_path, tmp_path)
    assert text.count("<video") == 1 and (tmp_path / "media" / "a.mp4").read_bytes() == b"film"
    assert "plan (best of several), success: “go &lt;home&gt;” (start 3)" in text
    assert "49 % to 94 %, 2 missing" in text and "0.12" in text and "pill" not in text


def test_summary_counts_by_task_and_weighs_answers():
    rows = [
        Result("vla", "k", task, n, "", n == 0, n / 2, 5, answers, seconds)
        for n, (task, answers, seconds) in enumerate([("reach", 1, 1.0), ("toil", 3, 2.0)])
    ]
    found = acting.summarise(rows)
    assert (found["successes"], found["reward"], found["seconds_per_answer"]) == (1, 0.25, 1.75)
    assert found["tasks"]["reach"]["value"] == 1 and found["tasks"]["toil"]["interval"][0] == 0
