"""Shows what a trained model says all along one episode: imagined beside real, chunks of actions, times.

  python -m motus_jax.view --workdir=runs/demo --episode=0 --out=view.html
  python -m motus_jax.view --workdir=runs/demo --episode=0 --modes=vla,joint --every=2 --rerun=view.rrd

Every mode is asked at every `--every`-th row. The page needs nothing but a browser and can be passed on as it is. The
other file is for the Rerun viewer: `rerun view.rrd` (pip install -e '.[viewer]').
"""

import argparse
import functools
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence

import jax

from motus_jax import cli
from motus_jax.data import run_path
from motus_jax.data.contract import Contract
from motus_jax.errors import UserError
from motus_jax.evaluation import episode as episodes
from motus_jax.evaluation import episode_page, episode_rerun
from motus_jax.models.system import System
from motus_jax.modes import MODES, get_mode
from motus_jax.sample import open_episode
from motus_jax.sampling.sampler import make_sampler
from motus_jax.train import set_up_jax
from motus_jax.training.checkpoint import Loaded, load_for_inference


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line.

    Raises:
      UserError: an unknown mode, a number out of range, nothing to write, or no rerun-sdk to write with.
    """
    parser = argparse.ArgumentParser(
        prog="python -m motus_jax.view", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", required=True, type=run_path.of, help="a run of motus_jax.train")
    parser.add_argument("--out", type=run_path.local, help="page to write, e.g. view.html")
    parser.add_argument("--rerun", type=run_path.local, help="file for the Rerun viewer to write, e.g. view.rrd")
    parser.add_argument("--modes", default="", help=f"of {', '.join(MODES)} (default: all that the model can do)")
    parser.add_argument("--every", type=int, help="rows from one question to the next (default: half a chunk)")
    parser.add_argument("--source", default="", help="source of a mixture (default: the one of the highest layer)")
    parser.add_argument("--dataset", help="another dataset of the same contract (default: the one of the training)")
    parser.add_argument("--split", default="test", help="train or test (default: test)")
    parser.add_argument("--episode", type=int, default=0, help="episode of the split, from 0")
    parser.add_argument("--step", type=int, help="which checkpoint (default: the newest)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    arguments = parser.parse_args(argv[1:])
    arguments.modes = [mode for mode in arguments.modes.split(",") if mode]
    for mode in arguments.modes:
        get_mode(mode)
    if arguments.out is None and arguments.rerun is None:
        raise UserError("--out is missing: expected a page to write, as --out=view.html, or --rerun=view.rrd")
    if arguments.every is not None and arguments.every < 1:
        raise UserError(f"--every: expected at least 1, found {arguments.every}")
    if arguments.rerun is not None and importlib.util.find_spec("rerun") is None:
        raise UserError("--rerun needs the viewer extra: pip install -e '.[viewer]'")
    return arguments


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    arguments = parse(argv)
    set_up_jax(platform="")
    loaded = load_for_inference(arguments.workdir, arguments.step)
    contract = Contract.from_json(loaded.contract(arguments.source))
    dataset, episode = open_episode(loaded, contract, arguments)
    every = arguments.every or max(1, round(contract.chunk / contract.action_hz * dataset.source.fps / 2))
    title = f"{dataset.source.path}, {arguments.split} episode {arguments.episode}"
    samplers = make_samplers(loaded, arguments.modes, arguments.seed)
    seen = episodes.watch(dataset, episode, samplers, every, title, say=functools.partial(print, flush=True))
    if arguments.out is not None:
        text = episode_page.render(seen, f"{arguments.workdir}, step {loaded.step}")
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text, encoding="utf-8")
        print(f"{arguments.out} written, {len(text) / 1e6:.1f} MB")
    if arguments.rerun is not None:
        arguments.rerun.parent.mkdir(parents=True, exist_ok=True)
        episode_rerun.write(arguments.rerun, seen)
        print(f"{arguments.rerun} written, {arguments.rerun.stat().st_size / 1e6:.1f} MB")


def make_samplers(loaded: Loaded, modes: Sequence[str], seed: int) -> Mapping[str, Callable]:
    """A function of a batch for each mode, by default all that the model can do.

    Raises:
      UserError: the model cannot do a mode.
    """
    system, key = System(loaded.config), jax.random.key(seed)

    def sampler(mode: str) -> Callable:
        sample = make_sampler(system, mode, loaded.config.sampling)
        return lambda batch: sample(loaded.params, loaded.frozen, batch, key)

    return {mode: sampler(mode) for mode in modes or system.supported_modes}


if __name__ == "__main__":
    cli.run(main, sys.argv)
