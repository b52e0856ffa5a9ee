"""The data pyramid: several sources as one, each with its layer and weight: `make_mixture`."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from motus_jax.data.contract import Contract
from motus_jax.data.dataset import DEFAULTS, Dataset, complete
from motus_jax.data.features import Features
from motus_jax.data.statistics import merged
from motus_jax.errors import UserError

SHARED = frozenset({
    "sources", "layers", "image_size", "chunk", "video_frames", "action_hz", "video_hz", "state_dim", "action_dim",
    "instruction_length", "prompt_template", "text_tokenizer", "chat", "chat_length", "chat_tokenizer", "broken_limit",
    "threads", "workers", "prefetch", "flow",
})  # fmt: skip
"""Keys of `config.data` that all sources share, because the model's shapes or the run hang on them."""
ONLY = "data"
"""Name of the source of a run that has one."""


@dataclasses.dataclass(frozen=True)
class Mixture:
    """One split of the sources of a run.

    Attributes:
      settings: `config.data` with every key filled in.
      split: its name.
      datasets: sources by name, sorted.
      probabilities: how often each is drawn, in the same order.
    """

    settings: Mapping[str, Any]
    split: str
    datasets: Mapping[str, Dataset]
    probabilities: Float[np.ndarray, "S"]

    @property
    def primary(self) -> Dataset:
        """The dataset that evaluation takes when nobody names one: see `primary_name`."""
        return self.datasets[primary_name(self.settings)]

    def contracts(self) -> dict[str, dict[str, Any]]:
        """The contract of every source, as JSON."""
        return {name: dataset.contract() for name, dataset in self.datasets.items()}

    def preload(self) -> None:
        """Decodes videos into memory as far as each source's `cache_gib` allows."""
        for dataset in self.datasets.values():
            dataset.preload()

    def draw(self, seed: int, step: int, batch_size: int) -> Int[np.ndarray, "B"]:
        """Which source each row of a step's batch is from: a function of the arguments and the weights alone."""
        random = np.random.Generator(np.random.Philox(key=[seed & (2**64 - 1), step])).random(batch_size)
        found = np.searchsorted(np.cumsum(self.probabilities), random, side="right")
        return np.minimum(found, len(self.probabilities) - 1)


def settings_by_source(data_config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """`config.data` as each source sees it, by name, sorted; those of weight 0 are left out.

    Raises:
      UserError: an unknown key, or one that sources must share.
    """
    settings = complete(data_config)
    common = settings | {"sources": {}, "layers": {}}
    if not settings["sources"]:
        return {ONLY: common}
    found = {}
    for name, own in sorted(settings["sources"].items()):
        if not float(own.get("weight", settings["weight"])):
            continue  # so that a source of an experiment can be left out
        unknown = sorted(set(own) - set(DEFAULTS))
        if unknown:
            raise UserError(f"config.data.sources.{name}.{unknown[0]}: unknown key; expected one of "
                            f"{', '.join(sorted(set(DEFAULTS) - SHARED))}")  # fmt: skip
        shared = sorted(set(own) & SHARED)
        if shared:
            raise UserError(f"config.data.sources.{name}.{shared[0]}: expected a key of one source; found one that all "
                            f"share: set config.data.{shared[0]}")  # fmt: skip
        found[name] = common | dict(own)
    if not found:
        raise UserError("config.data: expected sources with a weight above 0; found none")
    return found


def primary_name(settings: Mapping[str, Any]) -> str:
    """The source that stands for a run in evaluation: of the highest layer (6 is the target robot), the largest weight
    and the first name, in this order."""
    sources = {name: own for name, own in settings.get("sources", {}).items() if float(own.get("weight", 1.0))}
    sources = sources or {ONLY: {}}
    rank = {key: settings.get(key, DEFAULTS[key]) for key in ("layer", "weight")}

    def order(name: str) -> tuple[float, float, str]:
        own = rank | dict(sources[name])
        return -float(own["layer"]), -float(own["weight"]), name

    return min(sources, key=order)


def settings_of(data_config: Mapping[str, Any], name: str = "") -> dict[str, Any]:
    """`config.data` as one source sees it; the primary one without a name.

    Raises:
      UserError: no such source.
    """
    sources = settings_by_source(data_config)
    name = name or primary_name(data_config)
    if name not in sources:
        raise UserError(f"source {name!r}: expected one of {', '.join(sources)}; found no such source in config.data")
    return sources[name]


def embodiments(sources: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Embodiments of the sources, sorted: what they name, or the source's own name."""
    return sorted({own["embodiment"] or name for name, own in sources.items()})


def probabilities(settings: Mapping[str, Any], sources: Mapping[str, Mapping[str, Any]]) -> Float[np.ndarray, "S"]:
    """How often each source is drawn: by its weight, or with `layers` by the weight of its layer, which the sources of
    a layer share by their own.

    Raises:
      UserError: a weight below 0, no weight above 0, or a weight for a layer without sources, or none for one with.
    """
    layers = {int(layer): float(weight) for layer, weight in settings["layers"].items()}
    own = {name: float(source["weight"]) for name, source in sources.items()}
    of = {name: int(source["layer"]) for name, source in sources.items()}
    for name, weight in [*own.items(), *layers.items()]:
        if not weight >= 0:
            raise UserError(f"config.data: expected weights of at least 0; found {weight} for {name}")
    outside = sorted(set(of.values()) - set(range(1, 7)))
    if outside:
        raise UserError(f"config.data: expected layers from 1 to 6; found {outside[0]}")
    if layers and set(layers) != set(of.values()):
        raise UserError(
            f"config.data.layers: expected weights for exactly the layers of the sources, {sorted(set(of.values()))}; "
            f"found {sorted(layers)}"
        )
    total = {layer: sum(own[name] for name in own if of[name] == layer) for layer in set(of.values())}
    share = {
        name: weight * (layers[of[name]] / (total[of[name]] or 1.0) if layers else 1.0) for name, weight in own.items()
    }
    if not sum(share.values()) > 0:
        raise UserError("config.data: expected sources with a weight above 0; found none")
    values = np.array([share[name] for name in sources])
    return values / values.sum()


def make_dataset(
    data_config: Mapping[str, Any], split: str, *, source: str = "", contract: Contract | None = None,
    features: Features | None = None,
) -> Dataset:  # fmt: skip
    """One split of one source of the config: the named one, or the primary one (`primary_name`).

    Raises:
      UserError: no such source, or as `Dataset`.
    """
    sources = settings_by_source(data_config)
    name = source or primary_name(data_config)
    own = settings_of(data_config, name)
    dataset = Dataset(own, split, contract, features)
    together = [other for other in sources if own["embodiment"] and sources[other]["embodiment"] == own["embodiment"]]
    if dataset.needs_statistics and len(together) > 1:
        found = {other: dataset if other == name else Dataset(sources[other], split) for other in together}
        _raise(_disagreements(found))
        _share_statistics(found, {})
    return dataset


def make_mixture(
    data_config: Mapping[str, Any], split: str, *, contracts: Mapping[str, Contract] | None = None,
    features: Mapping[str, Features] | None = None,
) -> Mixture:  # fmt: skip
    """One split of the sources that the config names.

    Args:
      data_config: `config.data`.
      split: "train" or "test".
      contracts: of a checkpoint, by source; sources without one take the normalisation of their embodiment's.
      features: by source: read in place of its videos.

    Raises:
      UserError: sources that do not fit the config or each other, all of them in one table.
    """
    settings, sources = complete(data_config), settings_by_source(data_config)
    names = embodiments(sources)
    datasets: dict[str, Dataset] = {}
    refused: dict[str, str] = {}
    for number, (name, own) in enumerate(sources.items()):
        numbers = (number, names.index(own["embodiment"] or name))
        given = (contracts or {}).get(name), (features or {}).get(name)
        try:
            datasets[name] = Dataset(own, split, *given, numbers)
        except UserError as error:
            if not settings["sources"]:
                raise
            refused[name] = str(error)
    _raise(refused | _disagreements(datasets))
    _share_statistics(datasets, contracts or {})
    return Mixture(settings, split, datasets, probabilities(settings, sources))


def _raise(refused: Mapping[str, str]) -> None:
    if refused:
        width = max(map(len, refused))
        rows = "".join(f"\n  {name:{width}}  {reason}" for name, reason in sorted(refused.items()))
        raise UserError(f"config.data.sources: expected sources that fit the model and each other; found{rows}")


def _share_statistics(datasets: Mapping[str, Dataset], contracts: Mapping[str, Contract]) -> None:
    """Gives sources of one embodiment one normalisation, so that the model reads and writes one unit for it: that of a
    contract, or else that of all their rows."""
    groups: dict[str, list[Dataset]] = {}
    given: dict[str, Contract] = {}
    for name, dataset in datasets.items():
        embodiment = dataset.settings["embodiment"] or name
        if name in contracts:
            given.setdefault(embodiment, contracts[name])
        if dataset.needs_statistics:
            groups.setdefault(embodiment, []).append(dataset)
    for embodiment, group in groups.items():
        if embodiment in given:
            for dataset in group:
                dataset.share_numbers(given[embodiment])
        elif len(group) > 1:
            together = merged([dataset.statistics for dataset in group])
            for dataset in group:
                dataset.share_statistics(together)


def _disagreements(datasets: Mapping[str, Dataset]) -> dict[str, str]:
    """Sources that name the same embodiment and have another action space or other dims."""
    first: dict[str, str] = {}
    found = {}
    for name, dataset in datasets.items():
        embodiment = dataset.settings["embodiment"] or name
        other = datasets[first.setdefault(embodiment, name)]
        for field in ("action_space", "normalisation", "robot_state_dim", "robot_action_dim"):
            expected, value = getattr(other.spec, field), getattr(dataset.spec, field)
            if expected != value:
                same = f"{first[embodiment]}, of the same embodiment {embodiment!r}"
                found.setdefault(name, f"{field}: expected {expected!r} as in {same}; found {value!r}")
    return found
