"""Parameters taken from an earlier run and from imported weights, and what is refused."""

import json

import jax
import numpy as np
import pytest
from fake_run import FakeSystem, get_config, make_data
from orbax.checkpoint import v1 as ocp

from motus_jax.errors import UserError
from motus_jax.training import checkpoint, loop
from motus_jax.weights import importer, tree


def train(workdir, **changes):
    config = get_config()
    config.update({"steps": 4, "validate_every": 0} | changes)
    assert loop.train(config, workdir, FakeSystem, make_data)
    return checkpoint.load_for_inference(workdir, 4)


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    """A run of another seed, and what it learned."""
    workdir = tmp_path_factory.mktemp("earlier") / "run"
    return workdir, tree.flatten(train(workdir, seed=1).params)


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """Weights as `motus_jax.convert import` leaves them."""
    workdir = tmp_path_factory.mktemp("imported") / "weights"
    leaves = {"fixed/kernel": np.full((12, 64), 0.5, np.float32)}
    ocp.save(importer.imported_directory(workdir) / "video", tree.unflatten(leaves))
    shapes = {path: {"shape": list(x.shape), "dtype": "float32", "bytes": x.nbytes} for path, x in leaves.items()}
    report = {"format": importer.FORMAT, "imports": [{"subtrees": {"video": {"leaves": shapes}}}]}
    (importer.imported_directory(workdir) / importer.REPORT).write_text(json.dumps(report))
    return workdir


def frozen_copy(workdir, rows):
    """Parameters right after the start: nothing is trained, nothing moves."""
    optimizer = get_config().optimizer
    optimizer.schedule.update({"peak": 1e-12, "end": 1e-13})
    return tree.flatten(train(workdir, init_from=rows, optimizer=optimizer).params)


def test_leaves_come_from_where_the_table_says(earlier, imported, tmp_path, capsys):
    rows = (("video/fixed/.*", str(imported)), (".*/bias", "new"), (".*", str(earlier[0])))
    found, taught = frozen_copy(tmp_path / "run", rows), earlier[1]
    np.testing.assert_array_equal(found["video/fixed/kernel"], 0.5)
    for path in ("video/dense/kernel", "action/dense/kernel"):
        np.testing.assert_allclose(found[path], taught[path], atol=1e-9)
    np.testing.assert_allclose(found["action/dense/bias"], 0.0, atol=1e-9)
    assert np.abs(taught["action/dense/bias"]).max() > 1e-4
    printed = capsys.readouterr().out
    assert f"video   {imported}" in printed and "1 leaves" in printed


def test_what_no_row_names_starts_as_without_the_table(earlier, tmp_path):
    found = frozen_copy(tmp_path / "run", (("action/.*", str(earlier[0])),))
    fresh = tree.flatten(jax.jit(FakeSystem(get_config()).init)(jax.random.key(0)))
    np.testing.assert_allclose(found["video/dense/kernel"], fresh["video/dense/kernel"], atol=1e-9)


@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        ((("video/dense/.*", "IMPORT"),), {}, r"has no leaf 'video/dense/kernel' of shape \(64, 128\); .*'new'"),
        ((("video/fixed/.*", "RUN"),), {"model": {"width": 32}}, r"expected shape \(12, 32\), found \(12, 64\)"),
        ((("video/.*", "/nowhere"),), {}, "/nowhere holds neither imported weights"),
        ((("vidio/.*", "RUN"),), {}, r"config\.init_from: the regex 'vidio/\.\*' decides no parameter"),
    ],
)
def test_refuses_what_does_not_fit(rows, changes, message, earlier, imported, tmp_path):
    places = {"IMPORT": str(imported), "RUN": str(earlier[0])}
    with pytest.raises(UserError, match=message):
        train(tmp_path / "run", init_from=tuple((regex, places.get(path, path)) for regex, path in rows), **changes)
    assert not (tmp_path / "run" / "config.json").exists()
