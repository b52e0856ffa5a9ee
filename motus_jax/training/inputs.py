"""What the loop reads, from the dataset that the config names."""

import jax
import ml_collections
import numpy as np

from motus_jax.data import pipeline
from motus_jax.training.loop import Batch, Data

VALIDATION_EXAMPLES = 64
"""Held-out examples per validation (at least one batch): enough to see a trend, few enough to cost a second."""
CODEC_CLIPS = 64
"""Training clips that the frozen video codec is fitted on."""


def open_data(config: ml_collections.ConfigDict) -> Data:
    """The dataset of `config.data` as the loop wants it; every process reads its own part of each batch.

    Raises:
      UserError: a missing or broken dataset, or a config that does not fit it.
    """
    host, hosts = jax.process_index(), jax.process_count()
    train = pipeline.make_dataset(config.data, "train")
    held_out = pipeline.make_dataset(config.data, "test")
    batches = pipeline.make_iterator(train, config.batch_size, config.seed, host=host, hosts=hosts)
    limit = max(1, VALIDATION_EXAMPLES // config.batch_size) * config.batch_size
    names = pipeline.eval_batches(train, 1, 1, config.seed)[0].keys() - {"raw_state", "raw_actions", "valid"}
    local = config.batch_size // hosts

    def part(batch: Batch) -> Batch:
        return {name: batch[name][host * local : (host + 1) * local] for name in names}

    validation = [part(batch) for batch in pipeline.eval_batches(held_out, config.batch_size, limit, config.seed)]

    def codec_frames() -> np.ndarray:
        return np.concatenate([b["frames"] for b in pipeline.eval_batches(train, 1, CODEC_CLIPS, config.seed)])

    return Data(batches, validation, codec_frames, train.contract())
