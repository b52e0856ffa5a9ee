"""Records of every type come back as they were written, by many threads at once; what is not whole is named."""

import concurrent.futures

import jax.numpy as jnp
import numpy as np
import pytest

from motus_jax.data import feature_files
from motus_jax.data.feature_files import Index, Reader, Spec, Table
from motus_jax.errors import UserError

ARRAYS = {
    "latents": Spec((2, 3, 4), "bfloat16"),
    "vlm_mask": Spec((5,), "bool"),
    "vlm_states": Spec((5, 7), "float32"),
    "frames": Spec((1, 2, 2, 3), "uint8"),
}
ROWS, BLOCK = 150, 2  # more files than are open at a time


def record(row):
    rng = np.random.default_rng(row)
    values = {name: rng.standard_normal(spec.shape) * 50 for name, spec in ARRAYS.items()}
    return {name: np.abs(values[name]).astype(jnp.dtype(spec.dtype)) for name, spec in ARRAYS.items()}


@pytest.fixture(scope="module")
def index():
    tables = {name: Table(rows, "0" * 32, ARRAYS) for name, rows in (("train", ROWS), ("test", 3), ("texts", 1))}
    return Index({}, {}, {}, {}, False, {}, tables, BLOCK)


@pytest.fixture
def folder(index, tmp_path):
    for _, rows, file in index.blocks(tmp_path):
        feature_files.write_block(file, ARRAYS, map(record, rows))
    feature_files.write_index(tmp_path, index)
    feature_files.finish(tmp_path)
    return tmp_path


def assert_is(row, found, names=ARRAYS):
    expected = record(row)
    assert found.keys() == set(names)
    for name, value in found.items():
        assert value.dtype == expected[name].dtype
        np.testing.assert_array_equal(value, expected[name])


def test_records_come_back(index, folder):
    assert feature_files.read_index(folder) == index
    assert feature_files.OPEN_FILES < ROWS / BLOCK
    read = Reader(folder, "train", index, ARRAYS)
    places = np.random.default_rng(0).integers(0, ROWS, 2000).tolist()
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        for row, found in zip(places, pool.map(read, places)):
            assert_is(row, found)
    assert_is(2, Reader(folder, "test", index, ("latents", "frames"))(2), ("latents", "frames"))
    assert_is(0, Reader(folder, "texts", index, ARRAYS)(0))


def test_blocks_cover_every_row_once(index, tmp_path):
    blocks = index.blocks(tmp_path)
    assert len({file for *_, file in blocks}) == len(blocks) == 75 + 2 + 1
    for name, table in index.tables.items():
        assert [row for other, rows, _ in blocks if other == name for row in rows] == list(range(table.rows))


@pytest.mark.parametrize("content", [b"", b"x" * 100_000])
def test_what_is_not_whole_is_named(index, folder, content):
    file = feature_files.block_file(folder, "test", 1)
    file.write_bytes(content)
    with pytest.raises(UserError, match=rf"{file}: expected whole records; found .*does only what is missing"):
        Reader(folder, "test", index, ARRAYS)(2)
    file.unlink()
    with pytest.raises(UserError, match=rf"{file}: expected this file of features; found no such file"):
        Reader(folder, "test", index, ARRAYS)(2)


def test_records_of_other_arrays_are_refused(index, folder):
    file = feature_files.block_file(folder, "test", 1)
    others = {name: ARRAYS[name] for name in ("latents", "frames")}
    feature_files.write_block(file, others, [record(2)])
    with pytest.raises(UserError, match=r"expected records of 205 bytes; found one of 60"):
        Reader(folder, "test", index, ARRAYS)(2)


def test_digests_depend_on_values_shapes_and_order():
    x = np.arange(6, dtype=np.int32)
    digests = [feature_files.digest(*a) for a in ([x], [x, x], [x.reshape(2, 3)], [x[::-1]], [x.astype(np.int64)])]
    assert len(set(digests)) == len(digests) and feature_files.digest(x.copy()) == digests[0]


def test_out_of_a_bucket(index, folder, bucket, gcs, monkeypatch):
    """Through a cache that does not hold them all, with faults: the same bytes; what is open is not thrown away."""
    monkeypatch.setattr(feature_files, "OPEN_FILES", 4)
    for file in folder.rglob("*"):
        if file.is_file():
            (bucket / str(file.relative_to(folder))).write_bytes(file.read_bytes())
    size = max(file.stat().st_size for *_, file in index.blocks(folder))
    monkeypatch.setenv("MOTUS_CACHE_GIB", str(12 * size / 2**30))
    gcs.faults(rate=0.02, kinds=("status",))
    assert feature_files.read_index(bucket) == index
    read = Reader(bucket, "train", index, ARRAYS)
    places = np.random.default_rng(1).integers(0, ROWS, 120).tolist()
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for row, found in zip(places, pool.map(read, places)):
            assert_is(row, found)
    with pytest.raises(UserError, match=r"99999\.array_record: expected this file of features; found no such file"):
        feature_files._Block(feature_files.block_file(bucket, "train", 99999))
