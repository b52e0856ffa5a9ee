"""The tiny datasets that the tests of `motus_jax.data` read."""

import pathlib
import shutil

import lerobot_fixture
import pytest


@pytest.fixture(scope="session")
def v3(tmp_path_factory) -> pathlib.Path:
    """A v3.0 dataset; tests add its statistics, nothing else."""
    return lerobot_fixture.write(tmp_path_factory.mktemp("v3") / "set")


@pytest.fixture(scope="session")
def v2(tmp_path_factory) -> pathlib.Path:
    """The same episodes as v2.1; likewise."""
    return lerobot_fixture.write(tmp_path_factory.mktemp("v2") / "set", "v2.1")


@pytest.fixture
def broken(v2, tmp_path) -> pathlib.Path:
    """A copy of the v2.1 dataset for a test to damage."""
    return pathlib.Path(shutil.copytree(v2, tmp_path / "v2" / "set"))


@pytest.fixture
def broken_v3(v3, tmp_path) -> pathlib.Path:
    """A copy of the v3.0 dataset for a test to damage."""
    return pathlib.Path(shutil.copytree(v3, tmp_path / "v3" / "set"))
