"""One split of one source, as examples for the model (`motus_jax.data.mixture.make_dataset`)."""

import bisect
import dataclasses
import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8
from ml_collections import ConfigDict

from motus_jax.data import storage
from motus_jax.data.action_space import ACTION_SPACES, action_space
from motus_jax.data.augmentation import Augmentation
from motus_jax.data.contract import Affine, Contract
from motus_jax.data.example import Example
from motus_jax.data.features import Features
from motus_jax.data.frame_store import FrameStore
from motus_jax.data.optical_flow import make_estimator
from motus_jax.data.prompt import prefix_bytes
from motus_jax.data.sampling import Timing
from motus_jax.data.source import Rows, Source
from motus_jax.data.sources import open_source
from motus_jax.data.statistics import Statistics, load_or_compute
from motus_jax.data.texts import BYTES, Texts, tokenizer_name
from motus_jax.errors import UserError

DEFAULTS: dict[str, Any] = {
    "kind": "lerobot",  # format of the source, a key of motus_jax.data.sources.SOURCES
    "path": "datasets/aloha_sim",  # its folder or file, local or gs://
    "options": {},  # of that format
    "episodes": 0,  # of its training split, one out of each of as many equal stretches; 0: all
    "hide_actions": False,  # whether examples carry no actions, as those of videos
    "cameras": ("top", "left_wrist", "right_wrist"),  # main camera first
    "missing_cameras": "refuse",  # an episode that lacks one of them is broken; or black: its place stays black
    "image_size": (112, 96),  # (H, W) of the tiled picture
    "action_hz": 10.0,
    "video_hz": 5.0,
    "chunk": 16,  # actions T
    "video_frames": 8,  # future frames Nf
    "starts": "inside",  # chunks start where all of them is inside the episode; or all: at every row
    "end_policy": "hold",  # actions beyond the episode's end repeat its last; or mask: they carry no loss
    "state_dim": 14,  # of the model; a robot with fewer is padded and masked
    "action_dim": 14,
    "action_space": "delta",
    "normalisation": "meanstd",
    "instruction_length": 64,
    "prompt_template": "plain",  # a template of motus_jax.data.prompt
    "text_tokenizer": "bytes",  # or umT5's tokenizer.json, or the folder that holds it
    "chat": "",  # a chat of motus_jax.data.prompt, for Qwen3-VL
    "chat_length": 0,  # tokens of a chat
    "chat_tokenizer": "",  # Qwen3-VL's tokenizer.json, or the folder that holds it
    "flow": "",  # an estimator of motus_jax.data.optical_flow: examples have the motion up to the first future frame
    "augment": {},  # of the pictures in training (motus_jax.data.augmentation)
    "features": "",  # folder of stored features, which training reads in place of the videos
    "statistics": "",  # file of statistics; beside the dataset when empty
    "layer": 6,  # of the data pyramid: 6 is the target robot
    "weight": 1.0,  # of the source in a mixture, within its layer
    "embodiment": "",  # sources that name the same one share an index; by default each has its own
    "layers": {},  # of a mixture: layer -> weight; without it sources are weighed by their own weights alone
    "sources": {},  # name -> what differs from the rest of config.data; empty: one source, as above
    "broken_limit": 0.01,  # share of drawn examples that may be broken before training stops
    "cache_gib": 2.0,  # memory for decoded episodes
    "threads": 2,  # threads that assemble batches, in every worker
    "workers": 0,  # processes that assemble batches; 0: only threads of this one
    "prefetch": 4,  # batches assembled ahead
}

_log = logging.getLogger(__name__)


class Dataset:
    """One split of one source, as examples.

    Attributes:
      settings: `config.data` with every key filled in.
      source: the tables and videos.
      episodes: episode indices of the split.
      timing: rates and chunk length.
      spec: the contract as an object; `contract()` gives it as JSON.
      texts: makes the text fields of an example.
      numbers: (source, layer, embodiment) of its examples.
      features: read in place of the videos, if any.
    """

    def __init__(
        self, settings: Mapping[str, Any], split: str, contract: Contract | None = None,
        features: Features | None = None, numbers: tuple[int, int] = (0, 0),
    ):  # fmt: skip
        """One split of the source that the settings name.

        Args:
          settings: `config.data` as the source sees it, with every key filled in.
          split: "train" or "test" (held out); see `Source.split`.
          contract: a checkpoint's contract; the data must agree with it, and its normalisation numbers are used in
            place of the source's own, so that a model meets foreign data in the units that it was trained in.
          features: read in place of the videos. Only training gives them: the key "features" alone does nothing, so
            that what reads the config of a checkpoint gets pixels.
          numbers: of the source and of its embodiment.

        Raises:
          UserError: a missing or contradictory source, an unknown camera, a robot with more dims than the model, or
            data that break the contract or are not those of the features.
        """
        self.settings = settings
        self.source: Source = open_source(settings["kind"], settings["path"], settings["options"])
        self.episodes = self._chosen(split)
        self.timing = timing_of(settings, self.source)
        self.numbers = (numbers[0], int(settings["layer"]), numbers[1])
        size = settings["image_size"]
        memory = int(float(settings["cache_gib"]) * 2**30)
        self._store = FrameStore(self.source, settings["cameras"], size, memory, settings["missing_cameras"])
        self._own = contract is None
        self.spec = self._given_spec(contract) if contract is not None else self._own_spec()
        self._warn()
        self.texts = Texts(self.spec, settings)
        self._unseen = functools.lru_cache(maxsize=None)(self._store.unseen)
        self._augmentation = Augmentation(settings["augment"])
        self._flow = make_estimator(settings["flow"]) if settings["flow"] else None
        counts = [len(self.timing.starts(self.source.times(episode))) for episode in self.episodes]
        self._ends = np.cumsum(counts, dtype=np.int64)
        self.features, self._features = features, None
        if features is not None:
            if settings["augment"]:
                raise UserError("config.data.augment: expected none with config.data.features, whose pictures are seen")
            if settings["flow"]:
                raise UserError("config.data.flow: expected none with config.data.features, which have no pictures")
            tokens = {text: self.texts(text) for text in self.instructions}
            self._features = features.split(split, self.spec, self.source.facts(), self.starts, tokens)

    def _chosen(self, split: str) -> list[int]:
        """The episodes of a split, of the training one as many as the setting says.

        One is drawn out of each of as many equal stretches: at equal distances, a recording in which two tasks take
        turns could give episodes of one of them only.

        Raises:
          UserError: there are none, or not as many.
        """
        found, wanted = self.source.split(split), int(self.settings["episodes"])
        if not found:
            raise UserError(f"split {split!r} in {self.source.path}: expected at least one episode; found none")
        if split != "train" or not wanted:
            return found
        if not 0 < wanted <= len(found):
            raise UserError(f"data.episodes: expected 0 to {len(found)}, as {self.source.path} has; found {wanted}")
        within = np.random.default_rng(0).random(wanted)
        return [found[int((k + part) * len(found) / wanted)] for k, part in enumerate(within)]

    def __len__(self) -> int:
        """Chunks of the split."""
        return int(self._ends[-1])

    def place(self, chunk: int) -> tuple[int, int]:
        """(episode, row) of a chunk's start; chunks are numbered in order of episodes, then rows."""
        k = int(np.searchsorted(self._ends, chunk, side="right"))
        return self.episodes[k], int(chunk - (self._ends[k - 1] if k else 0))

    @property
    def chunks_by_episode(self) -> list[int]:
        """Chunks of each of `episodes`."""
        return np.diff(self._ends, prepend=0).tolist()

    @functools.cached_property
    def starts(self) -> Int[np.ndarray, "n 2"]:
        """(episode, row) of every chunk, int32."""
        chunks = zip(self.episodes, self.chunks_by_episode)
        return np.array([(episode, row) for episode, count in chunks for row in range(count)], np.int32)

    @functools.cached_property
    def statistics(self) -> Statistics:
        """Statistics of the training split: stored ones, or computed now; not needed under a given contract."""
        file = self.settings["statistics"]
        path = storage.path(file) if file else None
        return load_or_compute(self.source, self.timing, path, self.settings["action_space"])

    @property
    def needs_statistics(self) -> bool:
        """Whether the normalisation is made from the data: none is given, and there is something to scale."""
        return self._own and self.settings["normalisation"] != "none" and any(self._widths())

    def share_statistics(self, statistics: Statistics) -> None:
        """Takes the normalisation from statistics of all sources of the embodiment instead of this one's alone."""
        self.statistics = statistics
        self.spec = self._own_spec()

    def share_numbers(self, contract: Contract) -> None:
        """Takes the normalisation from the contract of another source of the embodiment."""
        self._own = False
        self.spec = dataclasses.replace(self.spec, state=contract.state, action=contract.action)

    @property
    def instructions(self) -> list[str]:
        """Every instruction of the source, of both splits, and the empty one if it may lack."""
        return self.source.all_texts() or [""]

    def contract(self) -> dict[str, Any]:
        """Everything that sampling and serving must match, as JSON (`motus_jax.data.contract.Contract`)."""
        return self.spec.to_json()

    def preload(self, episodes: Sequence[int] | None = None) -> None:
        """Decodes videos of the given episodes (all of the split) into memory, as far as `data.cache_gib` allows.

        With features there is nothing to decode.
        """
        if self._features is None:
            self._store.preload(self.episodes if episodes is None else episodes, int(self.settings["threads"]))

    def hold(self, episodes: Sequence[int]) -> None:
        """Keeps the pictures of these episodes in memory and of no others (`FrameStore.keep_only`)."""
        self._store.keep_only(episodes, int(self.settings["threads"]))

    def example(self, episode: int, frame: int, random: np.random.Generator | None = None) -> Example:
        """The example whose chunk starts at row `frame` of `episode`, any row; beyond the end the last row is held.

        With features only rows of `starts`.

        Args:
          random: chooses among equal instructions and augments the pictures; without it, the first and not at all.

        Raises:
          BrokenData: the video, the table or a file of features is missing or broken.
          UserError: episode or frame out of range.
        """
        length = self.source.episode(episode).length
        if not 0 <= frame < length:
            raise UserError(f"frame {frame} of episode {episode}: expected 0 to {length - 1}; found no such frame")
        rows, spec = self.source.rows(episode), self.spec
        state = rows.state[frame]
        actions = spec.normalise_actions(self._raw_actions(rows, frame), state)
        real = np.arange(spec.action_dim) < spec.robot_action_dim
        steps = np.full(len(actions), not self.settings["hide_actions"])
        if spec.end_policy == "mask":
            steps = steps & self.timing.within(frame, rows)
        if spec.latent:
            steps = steps & ACTION_SPACES[spec.action_space].known(self.timing.sample_has_latent(rows, frame))
        instruction = self.source.instruction(episode, frame, 0 if random is None else int(random.integers(1 << 30)))
        source, layer, embodiment = self.numbers
        return Example(
            **self._sights(episode, frame, instruction, random),
            unseen=self._unseen(episode),
            state=spec.normalise_state(state),
            state_mask=np.arange(spec.state_dim) < spec.robot_state_dim,
            actions=actions,
            action_mask=steps[:, None] & real,
            **self.texts(instruction),
            episode=np.int32(episode),
            frame=np.int32(frame),
            source=np.int32(source),
            layer=np.int32(layer),
            embodiment=np.int32(embodiment),
        )

    def _sights(
        self, episode: int, frame: int, instruction: str, random: np.random.Generator | None
    ) -> dict[str, np.ndarray]:
        """The frames, or what encoders made of them and of the instruction."""
        if self._features is None:
            frames = self._store.frames(episode, self.timing.frame_rows(frame, self.source.times(episode)))
            frames = frames if random is None else self._augmentation(frames, random)
            return {"frames": frames} | ({"flow": self._flow(frames[:1], frames[1:2])[0]} if self._flow else {})
        k = bisect.bisect_left(self.episodes, episode)
        before = int(self._ends[k - 1]) if k else 0
        count = int(self._ends[k]) - before
        if frame >= count:
            raise UserError(f"features of episode {episode}: expected a start, 0 to {count - 1}; found {frame}")
        return self._features(before + frame, instruction)

    def pictures(self, episode: int, rows: Sequence[int]) -> UInt8[np.ndarray, "n H W 3"]:
        """Rows of an episode as the model sees them, not augmented.

        Raises:
          BrokenData: the video is missing or broken.
        """
        return self._store.frames(episode, np.asarray(rows))

    def expect(self, episode: int, frame: int) -> None:
        """Says that the example of a row will be asked for soon: a remote source begins to fetch its pictures."""
        if self._features is None and self.source.fetches_ahead:
            self._store.expect(episode, self.timing.frame_rows(frame, self.source.times(episode)))

    def raw_state(self, episode: int, frame: int) -> Float[np.ndarray, "Pr"]:
        """The robot's state at a row, in its units (radians for joints)."""
        return self.source.rows(episode).state[frame]

    def raw_actions(self, episode: int, frame: int) -> Float[np.ndarray, "T Ar"]:
        """Absolute joint targets of the chunk that starts at a row, in the robot's units; or latent actions; or changes
        from step to step, in the spaces of these."""
        return self._raw_actions(self.source.rows(episode), frame)

    def _raw_actions(self, rows: Rows, frame: int) -> Float[np.ndarray, "T Ar"]:
        space = ACTION_SPACES[self.spec.action_space]
        if space.latent:
            return self.timing.sample_latents(rows, frame)
        if space.targets is not None:
            return self.timing.sample_changes(rows, frame, space.targets)
        return self.timing.sample_actions(rows, frame)

    def denormalise_actions(
        self, actions: Float[np.ndarray, "*B T A"], raw_state: Float[np.ndarray, "*B Pr"]
    ) -> Float[np.ndarray, "*B T Ar"]:
        """The model's actions -> absolute joint targets in the robot's units."""
        return self.spec.denormalise_actions(actions, raw_state)

    def _widths(self) -> tuple[int, int]:
        """Dims of the source's state and of what the model is to predict as its action."""
        space = action_space(self.settings["action_space"], self.source.state_dim, self.source.action_dim)
        raw = self.source.latent_dim if space.latent else self.source.action_dim
        return self.source.state_dim, space.encoded_width(raw)

    def _given_spec(self, contract: Contract) -> Contract:
        """The contract of a checkpoint, after a check that the data can keep it."""
        found = self._spec(*(Affine((0.0,) * width, (1.0,) * width) for width in self._widths()))
        contract.check(found, found_in=str(self.source.path), numbers=False)
        return contract

    def _own_spec(self) -> Contract:
        """The contract that these data and this config make."""
        space, kind = self.settings["action_space"], self.settings["normalisation"]
        if not self.needs_statistics:
            return self._spec(*(Affine((0.0,) * width, (1.0,) * width) for width in self._widths()))
        numbers = self.statistics
        return self._spec(numbers.affine(numbers.state, kind), numbers.affine(numbers.actions[space], kind))

    def _spec(self, state: Affine, action: Affine) -> Contract:
        settings = self.settings
        length, template = int(settings["instruction_length"]), settings["prompt_template"]
        if tokenizer_name(settings) == BYTES and length <= prefix_bytes(template):
            raise UserError(
                f"data.instruction_length: expected more than the {prefix_bytes(template)} bytes that template "
                f"{template!r} puts before the instruction; found {length}"
            )
        return Contract(
            action_hz=self.timing.action_hz,
            video_hz=self.timing.video_hz,
            chunk=self.timing.chunk,
            video_frames=self.timing.video_frames,
            state_dim=int(settings["state_dim"]),
            action_dim=int(settings["action_dim"]),
            cameras=tuple(settings["cameras"]),
            image_size=(int(settings["image_size"][0]), int(settings["image_size"][1])),
            action_space=settings["action_space"],
            normalisation=settings["normalisation"],
            state=state,
            action=action,
            prompt_template=template,
            instruction_length=length,
            tokenizer=tokenizer_name(settings),
            chat=settings["chat"],
            chat_length=int(settings["chat_length"]),
            end_policy=settings["end_policy"],
            robot=self.source.robot,
            state_names=self.source.state_names,
            action_names=self.source.action_names,
        )

    def _warn(self) -> None:
        """Says what is odd about this robot's numbers."""
        spec, source = self.spec, self.settings["path"]
        if self.needs_statistics:
            quantities = {
                "state": (self.statistics.state, spec.state_names),
                "action": (self.statistics.actions[spec.action_space], spec.action_names),
            }
            for name, (moments, names) in quantities.items():
                still = self.statistics.near_constant(moments)
                # Latent actions have no names.
                dims = [names[k] if len(names) == len(moments.mean) else str(k) for k in still]
                if dims:
                    _warn_once(f"{source}: {name} hardly moves in {', '.join(dims)}; their scale is bounded")
        if 0 < spec.robot_action_dim < spec.action_dim:
            _warn_once(
                f"{source}: the robot has {spec.robot_action_dim} of the model's {spec.action_dim} action dims; "
                "the rest is masked"
            )


@functools.cache
def _warn_once(message: str) -> None:
    """A run opens a source several times: for training, validation and evaluation."""
    _log.warning("%s", message)


def timing_of(settings: Mapping[str, Any], source: Source) -> Timing:
    """The model's rates and chunk, after a check that the source has enough frames a second.

    Raises:
      UserError: it has fewer, or the settings are no rates.
    """
    rates = (float(settings["action_hz"]), float(settings["video_hz"]))
    timing = Timing(*rates, int(settings["chunk"]), int(settings["video_frames"]), settings["starts"])
    if timing.video_hz > source.fps * 1.001:  # 29.97 gives 30
        raise UserError(
            f"data.video_hz: expected at most the {source.fps:g} frames/s of {source.path}; found {timing.video_hz:g}"
        )
    return timing


def complete(data_config: Mapping[str, Any]) -> dict[str, Any]:
    """`config.data` with every key filled in.

    Raises:
      UserError: unknown key.
    """
    given = data_config.to_dict() if isinstance(data_config, ConfigDict) else dict(data_config)
    unknown = sorted(set(given) - set(DEFAULTS))
    if unknown:
        raise UserError(f"config.data.{unknown[0]}: unknown key; expected one of {', '.join(DEFAULTS)}")
    return DEFAULTS | given
