"""The PyTorch loop of the latency benchmark gives the sampler's answers."""

import numpy as np
import pytest

pytestmark = pytest.mark.heavy
pytest.importorskip("torch", reason="the benchmark needs PyTorch: pip install torch==2.13.0")

from benchmarks import latency, torch_loop  # noqa: E402
from benchmarks.latency_subject import from_random  # noqa: E402
from experiments import debug  # noqa: E402
from motus_jax.sampling.sampler import make_sampler  # noqa: E402
from motus_jax.sampling.settings import Settings  # noqa: E402


def test_answers_are_those_of_the_sampler():
    subject, settings = from_random(debug.get_config(), 1, depth=2), Settings(3, 3)
    ours = latency.as_call(subject, make_sampler(subject.system, "joint", settings), subject.params)(0)
    theirs = torch_loop.as_call(subject, "joint", settings)(0)
    for name, expected in ours.items():
        np.testing.assert_allclose(theirs[name], expected, atol=2e-4 * np.abs(expected).max())
