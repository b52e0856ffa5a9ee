"""Serves a trained model to robots over a websocket, in the protocol that their clients already speak.

  python -m motus_jax.serve --workdir=runs/demo --port=8000
  python -m motus_jax.serve --workdir=runs/demo --protocol=xpolicylab --modes=vla --port=19000
  python -m motus_jax.serve --workdir=runs/demo --modes=vla --prefix=guided
  python -m motus_jax.serve --workdir=runs/demo --modes=vla --host=0.0.0.0 --api_key_file=key.txt --max_batch=8

Protocols: openpi (by default; openpi-client works unchanged), vla_eval, roboarena, xpolicylab. Everything is compiled
before the line `ready on ws://...`. In openpi's, a robot asks with

  from openpi_client.websocket_client_policy import WebsocketClientPolicy
  actions = WebsocketClientPolicy("localhost", 8000).infer({"prompt": ..., "state": ..., "images": {...}})["actions"]

and may add `mode`, `return_video`, `session_id` and `seed` (motus_jax/robots/policy.py lists all). The mode `plan`, if
--modes names it, imagines several chunks and answers with the best (motus_jax/sampling/planning.py). GET /healthz and
/metrics are answered on the same port. SIGTERM lets running requests finish. Exit codes: 0 stopped, 2 bad input.
"""

import pathlib
import time
from collections.abc import Sequence

from absl import flags

from motus_jax import cli
from motus_jax.data import run_path
from motus_jax.errors import UserError
from motus_jax.sampling import overrides
from motus_jax.sampling.jobs import JOBS, Planning, get_job
from motus_jax.train import set_up_jax

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def define_flags() -> None:
    """The command line."""
    flags.DEFINE_string("workdir", None, "a run of motus_jax.train, e.g. runs/demo")
    flags.DEFINE_integer("step", None, "which checkpoint (default: the newest)")
    flags.DEFINE_string("source", "", "source of a mixture (default: the one of the highest layer)")
    flags.DEFINE_string(
        "mode", "", f"where a request names none: one of {', '.join(JOBS)} (default: the one that acts)"
    )
    flags.DEFINE_list("modes", [], "modes to compile and serve (default: all that the model can do, but not plan)")
    flags.DEFINE_integer("candidates", 8, "plan: chunks imagined for an answer", lower_bound=1)
    flags.DEFINE_integer("max_batch", 4, "requests of several clients answered by one call", lower_bound=1)
    flags.DEFINE_float("wait_ms", 5.0, "how long a request waits for those of other clients", lower_bound=0.0)
    define = {int: flags.DEFINE_integer, float: flags.DEFINE_float, str: flags.DEFINE_string}
    for name, (kind, text) in overrides.FLAGS.items():
        define[kind](name, None, text)
    flags.DEFINE_string(
        "prefix", "", "go on from actions that the robot is committed to: hard, guided or conditioned (default: no)"
    )
    flags.DEFINE_integer("seed", 0, "of the noise, where a request names none", lower_bound=0, upper_bound=2**32 - 1)
    flags.DEFINE_list("cameras", [], "cameras that clients call something else, as top=cam_high,wrist=cam_left_wrist")
    flags.DEFINE_string("protocol", "openpi", "what clients speak: openpi, vla_eval, roboarena or xpolicylab")
    flags.DEFINE_string("host", "127.0.0.1", "address to listen on; 0.0.0.0 is every network")
    flags.DEFINE_integer("port", 8000, "where to listen; 0 takes a free port", lower_bound=0, upper_bound=65535)
    flags.DEFINE_string("api_key_file", None, "file with the key that clients must send (default: none is asked for)")
    flags.DEFINE_integer("max_megabytes", 64, "of one message", lower_bound=1)
    flags.DEFINE_integer("max_clients", 64, "connections at once", lower_bound=1)
    flags.DEFINE_float("timeout", 60.0, "seconds within which a request is answered", lower_bound=0.1)
    flags.DEFINE_float("drain", 30.0, "seconds that running requests get after SIGTERM", lower_bound=0.0)


def main(argv: Sequence[str]) -> None:
    """Parses the flags and serves.

    Raises:
      UserError: a flag out of range, no run, or an address that cannot be listened on.
    """
    define_flags()
    left = cli.parse_flags(argv, __doc__)
    given = flags.FLAGS
    if len(left) > 1:
        raise UserError(f"unexpected argument {left[1]!r}: expected only flags (see --help)")
    if given.workdir is None:
        raise UserError("--workdir is missing: expected e.g. --workdir=runs/demo")
    for mode in [given.mode] * bool(given.mode) + given.modes:
        get_job(mode)
    key = read_key(given.api_key_file)
    try:
        from motus_jax.robots.server import protocols, websocket
    except ImportError as error:
        raise UserError(
            f"serving needs the serve extra ({error.name} is missing): pip install -e '.[serve]'"
        ) from error
    protocols.get_protocol(given.protocol)
    settings = websocket.Settings(
        protocol=given.protocol, host=given.host, port=given.port, api_key=key, max_batch=given.max_batch,
        wait=given.wait_ms / 1000, max_bytes=given.max_megabytes * 2**20, max_clients=given.max_clients,
        timeout=given.timeout, drain=given.drain,
    )  # fmt: skip
    started = time.monotonic()
    policy = load_policy(given)
    if given.host not in LOOPBACK and not key:
        say(f"warning: {given.host} lets everybody in the network ask; --api_key_file keeps strangers out")
    say(f"compiled {', '.join(policy.modes)} within {time.monotonic() - started:.1f} s")
    websocket.run(policy, settings, say)


def load_policy(given: flags.FlagValues):
    """The policy that the flags describe, compiled."""
    set_up_jax(platform="")

    # Imported after the platform is chosen, in case an import touches a device.
    from motus_jax.robots.policy import Policy
    from motus_jax.training.checkpoint import load_for_inference

    loaded = load_for_inference(run_path.of(given.workdir), given.step)
    say(f"checkpoint of step {loaded.step} in {given.workdir}")
    return Policy(
        loaded, source=given.source, mode=given.mode, modes=given.modes, max_batch=given.max_batch, prefix=given.prefix,
        sampling=overrides.changed(loaded.config.sampling, given), plan=Planning(given.candidates), seed=given.seed,
        camera_names=read_names(given.cameras), say=say,
    )  # fmt: skip


def read_names(pairs: Sequence[str]) -> dict[str, str]:
    """`OURS=THEIRS` pairs as a table.

    Raises:
      UserError: a pair without a name on either side.
    """
    names = dict(pair.partition("=")[::2] for pair in pairs)
    if not all((*names, *names.values())):
        raise UserError(f"--cameras: expected pairs as top=cam_high; found {','.join(pairs)}")
    return names


def read_key(path: str | None) -> str:
    """The key in a file, or empty without one.

    Raises:
      UserError: the file cannot be read, or holds no key of one line.
    """
    if path is None:
        return ""
    try:
        key = pathlib.Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--api_key_file={path}: expected a file with a key; {error}") from error
    if not key or len(key.split()) != 1:
        raise UserError(f"--api_key_file={path}: expected one key on one line; found {len(key.split())} words")
    return key


def say(line: str) -> None:
    """A progress line."""
    print(line, flush=True)


if __name__ == "__main__":
    cli.run(main)
