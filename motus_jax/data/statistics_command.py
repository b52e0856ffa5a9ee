"""Statistics of the training episodes of a source, or of all sources of an experiment, stored for the normalisation.

  python -m motus_jax.data statistics --path=datasets/aloha_sim --chunk=16 --action_hz=10
  python -m motus_jax.data statistics --path=FILE --kind=KIND --options='{"key": "value"}'
  python -m motus_jax.data statistics --config=experiments/demo.py

Training does this by itself; run it to look at the numbers, or with --out where the dataset's folder is read-only
(then train with --config.data.statistics=FILE). No video is read.
"""

from collections.abc import Sequence
from typing import Any

from absl import flags

from motus_jax.data import command_source, statistics, storage
from motus_jax.data.dataset import timing_of
from motus_jax.data.mixture import embodiments
from motus_jax.data.source import Source
from motus_jax.data.sources import open_source
from motus_jax.errors import UserError

TIMING = {"chunk": 16, "video_frames": 8, "action_hz": 10.0, "video_hz": 5.0}


def main(argv: Sequence[str]) -> None:
    """Computes, prints and stores statistics; `argv[0]` is the command's name."""
    given = command_source.define_flags(argv)
    own = {"flag_values": given.values}
    sizes = {
        "chunk": flags.DEFINE_integer("chunk", None, "actions in a chunk (16)", **own),
        "action_hz": flags.DEFINE_float("action_hz", None, "actions per second of the model (10)", **own),
        "video_hz": flags.DEFINE_float("video_hz", None, "video frames per second of the model (5)", **own),
        "video_frames": flags.DEFINE_integer("video_frames", None, "future frames of the model (8)", **own),
    }
    out = flags.DEFINE_string("out", None, f"file to write; default: {statistics.FILE} beside the source", **own)
    threads = flags.DEFINE_integer("threads", 0, "threads; 0: one for each core", **own)
    chosen = command_source.choose(given, __doc__)
    asked = {name: flag.value for name, flag in sizes.items() if flag.value is not None}
    if asked and not chosen.by_path:
        name = next(iter(asked))
        raise UserError(f"--{name}: expected with --path; with --config give --config.data.{name}={asked[name]}")
    found = {}
    for name, settings in chosen.sources.items():
        own = settings | (TIMING | asked if chosen.by_path else {})
        source = open_source(own["kind"], own["path"], own["options"])
        found[name] = statistics.compute(source, timing_of(own, source), threads.value, own["action_space"])
        print(f"== {command_source.label(name, own)}: {own['path']}\n")
        _print(source, found[name])
        _save(out.value or own["statistics"] or statistics.file_of(source), found[name])
    _print_together(chosen.sources, found)


def _save(file: "str | storage.Path", found: statistics.Statistics) -> None:
    path = storage.path(file)
    try:
        statistics.save(path, found)
    except OSError as error:
        raise UserError(f"{path}: expected a place to write; found {error.strerror}; give --out=FILE") from error
    print(f"wrote {path}\n")


def _print_together(sources: dict[str, dict[str, Any]], found: dict[str, statistics.Statistics]) -> None:
    """What sources of one embodiment are normalised by."""
    for embodiment in embodiments(sources):
        names = [name for name, own in sources.items() if own["embodiment"] == embodiment]
        if len(names) > 1:
            print(f"== embodiment {embodiment}, together: {', '.join(names)}\n")
            first = sources[names[0]]
            _print(open_source(first["kind"], first["path"], first["options"]),
                   statistics.merged([found[name] for name in names]))  # fmt: skip


def _print(source: Source, found: statistics.Statistics) -> None:
    _print_table("state", source.state_names, found.state)
    for space, moments in found.actions.items():
        _print_table(f"action, {space}", source.action_names, moments)
    if not found.actions and not found.state.mean:
        print("neither states nor actions\n")


def _print_table(title: str, names: Sequence[str], moments: statistics.Moments) -> None:
    if not moments.mean:
        return
    names = names if len(names) == len(moments.mean) else [f"dim {k}" for k in range(len(moments.mean))]
    columns = ("mean", "std", "min", "max", "q01", "q99")
    width = max(map(len, names))
    print(f"{title} ({moments.count} rows)\n{'':{width}} " + " ".join(f"{column:>9}" for column in columns))
    for k, name in enumerate(names):
        print(f"{name:{width}} " + " ".join(f"{getattr(moments, column)[k]:9.4f}" for column in columns))
    print()
