"""What the loop reads, from the sources that the config names."""

import functools
from collections.abc import Mapping, Sequence

import jax
import ml_collections
import numpy as np
from jaxtyping import UInt8

from motus_jax.data import pipeline, run_path
from motus_jax.data.contract import Contract
from motus_jax.data.dataset import Dataset
from motus_jax.data.features import Features, encoder_settings
from motus_jax.data.mixture import make_mixture, settings_by_source
from motus_jax.errors import UserError
from motus_jax.models.video_codec import VideoCodecConfig
from motus_jax.training.loop import Batch, Data

VALIDATION_EXAMPLES = 64
"""Held-out examples per validation (at least one batch of each source): enough to see a trend, few enough to cost a
second."""


def open_data(config: ml_collections.ConfigDict, contracts: Mapping[str, Contract] | None = None) -> Data:
    """The sources of `config.data` as the loop wants them; every process reads its own part of each batch.

    Args:
      config: an experiment's config.
      contracts: of the checkpoint that a run goes on from, by source. Where a source joined or left, those that stay,
        and new ones of the same embodiment, keep its normalisation. With the same sources the numbers are made anew,
        so that data that changed meanwhile do not pass for the old.

    Raises:
      UserError: a missing or broken source or folder of features, or a config that does not fit it.
    """
    features = open_features(config)
    host, hosts = jax.process_index(), jax.process_count()
    given = contracts if contracts and set(contracts) != set(settings_by_source(config.data)) else {}
    train = make_mixture(config.data, "train", contracts=given, features=features)
    held_out = make_mixture(config.data, "test", contracts=given, features=features)
    batches = pipeline.make_iterator(train, config.batch_size, config.seed, host=host, hosts=hosts)
    limit = max(1, VALIDATION_EXAMPLES // len(held_out.datasets) // config.batch_size) * config.batch_size
    names = pipeline.eval_batches(train.primary, 1, 1, config.seed)[0].keys() - {"raw_state", "raw_actions", "valid"}
    local = config.batch_size // hosts

    def part(batch: Batch) -> Batch:
        return {name: batch[name][host * local : (host + 1) * local] for name in names}

    validation = [
        part(batch)
        for dataset in held_out.datasets.values()
        for batch in pipeline.eval_batches(dataset, config.batch_size, limit, config.seed)
    ]
    frames = functools.partial(codec_frames, config, list(train.datasets.values()), list(train.probabilities))
    return Data(batches, validation, frames, train.contracts(), features)


def codec_frames(
    config: ml_collections.ConfigDict, datasets: Sequence[Dataset], shares: Sequence[float]
) -> UInt8[np.ndarray, "M 1+Nf H W 3"]:
    """The `config.model.video_codec.clips` that a fitted codec is fitted on, of datasets that read pixels; of each its
    share."""
    clips = config.model.get("video_codec", {}).get("clips", VideoCodecConfig.clips)
    batches = [
        batch
        for dataset, share in zip(datasets, shares)
        for batch in pipeline.eval_batches(dataset, 1, round(clips * share), config.seed)
    ]
    return np.concatenate([batch["frames"] for batch in batches])


def open_features(config: ml_collections.ConfigDict) -> dict[str, Features]:
    """Features by source; none at all if none is named."""
    sources = settings_by_source(config.data)
    named = {name: own for name, own in sources.items() if own["features"]}
    if named and len(named) < len(sources):
        without = sorted(set(sources) - set(named))
        raise UserError(f"config.data: expected features of all sources or of none; found none of {', '.join(without)}")
    return {
        name: Features(run_path.of(own["features"]), encoder_settings(config.model), int(own["cache_gib"] * 2**30))
        for name, own in named.items()
    }
