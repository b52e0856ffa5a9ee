"""The runner with a clock and a thread that are not real: which target is commanded when, and what is sent."""

import itertools

import numpy as np
import pytest
from fake_policy import FakePolicy
from served import STATE, serving

from motus_jax_client import Client, Refused, Runner
from motus_jax_client.fusion import FUSIONS, Plan
from motus_jax_client.runner import Clock

HZ, CHUNK = 10.0, 8


class FakeClock(Clock):
    time = 100.0

    def now(self):
        return self.time

    def sleep_until(self, moment):
        self.time = max(self.time, moment)


class FakeThread:
    """Answers a question at once, but shows the answer, and the time within, only after a delay in ticks."""

    def __init__(self, clock, delays):
        self.clock, self.delays = clock, itertools.chain(delays, itertools.repeat(delays[-1]))

    def submit(self, function, *arguments):
        asked = self.clock.time
        self.clock.time = ready = asked + next(self.delays) / HZ
        result = function(*arguments)
        self.clock.time = asked
        return FakeFuture(self.clock, ready, result)


class FakeFuture:
    def __init__(self, clock, ready, value):
        self.clock, self.ready, self.value = clock, ready, value

    def done(self):
        return self.clock.time >= self.ready - 1e-9

    def result(self):
        assert self.done()
        return self.value


class FakeRobot:
    """Knows the tick; its policy answers with the tick of each action and with the number of the answer."""

    def __init__(self, delays, prefix=None, chunk=CHUNK, observing=(0.0,), **how):
        self.metadata = {"action_hz": HZ, "chunk": chunk} | ({"prefix": prefix} if prefix else {})
        self.chunk, self.questions, self.commanded = chunk, [], {}
        self.clock = FakeClock()
        self.observing = itertools.chain(observing, itertools.repeat(0.0))
        thread = FakeThread(self.clock, delays)
        self.runner = Runner(self, self.observe, self.act, clock=self.clock, executor=thread, **how)
        self.begins = self.clock.time

    @property
    def tick(self):
        return round((self.clock.time - self.begins) * HZ, 6)

    def observe(self):
        found = {"tick": int(self.tick)}
        self.clock.time += next(self.observing) / HZ
        return found

    def act(self, target):
        self.commanded[int(self.tick)] = target.copy()

    def infer(self, observation):
        self.questions.append(observation)
        ticks = observation["tick"] + np.arange(self.chunk)
        actions = np.stack([ticks, np.full(self.chunk, len(self.questions))], axis=1).astype(np.float32)
        given = observation.get("prefix", actions[:0])
        actions[: len(given)] = given
        return {"actions": actions}

    def run(self, ticks):
        self.runner.run(seconds=ticks / HZ)
        return self.runner.statistics()


@pytest.mark.parametrize("delay", [0.2, 1, 1.5, 3, 3.9])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_no_stall_and_nothing_out_of_place(delay, fusion):
    """The first chunk begins when it is there, as the robot stood still; all others at their observation's tick."""
    robot = FakeRobot([delay], fusion=fusion)
    found = robot.run(40)
    first = int(np.ceil(delay))
    assert list(robot.commanded) == list(range(first, 40)), "from the first answer on a target every tick"
    assert (found["stalls"], found["late"]) == (0, 0)
    assert found["delay_p50"] == found["delay_p95"] == pytest.approx(delay / HZ)
    assert found["answers"] == len(robot.questions) - 1
    assert [question["tick"] for question in robot.questions] == list(range(0, 40, first))
    commanded = np.array([robot.commanded[tick] for tick in range(first, 40)])
    np.testing.assert_array_equal(commanded[:first, 0], np.arange(first), "the first chunk's own")
    if fusion == "latest":
        np.testing.assert_array_equal(commanded[first:, 0], np.arange(2 * first, 40))
        expected = 2 + np.arange(40 - 2 * first) // first
        np.testing.assert_array_equal(commanded[first:, 1], expected, "each answer as soon as it is there")


def test_stalls_are_counted_and_the_robot_goes_on():
    """A chunk of 4 that takes 6 ticks: past when it comes, unless the robot has stood still since it was asked for."""
    robot = FakeRobot([6], chunk=4)
    assert robot.run(30)["stalls"] == 16
    values = [robot.commanded[tick].tolist() for tick in range(6, 30)]
    held, moving = [[3.0, 1.0]] * 8, [[float(tick), 1.0] for tick in range(4)]
    assert values[:12] == moving + held
    assert values[12:16] == [[12.0 + i, 3.0] for i in range(4)] and values[16:] == [[15.0, 3.0]] * 8


def test_a_slow_answer_stalls_once():
    robot = FakeRobot([2, 2, 2, 11, 2])
    found = robot.run(40)
    # Asked at tick 6, there at 17, all of it past; the plan of tick 4 ended with tick 11. The next is there at 19.
    assert found["stalls"] == 7
    np.testing.assert_array_equal(robot.commanded[14], robot.commanded[11])
    assert [robot.commanded[tick][0] for tick in (11, 19, 20)] == [11, 17, 18]


PREFIX = {"method": "guided", "longest": 7, "previous": True}


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("delays", [[2], [3], [2, 3, 1, 2, 3, 2, 1]], ids=str)
def test_what_is_sent_as_prefix_is_executed(delays, fusion):
    robot = FakeRobot(delays, prefix=PREFIX, fusion=fusion, quantile=1.0)
    assert robot.run(60)["stalls"] == 0
    sent = [question for question in robot.questions if "prefix" in question]
    assert len(sent) == len(robot.questions) - 1, "all but the first"
    for question in sent[2:-3]:  # from where the longest delay was seen
        tick, prefix = question["tick"], question["prefix"]
        assert len(prefix) == max(delays) and prefix.dtype == np.float32
        commanded = np.stack([robot.commanded[tick + i] for i in range(len(prefix))])
        np.testing.assert_array_equal(commanded, prefix)
        assert len(prefix) + len(question.get("previous", [])) <= CHUNK
        if len(delays) == 1 and fusion == "latest":
            assert robot.commanded[tick + len(prefix)][0] == tick + len(prefix)
            np.testing.assert_array_equal(question["previous"][:, 0], tick + np.arange(len(prefix), CHUNK - delays[0]))


def test_prefixes_are_sent_only_where_they_are_taken_and_no_longer():
    assert not any(question.keys() - {"tick"} for question in questions([3]))
    hard = questions([3], PREFIX | {"previous": False, "longest": 2})
    assert {len(question["prefix"]) for question in hard[1:]} == {2}
    assert not any("previous" in question for question in hard)


def questions(delays, prefix=None, **how):
    robot = FakeRobot(delays, prefix=prefix, **how)
    robot.run(max(30, sum(delays)))
    return robot.questions


def test_a_prefix_beyond_the_plan_is_what_is_held():
    robot = FakeRobot([5, 5, 2], prefix=PREFIX)
    robot.run(12)
    question = robot.questions[2]
    assert question["tick"] == 10 and len(question["prefix"]) == 5
    np.testing.assert_array_equal(question["prefix"][:, 0], [10, 11, 12, 12, 12])
    assert "previous" not in question


def test_the_expected_delay_is_a_high_quantile_of_recent_ones():
    delays = [1] * 10 + [4] + [1] * 80
    lengths = [len(question["prefix"]) for question in questions(delays, PREFIX)[1:]]
    assert lengths[:80] == [1] * 10 + [4] * 10 + [1] * 60, "one of 11 to 20 is more than a twentieth"
    lengths = [len(question["prefix"]) for question in questions(delays, PREFIX, quantile=1.0)[1:]]
    assert lengths[:80] == [1] * 10 + [4] * 50 + [1] * 20, "fifty are remembered"


def test_ticks_that_are_missed_are_counted_and_shift_nothing():
    robot = FakeRobot([1], observing=[0, 0, 0, 2.5])
    found = robot.run(20)
    # Asked at tick 3, observed until 5.5: ticks 4 and 5 are due by then, and one of them is skipped.
    assert found["late"] == 1 and 4 not in robot.commanded
    assert all(target[0] == tick for tick, target in robot.commanded.items() if tick > 6)


def test_every_so_many_ticks():
    robot = FakeRobot([1], every=3)
    robot.run(20)
    assert [question["tick"] for question in robot.questions] == [0, 3, 6, 9, 12, 15, 18]


def test_another_episode_begins_anew_and_knows_the_delays():
    robot = FakeRobot([2], prefix=PREFIX)
    robot.run(20)
    count, robot.begins = len(robot.questions), robot.clock.time
    robot.commanded.clear()
    robot.run(20)
    assert next(iter(robot.commanded)) == 2 and robot.commanded[2][0] == 0
    assert "prefix" not in robot.questions[count] and len(robot.questions[count + 1]["prefix"]) == 2


def test_seams():
    """Two chunks that are 5 apart where they meet."""
    robot = FakeRobot([1], every=4)
    plain = robot.infer
    robot.infer = lambda observation: {"actions": plain(observation)["actions"] * [[1, 5]]}
    found = robot.run(10)
    assert found["seam_max"] == 5 and found["step_max"] <= 1 < found["seam_mean"] <= 5


def test_shares():
    counts = np.array([1, 1, 3])
    np.testing.assert_allclose(FUSIONS["latest"](counts), [1, 1, 1])
    np.testing.assert_allclose(FUSIONS["blend"](counts), [0.25, 0.5, 0.75])
    predictions = np.random.default_rng(0).normal(size=(4, 3))
    plan = Plan()
    for prediction in predictions:
        plan.join(7, prediction[None], 0, FUSIONS["average"])
    weights = np.exp(-0.01 * np.arange(4))
    np.testing.assert_allclose(plan[7], weights @ predictions / weights.sum(), rtol=1e-5)


def test_what_is_wrong_is_said():
    robot = FakeRobot([1])
    for how, words in (
        ({"fusion": "mean"}, "fusion: expected one of latest, blend, average; found 'mean'"),
        ({"every": 0}, "expected every >= 1"),
        ({"quantile": 0.0}, "0 < quantile <= 1"),
    ):
        with pytest.raises(ValueError, match=words):
            Runner(robot, robot.observe, robot.act, **how)
    robot.metadata = {}
    with pytest.raises(ValueError, match="action_hz: expected a rate"):
        Runner(robot, robot.observe, robot.act)
    for actions in (np.zeros(3), np.zeros((0, 2)), np.full((2, 2), np.nan)):
        robot.infer = lambda observation, actions=actions: {"actions": actions}
        with pytest.raises(ValueError, match="answer: expected finite actions"):
            robot.run(5)
    robot = FakeRobot([1])
    robot.infer = lambda observation: {"actions": np.zeros((8, 2 + observation["tick"]))}
    with pytest.raises(ValueError, match="answer: expected targets of 2 numbers; found 3"):
        robot.run(5)


def test_a_real_thread_and_a_real_server():
    targets = []
    with serving(FakePolicy(seconds=0.01)) as server, Client(f"ws://127.0.0.1:{server.port}") as client:
        runner = Runner(client, lambda: {"state": STATE}, targets.append, action_hz=25.0, fusion="blend")
        runner.run(seconds=10.0, done=lambda: len(targets) == 10)
        found = runner.statistics()
        assert found["answers"] >= 1 and found["delay_p50"] > 0.01
        assert {target.shape for target in targets} == {(2,)}
        with pytest.raises(Refused, match=r"state: expected \[2\] numbers"):
            Runner(client, dict, targets.append, action_hz=25.0).run(seconds=10.0)
