"""Stored features: what the frozen encoders make of a dataset, computed once, read in place of its videos.

`python -m motus_jax.data encode` writes them (layout: `motus_jax.data.feature_files`). Training reads them when
`config.data.features` names the folder, after checks that they are of the same data and by the same encoders. Sampling
and evaluation go on reading pixels.
"""

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Int

from motus_jax.data import feature_files, run_path
from motus_jax.data.contract import Contract
from motus_jax.errors import UserError

ARRAYS = {"video_codec": ("latents",), "text_encoder": ("text_states",), "vlm": ("vlm_states", "vlm_mask")}
"""Frozen part -> what it makes, under the names of `motus_jax.data.example`."""
CONDITION = "frames"
"""The condition frame, kept in place of the states of a `vlm` that is being trained."""
FREE = frozenset({"action_space", "normalisation", "state_dim", "action_dim", "state", "action", "end_policy"})
"""Fields of the contract that no feature depends on."""

Arrays = dict[str, np.ndarray]


def encoder_settings(model: Any) -> dict[str, Any]:
    """Frozen part -> its settings as JSON, from `config.model`."""
    return {part: json.loads(json.dumps(model[part].to_dict())) for part in sorted(model.frozen) if part in ARRAYS}


class Features:
    """A complete folder of features as a run reads it; `arguments` open it again, in another process.

    Args:
      folder: of `python -m motus_jax.data encode`.
      encoders: the run's frozen parts and their `config.model`, as JSON; the features of these are read, no others.
      cache_bytes: memory for states of instructions.

    Raises:
      UserError: nothing is frozen, no such folder, it is incomplete or of another format, or it has no features of a
        part or those of another encoder.
    """

    def __init__(self, folder: run_path.Home, encoders: Mapping[str, Any], cache_bytes: int) -> None:
        if not encoders:
            raise UserError(
                f"config.data.features: {folder} stands in for frozen encoders; expected some in config.model.frozen,"
                " found none: freeze them or leave config.data.features empty"
            )
        self.arguments = (folder, encoders, cache_bytes)
        self.folder, self.index = folder, feature_files.read_index(folder)
        self._check_encoders(encoders)
        wanted = [name for part in encoders for name in ARRAYS[part]] + [CONDITION] * ("vlm" not in encoders)
        for _, _, file in self.index.blocks(folder):
            if not file.exists():  # now, not after a day of training
                raise feature_files.encode_again(file, "this file of features", "no such file")
        self._tables = {name: feature_files.Reader(folder, name, self.index, wanted) for name in self.index.tables}
        if "text_encoder" in encoders:
            self._number = {text: number for number, text in enumerate(self.index.instructions)}
            keep = max(1, cache_bytes // feature_files.record_bytes(self.index.tables[feature_files.TEXTS].arrays))
            self._text = functools.lru_cache(keep)(self._read_text)
        else:
            self._text = lambda text: {}

    def _read_text(self, text: str) -> Arrays:
        return self._tables[feature_files.TEXTS](self._number[text])

    def _check_encoders(self, encoders: Mapping[str, Any]) -> None:
        index = self.index
        for part in sorted(encoders):
            if part not in index.encoders:
                raise self._refusal(f"of {part}, which config.model.frozen names", ", ".join(index.encoders))
            if index.encoders[part] != encoders[part]:
                raise self._refusal(f"made with config.model.{part} {encoders[part]}", f"{index.encoders[part]}")
        if "vlm" not in encoders and "vlm" in index.encoders:
            raise self._refusal("with the condition frames that a trained vlm reads", "those of a frozen vlm")

    def check_weights(self, fingerprints: Mapping[str, str]) -> None:
        """Refuses features that other weights than the run's own have made (`fingerprints` by part)."""
        for part, expected in fingerprints.items():
            found = self.index.fingerprints[part]
            if found != expected:
                raise self._refusal(f"by the weights of {part} of this run, {expected}", f"those by {found}")

    def split(
        self, name: str, contract: Contract, facts: Mapping[str, Any], starts: Int[np.ndarray, "n 2"],
        tokens: Mapping[str, Mapping[str, np.ndarray]],
    ) -> Callable[[int, str], Arrays]:  # fmt: skip
        """What gives the arrays of (row of `starts`, instruction), after a check that they are of these data.

        Args:
          name: of the split.
          contract, facts: of the data.
          starts: (episode, row) of every chunk.
          tokens: instruction -> its text fields.

        Raises:
          UserError: the features are of other data; a damaged file, when it is read.
        """
        theirs = Contract.from_json(self.index.contract)
        theirs.check(contract, expected_in=f"the features in {self.folder}", ignore=FREE)
        other = sorted(key for key in facts if facts[key] != self.index.dataset.get(key))
        if other:
            key = other[0]
            raise self._refusal(f"of this dataset, with {key} {facts[key]}", self.index.dataset.get(key))
        if self.index.tables[name].digest != feature_files.digest(starts):
            raise self._refusal(f"of the {len(starts)} chunks of split {name!r}", "those of others")
        for text, fields in tokens.items():
            if self.index.instructions.get(text) != feature_files.digest(*fields.values()):
                found = "other tokens" if text in self.index.instructions else "no such instruction"
                raise self._refusal(f"of the instruction {text!r} in this tokenizer's tokens", found)
        return lambda row, text: self._tables[name](row) | self._text(text)

    def fitted(self) -> dict[str, Any]:
        """The parameters that were fitted to the data when they were encoded, as a tree of host arrays."""
        return feature_files.load_fitted(self.folder) if self.index.fitted else {}

    def _refusal(self, expected: str, found: Any) -> UserError:
        return UserError(
            f"config.data.features: {self.folder}: expected features {expected}; found {found}: encode again with this"
            " config, into another folder"
        )
