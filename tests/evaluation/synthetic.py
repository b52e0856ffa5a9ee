"""A tiny world for the evaluation's tests: a bright square that two joints move over a textured picture.

States are positions, actions are absolute targets (all normalised by 1), and the future follows from the actions alone,
so that an oracle is easy to write and every cheat is known.
"""

import jax
import numpy as np

from motus_jax.data.contract import Affine, Contract
from motus_jax.evaluation.held_out import ActionUnits

SIZE, PADDING, STEPS, FUTURE = 32, 4, 4, 2
SCALE = np.array([2.0, 2.0, 0.5])


def chunks(episodes: int, per_episode: int, seed: int) -> dict[str, np.ndarray]:
    """A batch dictionary of `episodes * per_episode` chunks; episode numbers start at 100 * seed."""
    rng = np.random.default_rng(seed)
    n = episodes * per_episode
    state = rng.uniform(-1, 1, (n, 3)).astype(np.float32)
    velocity = rng.uniform(-0.3, 0.3, (n, 1, 3))
    actions = (state[:, None] + velocity * np.arange(1, STEPS + 1)[:, None]).astype(np.float32)
    episode = 100 * seed + np.repeat(np.arange(episodes), per_episode)
    batch = {
        "state": state,
        "actions": actions,
        "action_mask": np.ones((n, STEPS, 3), bool),
        "raw_state": state * SCALE.astype(np.float32),
        "raw_actions": actions * SCALE,
        "instruction": np.ones((n, 5), np.int32),
        "instruction_mask": np.ones((n, 5), bool),
        "episode": episode.astype(np.int32),
        "frame": np.tile(np.arange(per_episode, dtype=np.int32), episodes),
        **{key: np.zeros(n, np.int32) for key in ("source", "layer", "embodiment")},
    }
    start = np.stack([draw(texture, position) for texture, position in zip(textures(episode), state)])
    batch["frames"] = np.concatenate([start[:, None], render(textures(episode), actions)], axis=1)
    return batch


def textures(episodes: np.ndarray) -> np.ndarray:
    """The background of each episode [n, SIZE, SIZE, 3]."""
    return np.stack([np.random.default_rng(int(e)).integers(20, 90, (SIZE, SIZE, 3)) for e in episodes])


def draw(texture: np.ndarray, position: np.ndarray) -> np.ndarray:
    """The picture [SIZE, SIZE, 3] with the square at `position`, black below."""
    picture = texture.astype(np.uint8).copy()
    x, y = np.clip((position[:2] * 0.4 + 0.5) * (SIZE - 8), 0, SIZE - PADDING - 8).astype(int)
    picture[y : y + 8, x : x + 8] = 230
    picture[SIZE - PADDING :] = 0
    return picture


def render(backgrounds: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """The future frames [n, FUTURE, SIZE, SIZE, 3]: frame j at the time of action 2 (j + 1) - 1."""
    every = actions.shape[1] // FUTURE
    return np.stack([[draw(b, a[every * (j + 1) - 1]) for j in range(FUTURE)] for b, a in zip(backgrounds, actions)])


def units() -> ActionUnits:
    """Two joints in radians and a gripper."""
    return ActionUnits.of(contract())


def oracle(mode: str, batch: dict[str, np.ndarray], key) -> dict[str, np.ndarray]:
    """Knows the answer up to noise; its video follows the actions it is given, as a world model's should."""
    del mode
    noise = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    future = render(textures(batch["episode"]), batch["actions"])
    video = np.concatenate([batch["frames"][:, :1], future], axis=1) / 255.0
    return {
        "video": np.clip(video + noise.normal(0, 0.01, video.shape), 0, 1),
        "actions": batch["actions"] + noise.normal(0, 0.02, batch["actions"].shape),
    }


def copy_last(mode: str, batch: dict[str, np.ndarray], key) -> dict[str, np.ndarray]:
    """Cheats: repeats the condition frame and holds the state."""
    del mode, key
    frames = np.repeat(batch["frames"][:, :1], batch["frames"].shape[1], axis=1) / 255.0
    return {"video": frames, "actions": np.repeat(batch["state"][:, None], STEPS, axis=1)}


def deaf(mode: str, batch: dict[str, np.ndarray], key) -> dict[str, np.ndarray]:
    """Cheats: the true future whatever the actions say."""
    return {**oracle(mode, batch, key), "video": batch["frames"] / 255.0}


def contract() -> Contract:
    """The contract of this world: absolute actions, normalised by `SCALE`."""
    return Contract(
        action_hz=10.0, video_hz=5.0, chunk=STEPS, video_frames=FUTURE, state_dim=3, action_dim=3, cameras=("top",),
        image_size=(SIZE, SIZE), action_space="absolute", normalisation="meanstd",
        state=Affine((0.0,) * 3, tuple(SCALE)), action=Affine((0.0,) * 3, tuple(SCALE)),
        prompt_template="plain", instruction_length=5,
        action_names=("shoulder", "elbow", "gripper"),
    )  # fmt: skip
