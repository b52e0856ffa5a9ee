"""Runs the frozen encoders of an experiment once over its dataset, so that training reads features and no videos.

  python -m motus_jax.data encode --config=experiments/demo.py --out=features/demo
  python -m motus_jax.train       --config=experiments/demo.py --workdir=runs/demo --config.data.features=features/demo

Every chunk of both splits gets what the parts in config.model.frozen make of it (video latents, states of a
vision-language model), every instruction its text states. The weights are those that a new run would start with
(config.init_from, or a codec fitted to the training frames); training refuses features by others.

  --dtype=float32|bfloat16   what to store (default: what each encoder computes in)
  --batch_size=8             chunks that are encoded at a time
  --block=256                chunks in a file
  --source=NAME              which source of a mixture; each has a folder of its own (config.data.sources.NAME.features)

After an interruption run the same command again: it does only what is missing. On several hosts every process writes
each n-th file into the same folder.
"""

import dataclasses
import functools
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import flags
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jaxtyping import Array
from safetensors.numpy import save_file

from motus_jax import cli, compiler, train
from motus_jax.data import feature_files, run_path
from motus_jax.data.dataset import Dataset
from motus_jax.data.feature_files import SPLITS, TEXTS, Index, Spec, Table
from motus_jax.data.features import ARRAYS, encoder_settings
from motus_jax.data.mixture import make_dataset
from motus_jax.errors import UserError
from motus_jax.models.system import ENCODERS, System
from motus_jax.training import checkpoint, initial, inputs, sharding
from motus_jax.weights import tree
from motus_jax.weights.fingerprint import fingerprints

DTYPES = ("float32", "bfloat16")
REPORT_EVERY = 5.0
"""Seconds between two lines about the progress."""

Batch = Mapping[str, Array]


@dataclasses.dataclass(frozen=True)
class Source:
    """What is encoded by whom.

    Attributes:
      mesh: this process's own devices.
      datasets: by split.
      frozen: the frozen parts, on the mesh.
      fitted: whether some of them were fitted to the data.
      encode: table -> jitted function of (frozen, batch): the arrays of its records.
      batch_size: of a call.
    """

    mesh: Mesh
    datasets: dict[str, Dataset]
    frozen: tree.Tree
    fitted: bool
    encode: dict[str, Callable[[tree.Tree, Batch], dict[str, Array]]]
    batch_size: int


def main(argv: Sequence[str]) -> None:
    """The `encode` subcommand; `argv[0]` is its name.

    Raises:
      UserError: bad input (see `encode`).
    """
    config_flag = cli.define_config()
    out_flag = flags.DEFINE_string("out", None, "folder for the features, e.g. features/demo")
    dtype_flag = flags.DEFINE_string("dtype", "", f"{' or '.join(DTYPES)} (default: what each encoder computes in)")
    batch_flag = flags.DEFINE_integer("batch_size", 8, "chunks that are encoded at a time")
    block_flag = flags.DEFINE_integer("block", 256, "chunks in a file")
    source_flag = flags.DEFINE_string("source", "", "source of a mixture (default: the one of the highest layer)")
    left = cli.parse_flags(argv, __doc__)
    if len(left) > 1:
        raise UserError(f"unexpected argument {left[1]!r}: expected only flags (see --help)")
    for name, flag in (("config", config_flag), ("out", out_flag)):
        if flag.value is None:
            raise UserError(f"--{name} is missing: expected e.g. --config=experiments/demo.py --out=features/demo")
    train.set_up_jax(config_flag.value.platform)
    sizes = {"batch_size": batch_flag.value, "block": block_flag.value}
    out = run_path.local(out_flag.value)
    encode(config_flag.value, out, dtype_flag.value or None, source=source_flag.value, **sizes)


def encode(
    config: ml_collections.ConfigDict, out: pathlib.Path, dtype: str | None = None, *, batch_size: int = 8,
    block: int = 256, source: str = "", host: int | None = None, hosts: int | None = None,
) -> None:  # fmt: skip
    """Writes what is missing of the features of `config.data` by the frozen parts of `config.model` into `out`.

    Args:
      dtype: what floating-point arrays are stored in; None: what each encoder computes in.
      batch_size: examples of a call, rounded up to a multiple of the devices.
      block: records in a file.
      source: which one of a mixture; empty: the one of the highest layer. Each has a folder of its own.
      host, hosts: block b of all is written by host b % hosts, and the index by host 0; default: JAX's own.

    Raises:
      UserError: bad sizes, a config or dataset that does not fit, `out` holds features of something else, or blocks of
        other hosts are missing at the end.
    """
    host = jax.process_index() if host is None else host
    hosts = jax.process_count() if hosts is None else hosts
    for name, value in (("batch_size", batch_size), ("block", block)):
        if value < 1:
            raise UserError(f"--{name}: expected at least 1, found {value}")
    if dtype not in (None, *DTYPES):
        raise UserError(f"--dtype: expected {' or '.join(DTYPES)}, found {dtype!r}")
    # A host's blocks are its own work: its devices wait for no other host's.
    devices = np.array(jax.local_devices()).reshape(1, -1, 1)
    mesh = Mesh(devices, sharding.AXES, axis_types=(AxisType.Auto,) * len(sharding.AXES))
    # First of all: what was fitted for another encoder does not fit this one.
    _refuse_others(out, {"encoders": encoder_settings(config.model)})
    datasets = {split: make_dataset(config.data, split, source=source) for split in SPLITS}
    source = _open(config, out, dtype, mesh, datasets, -(-batch_size // devices.size) * devices.size)
    index = _describe(config, source, block)
    _refuse_others(out, index.to_json())
    if host == 0 and not (out / feature_files.INDEX).exists():
        feature_files.write_index(out, index)
    _wait("index written")
    blocks = index.blocks(out)
    _encode_blocks(source, index, [block for number, block in enumerate(blocks) if number % hosts == host])
    _wait("features written")
    if host == 0:
        _finish(out, [file for *_, file in blocks])


def _refuse_others(out: pathlib.Path, fields: Mapping[str, Any]) -> None:
    """Raises `UserError` if `out` holds, or began to hold, features of something else than these fields of an index."""
    if not any((out / name).exists() for name in (feature_files.INDEX, feature_files.PARTIAL)):
        return
    saved = feature_files.read_index(out, complete=False).to_json()
    difference = checkpoint.first_difference({name: saved[name] for name in fields}, fields)
    if difference:
        key, theirs, ours = difference
        raise UserError(f"--out={out}: expected features with {key} {ours!r}, found {theirs!r}; use another folder")


def _finish(out: pathlib.Path, files: Sequence[pathlib.Path]) -> None:
    """Declares the folder complete, if it is."""
    missing = [file for file in files if not file.exists()]
    if missing:
        raise UserError(
            f"{out}: {len(missing)} of {len(files)} files are missing, the first {missing[0]}: other hosts write them"
            " into the same folder; run the same command again when they are done"
        )
    if (out / feature_files.PARTIAL).exists():
        feature_files.finish(out)
    size = sum(file.stat().st_size for file in files) / 1e6
    print(f"{out}: {len(files)} files, {size:.1f} MB; train with --config.data.features={out}", flush=True)


def _open(
    config: ml_collections.ConfigDict, out: pathlib.Path, dtype: str | None, mesh: Mesh,
    datasets: dict[str, Dataset], batch_size: int,
) -> Source:  # fmt: skip
    system = System(config)
    params = jax.eval_shape(functools.partial(initial.fresh, system, config.lora), jax.random.key(0))
    fitted = functools.partial(_fitted, config, out, system, datasets["train"])
    frozen = initial.frozen_parts(config.init_from, system, params, mesh, fitted)
    stored = {name: dtype or system.encoder_dtype(part) for part in ENCODERS for name in ARRAYS[part]}

    def chunks(frozen: tree.Tree, batch: Batch) -> dict[str, Array]:
        return _cast(system.chunk_features(frozen, batch), stored)

    def texts(frozen: tree.Tree, batch: Batch) -> dict[str, Array]:
        return _cast({"text_states": system.text_states(frozen, batch)}, stored)

    functions = dict.fromkeys(SPLITS, jax.jit(chunks, compiler_options=compiler.options()))
    if "text_encoder" in frozen:
        functions[TEXTS] = jax.jit(texts, compiler_options=compiler.options())
    return Source(mesh, datasets, frozen, system.codec.fitted, functions, batch_size)


def _cast(found: dict[str, Array], stored: Mapping[str, str]) -> dict[str, Array]:
    """Floating-point arrays as they are stored; pictures and masks as they are."""
    return {
        name: value.astype(stored[name]) if jnp.issubdtype(value.dtype, jnp.floating) else value
        for name, value in found.items()
    }


def _fitted(
    config: ml_collections.ConfigDict, out: pathlib.Path, system: System, dataset: Dataset
) -> tree.Tree:
    """The parts that are fitted to the data, fitted once and kept in `out`: training and sampling need them too."""
    if not system.codec.fitted:
        return {}
    if not (out / feature_files.FITTED).exists() and jax.process_index() == 0:
        made = system.fit_frozen(inputs.codec_frames(config, [dataset], [1.0]))
        out.mkdir(parents=True, exist_ok=True)
        partial = out / f"{feature_files.FITTED}.partial"
        save_file({path: np.asarray(leaf) for path, leaf in tree.flatten(made).items()}, partial)
        partial.rename(out / feature_files.FITTED)
    _wait("codec fitted")
    return feature_files.load_fitted(out)


def _describe(config: ml_collections.ConfigDict, source: Source, block: int) -> Index:
    train_set = source.datasets["train"]
    tokens = {text: train_set.texts(text) for text in train_set.instructions}
    tables = {}
    for name in source.encode:
        keys = tuple(tokens) if name == TEXTS else source.datasets[name].starts
        known = feature_files.digest(np.array(keys))
        tables[name] = Table(len(keys), known, _specs(source, name))
    return Index(
        contract=train_set.contract(),
        dataset=train_set.source.facts(),
        encoders=encoder_settings(config.model),
        fingerprints=fingerprints(source.frozen),
        fitted=source.fitted,
        instructions={text: feature_files.digest(*fields.values()) for text, fields in tokens.items()},
        tables=tables,
        block=block,
    )


def _specs(source: Source, table: str) -> dict[str, Spec]:
    """Shape and type of what the encoders make of one example."""
    train_set = source.datasets["train"]
    example = train_set.example(*train_set.starts[0].tolist())
    batch = {name: jax.ShapeDtypeStruct((1, *value.shape), value.dtype) for name, value in example.items()}
    found = jax.eval_shape(source.encode[table], source.frozen, batch)
    return {name: Spec(tuple(value.shape[1:]), value.dtype.name) for name, value in found.items()}


def _encode_blocks(source: Source, index: Index, blocks: Sequence[tuple[str, range, pathlib.Path]]) -> None:
    """Encodes those blocks that are missing, and says how it goes."""
    todo = [block for block in blocks if not block[2].exists()]
    progress = Progress(sum(len(rows) for _, rows, _ in todo))
    for table, rows, file in todo:
        records = _encode_rows(source, index, table, rows)
        feature_files.write_block(file, index.tables[table].arrays, progress.count(records))


def _encode_rows(source: Source, index: Index, table: str, rows: range) -> Iterator[dict[str, np.ndarray]]:
    """The records of a block. While the devices work on a batch, the next one is read."""
    read = _texts(source, index) if table == TEXTS else _chunks(source.datasets[table], rows)
    waiting: list[tuple[int, dict[str, Array]]] = []
    for first in range(0, len(rows), source.batch_size):
        chosen = rows[first : first + source.batch_size]
        # Filled up, so that one compiled program does them all.
        examples = [read(row) for row in [*chosen, *[chosen[0]] * (source.batch_size - len(chosen))]]
        batch = {name: np.stack([example[name] for example in examples]) for name in examples[0]}
        batch = jax.device_put(batch, NamedSharding(source.mesh, sharding.BATCH))
        waiting.append((len(chosen), source.encode[table](source.frozen, batch)))
        if len(waiting) == 2:
            yield from _records(*waiting.pop(0))
    for count, found in waiting:
        yield from _records(count, found)


def _chunks(dataset: Dataset, rows: range) -> Callable[[int], Mapping[str, np.ndarray]]:
    """Examples by number, with the videos of these rows in memory."""
    dataset.hold(sorted({int(episode) for episode, _ in dataset.starts[rows.start : rows.stop]}))
    return lambda row: dataset.example(*dataset.starts[row].tolist())


def _texts(source: Source, index: Index) -> Callable[[int], Mapping[str, np.ndarray]]:
    instructions, texts = tuple(index.instructions), source.datasets["train"].texts
    return lambda row: texts(instructions[row])


def _records(count: int, found: Mapping[str, Array]) -> Iterator[dict[str, np.ndarray]]:
    host = jax.device_get(dict(found))
    for k in range(count):
        yield {name: value[k] for name, value in host.items()}


def _wait(what: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


class Progress:
    """A line on stderr now and then: how many records are done, how fast, and how long the rest takes."""

    def __init__(self, total: int) -> None:
        self._total, self._done, self._begun, self._told = total, 0, time.monotonic(), 0.0

    def count(self, records: Iterator[Any]) -> Iterator[Any]:
        """The same records."""
        for record in records:
            yield record
            self._done += 1
            passed = time.monotonic() - self._begun
            if passed - self._told > REPORT_EVERY or self._done == self._total:
                self._told = passed
                rate = self._done / max(passed, 1e-9)
                left = (self._total - self._done) / rate
                line = f"encoded {self._done} of {self._total}, {rate:.1f} a second, {left:.0f} s left"
                print(line, file=sys.stderr, flush=True)

