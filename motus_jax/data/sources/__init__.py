"""The formats of episodes: one table, one file each."""

import importlib
from collections.abc import Mapping
from typing import Any

from motus_jax.data import storage
from motus_jax.data.source import Source
from motus_jax.errors import UserError

SOURCES: dict[str, str] = {
    "agibot": "agibot:AgiBotDataset",
    "aloha_hdf5": "aloha_hdf5:AlohaDataset",
    "egodex": "egodex:EgoDexDataset",
    "lerobot": "lerobot:LeRobotDataset",
    "motus": "motus_release:MotusDataset",
    "motus_latent": "motus_release:MotusLatentDataset",
    "records": "records:RecordsDataset",
    "rlds": "rlds:RldsDataset",
    "robotwin": "robotwin:RoboTwinDataset",
    "videos": "videos:VideoFolder",
}
"""Kind of a source (`config.data.kind`) -> module and class."""


def open_source(kind: str, path: str, options: Mapping[str, Any] | None = None) -> Source:
    """Opens the source at `path`; reads what describes its episodes, no videos.

    Args:
      kind: a key of `SOURCES`.
      path: folder or file, local or gs://.
      options: of that format (`OPTIONS` of its class); and of any, `latents`: the folder of latent actions that
        `python -m motus_jax.data label` wrote for it.

    Raises:
      UserError: unknown kind or option, nothing at the path, or something of another format.
    """
    if kind not in SOURCES:
        raise UserError(f"data.kind: expected one of {', '.join(SOURCES)}; found {kind!r}")
    module, name = SOURCES[kind].split(":")
    own = {key: value for key, value in (options or {}).items() if key != "latents"}
    source = getattr(importlib.import_module(f"{__name__}.{module}"), name)(path, own)
    if folder := (options or {}).get("latents"):
        from motus_jax.data.latent_labels import Labels

        labels = Labels(storage.path(folder), source)
        source.attach(labels, labels.dim, labels.name)
    return source
