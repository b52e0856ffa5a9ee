"""The one schema every data source produces and everything else reads."""

from typing import NotRequired, TypedDict

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8


class Example(TypedDict):
    """One moment of one episode: what the robot sees, what it does next and what that looks like.

    A batch has the same keys with one leading axis B. Letters: Nf future video frames, H W picture size in pixels,
    P state dim, A action dim, T actions in a chunk, L instruction length.

    Attributes:
      frames: the condition frame, then Nf future frames, RGB 0..255; the cameras tiled into one picture
        (`motus_jax.data.cameras`). Frame 0 is at time c, frame j at c + j / video_hz seconds. With features the
        condition frame alone, or absent.
      flow: with `data.flow` only: motion from the condition frame to the first future frame, in pixels to the right and
        down.
      unseen: where the picture shows no camera because the episode lacks it (`data.missing_cameras`): top, left, bottom
        and right of each such place, as shares of the picture's height and width; zeros for cameras that are there. The
        video carries no loss there.
      state: joint state at c, normalised; dims that the robot lacks are 0.
      state_mask: True for dims that the robot has; nowhere where the source has no states.
      actions: action i is the joint target for c + (i + 1) / action_hz seconds, in the action space of the contract,
        normalised; dims that the robot lacks are 0. In the space "latent", the latent action of the motion that begins
        at c + i / action_hz.
      action_mask: True where `actions` holds a real value: False for dims that the robot lacks, everywhere where the
        source has no actions. Steps beyond the episode's end repeat its last action and are real under the end policy
        "hold", False under "mask".
      instruction: tokens of the prompt, 0 where there is no text: bytes plus one (`motus_jax.data.tokenizer`) or those
        of umT5.
      instruction_mask: True where there is text.
      chat, chat_mask, chat_positions: with `data.chat` only: tokens of Qwen3-VL's chat around the prompt and the
        condition frame, where they are real, and their rotary positions (time, row, column).
      episode: index of the episode in its dataset.
      frame: the row c of the episode at which the chunk starts.
      source: which source of a mixture the example is from, in the order of their names; 0 when there is one.
      layer: layer of the data pyramid, 1 (web video) to 6 (target robot).
      embodiment: which robot of a mixture; 0 when there is one.
      latents: with features only (`motus_jax.data.features`), like the next three: latents of `frames`.
      text_states: states of the instruction, zero where there is no text.
      vlm_states, vlm_mask: states of condition frame and instruction, and where they are real.
      raw_state: evaluation only: the robot's own state at c, in its units (radians for joints), unpadded.
      raw_actions: evaluation only: absolute joint targets of the chunk, in the robot's units, unpadded.
      valid: evaluation only: False for a record that only fills up the last batch.
    """

    frames: NotRequired[UInt8[np.ndarray, "1+Nf H W 3"]]
    flow: NotRequired[Float[np.ndarray, "H W 2"]]
    unseen: Float[np.ndarray, "3 4"]
    state: Float[np.ndarray, "P"]
    state_mask: Bool[np.ndarray, "P"]
    actions: Float[np.ndarray, "T A"]
    action_mask: Bool[np.ndarray, "T A"]
    instruction: Int[np.ndarray, "L"]
    instruction_mask: Bool[np.ndarray, "L"]
    episode: np.int32
    frame: np.int32
    source: np.int32
    layer: np.int32
    embodiment: np.int32
    chat: NotRequired[Int[np.ndarray, "Lc"]]
    chat_mask: NotRequired[Bool[np.ndarray, "Lc"]]
    chat_positions: NotRequired[Int[np.ndarray, "Lc 3"]]
    latents: NotRequired[Float[np.ndarray, "F h w C"]]
    text_states: NotRequired[Float[np.ndarray, "L V"]]
    vlm_states: NotRequired[Float[np.ndarray, "U E"]]
    vlm_mask: NotRequired[Bool[np.ndarray, "U"]]
    raw_state: NotRequired[Float[np.ndarray, "Pr"]]
    raw_actions: NotRequired[Float[np.ndarray, "T Ar"]]
    valid: NotRequired[np.bool_]
