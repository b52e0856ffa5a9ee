"""The simulator's own flow: it leads to where things are, and estimators come near it."""

import numpy as np
import pytest

from motus_jax.data.optical_flow import Dis

pytestmark = pytest.mark.simulator
SIZE = (144, 192)


@pytest.fixture(scope="module")
def seen():
    """Flow, part, and both pictures, of arms that move."""
    from motus_jax.robots import motion
    from motus_jax.robots.rollout import follow
    from motus_jax.robots.true_flow import TrueFlow

    rng = np.random.default_rng(np.random.SeedSequence([7, 1]))
    task = motion.TASKS["play"]
    world = motion.Aloha(task.layout, task.place(rng), rng)
    present = world.state()
    goal = present + np.where(np.arange(14) % 7 == 0, 0.12, 0.0)
    first = world.picture("top", SIZE).copy()
    true_flow = TrueFlow(world.model, world.data, "top", SIZE)
    flow, part = true_flow(lambda: follow(world, present, goal, 5))
    true_flow.close()
    return flow, part, first, world.picture("top", SIZE).copy(), world


def test_pixels_are_found_where_the_flow_leads(seen):
    import cv2

    flow, part, first, second, _ = seen
    moving = (np.linalg.norm(flow, axis=-1) > 1) & (part >= 0)
    assert moving.mean() > 0.02 and np.abs(flow).max() > 4
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]].astype(np.float32)
    back = cv2.remap(second, columns + flow[..., 0], rows + flow[..., 1], cv2.INTER_LINEAR).astype(float)
    warped, unwarped = (np.abs(picture - first)[moving].mean() for picture in (back, second.astype(float)))
    assert warped < 0.6 * unwarped
    assert not flow[part < 0].any()


def test_what_stands_still_has_no_flow(seen):
    from motus_jax.robots.true_flow import TrueFlow

    world = seen[-1]
    true_flow = TrueFlow(world.model, world.data, "top", SIZE)
    flow, part = true_flow(lambda: None)
    true_flow.close()
    assert np.abs(flow).max() < 1e-3 and (part >= 0).mean() > 0.9


def test_the_estimator_comes_near(seen):
    flow, part, first, second, _ = seen
    found = Dis()(first[None], second[None])[0]
    moving = (np.linalg.norm(flow, axis=-1) > 1) & (part >= 0)
    error, nothing = (np.linalg.norm(flow - other, axis=-1)[moving].mean() for other in (found, 0 * flow))
    assert error < 0.6 * nothing
