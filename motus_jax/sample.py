"""Samples any of the five modes from a checkpoint on one chunk of an episode: videos, strips, plots and arrays.

  python -m motus_jax.sample --workdir=runs/demo --mode=world_model --episode=0 --frame=5 --out=runs/demo/samples

Episodes count within the split, held-out ones by default. Writes, named by mode, episode and frame: an mp4 and a PNG
strip (real beside imagined) where the mode returns video, a plot (real beside predicted, with units) where it returns
actions, and an npz with the arrays in the robot's units.
"""

import argparse
import pathlib
import sys
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from motus_jax import cli
from motus_jax.data import run_path
from motus_jax.data.contract import Contract
from motus_jax.data.dataset import Dataset
from motus_jax.data.mixture import make_dataset, settings_of
from motus_jax.errors import UserError
from motus_jax.evaluation.held_out import ActionUnits
from motus_jax.models.system import System
from motus_jax.modes import MODES, get_mode
from motus_jax.sampling import overrides, pictures
from motus_jax.sampling.precision import prepared
from motus_jax.sampling.sampler import make_sampler
from motus_jax.training.checkpoint import Loaded, load_for_inference


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m motus_jax.sample", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", required=True, type=run_path.of, help="a run of motus_jax.train")
    parser.add_argument("--mode", default="joint", help=f"one of {', '.join(MODES)}")
    parser.add_argument("--source", default="", help="source of a mixture (default: the one of the highest layer)")
    parser.add_argument("--dataset", help="another dataset of the same contract (default: the one of the training)")
    parser.add_argument("--split", default="test", help="train or test (default: test)")
    parser.add_argument("--episode", type=int, default=0, help="episode of the split, from 0")
    parser.add_argument("--frame", type=int, default=0, help="row of the episode at which the chunk starts")
    parser.add_argument("--step", type=int, help="which checkpoint (default: the newest)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument("--out", required=True, type=run_path.local, help="folder for the results")
    overrides.define(parser)
    arguments = parser.parse_args(argv[1:])
    get_mode(arguments.mode)
    return arguments


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    arguments = parse(argv)
    loaded = load_for_inference(arguments.workdir, arguments.step)
    contract = Contract.from_json(loaded.contract(arguments.source))
    dataset, episode = open_episode(loaded, contract, arguments)
    example = dataset.example(episode, arguments.frame)
    system, sampling = System(loaded.config), overrides.changed(loaded.config.sampling, arguments)
    sample = make_sampler(system, arguments.mode, sampling)
    batch = {name: np.asarray(value)[None] for name, value in example.items()}
    params = prepared(system, loaded.params, sampling)
    result = sample(params, loaded.frozen, batch, jax.random.key(arguments.seed))
    first = {name: np.asarray(value[0]) for name, value in result.items()}
    arrays = in_robot_units(dataset, contract, (episode, arguments.frame), first)
    arguments.out.mkdir(parents=True, exist_ok=True)
    stem = f"{arguments.mode}_{arguments.split}_episode{arguments.episode}_frame{arguments.frame}"
    for path in write(arguments.out / stem, arrays | {"real_video": example["frames"]}, contract):
        print(path)


def open_episode(loaded: Loaded, contract: Contract, arguments: argparse.Namespace) -> tuple[Dataset, int]:
    """The dataset of the training, or another one of the same contract and format, and an episode of its split.

    Raises:
      UserError: the split has no such episode, or the dataset does not fit.
    """
    settings = settings_of(loaded.config.data, arguments.source)
    if arguments.dataset:
        settings["path"] = arguments.dataset
    dataset = make_dataset(settings, arguments.split, contract=contract)
    if not 0 <= arguments.episode < len(dataset.episodes):
        raise UserError(
            f"episode {arguments.episode} of split {arguments.split!r}: expected 0 to {len(dataset.episodes) - 1}"
        )
    return dataset, dataset.episodes[arguments.episode]


def in_robot_units(
    dataset: Dataset, contract: Contract, place: tuple[int, int], result: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Arrays for the npz: `state` [P], `real_actions` [T, A] and, where returned, `actions` [T, A] (absolute targets,
    radians and open fractions) and `video` uint8 [1+Nf, H, W, 3]."""
    state = dataset.raw_state(*place)
    arrays = {"state": state, "real_actions": dataset.raw_actions(*place)}
    if "actions" in result:
        arrays["actions"] = contract.denormalise_actions(result["actions"], state)
    if "video" in result:
        arrays["video"] = np.round(np.clip(result["video"], 0, 1) * 255).astype(np.uint8)
    return arrays


def write(stem: pathlib.Path, arrays: Mapping[str, np.ndarray], contract: Contract) -> list[pathlib.Path]:
    """Writes everything a person and a program want of one sample; returns the files."""
    paths = [stem.with_name(f"{stem.name}{end}") for end in (".npz", ".mp4", ".png", "_actions.png")]
    np.savez_compressed(paths[0], **arrays)
    written = [paths[0]]
    if "video" in arrays:
        rows = {"real": arrays["real_video"], "imagined": arrays["video"]}
        pictures.write_mp4(paths[1], pictures.side_by_side(rows), contract.video_hz, scale=1)
        pictures.write_image(paths[2], pictures.strip(rows, contract.video_hz, error_of=("real", "imagined")))
        written += paths[1:3]
    if "actions" in arrays:
        units = ActionUnits.of(contract)
        figure = pictures.action_figure(
            arrays["real_actions"], {"predicted": arrays["actions"]}, units.names, units.units, contract.action_hz,
            arrays["state"],
        )
        pictures.write_figure(paths[3], figure)
        written.append(paths[3])
    return written


if __name__ == "__main__":
    cli.run(main, sys.argv)
