"""Several processes, one a host, as one run."""

import os

import jax

from motus_jax.errors import UserError

GIVEN = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
"""HOST:PORT of process 0, how many processes there are, and which one this is, from 0."""
CHOICE = "MOTUS_HOSTS"
"""`auto`: JAX asks what started it (Cloud TPU, GKE, Slurm, Open MPI)."""


def join() -> None:
    """Makes this process one of several where the environment says so; to be called before JAX looks for devices.

    Raises:
      UserError: the variables contradict each other, or the others cannot be reached.
    """
    given = {name: os.environ[name] for name in GIVEN if os.environ.get(name)}
    choice = os.environ.get(CHOICE, "")
    if choice not in ("", "auto"):
        raise UserError(f"{CHOICE}: expected auto, or nothing for a single host; found {choice!r}")
    if given and len(given) < len(GIVEN) and not choice:
        missing = ", ".join(name for name in GIVEN if name not in given)
        raise UserError(f"{next(iter(given))} is set: expected {missing} too, or {CHOICE}=auto; found nothing")
    if not (given or choice) or jax.distributed.is_initialized():
        return
    try:
        if choice:
            jax.distributed.initialize()
        else:
            address, count, number = (given[name] for name in GIVEN)
            jax.distributed.initialize(address, int(count), int(number))
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"the hosts of this run could not be joined: {reason}") from error
