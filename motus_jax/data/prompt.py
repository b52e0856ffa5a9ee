"""The prompt around an instruction and the chat around both: the same for training, evaluation and serving."""

import re

from motus_jax.errors import UserError

# "scene" is the wording that the public RoboTwin checkpoint was trained with: its weights expect these exact words
# (three ALOHA cameras), so they are data here, not prose.
TEMPLATES = {
    "plain": "{instruction}",
    "scene": (
        "The whole scene is in a realistic, industrial art style with three views: a fixed rear camera, a movable left "
        "arm camera, and a movable right arm camera. The aloha robot is currently performing the following task: "
        "{instruction}"
    ),
}

IMAGE_TOKEN = "<|image_pad|>"
"""Stands once for an image in a chat; repeated for each of its features when tokenised."""

_IMAGE = f"<|vision_start|>{IMAGE_TOKEN}<|vision_end|>"
CHATS = {
    "train": f"<|im_start|>user\n{_IMAGE}{{prompt}}<|im_end|>\n<|im_start|>assistant\n",
    "deploy": f"<|im_start|>user\n{{prompt}}{_IMAGE}<|im_end|>\n",
}
"""Qwen3-VL's chat of one user turn with one image, without a system turn. The public release trains with `train` and
evaluates with `deploy`; its weights have seen `train`."""


def build_prompt(instruction: str, template: str = "plain") -> str:
    """The text that the model reads for `instruction`.

    Args:
      instruction: what the robot is to do; white space at its ends and doubled inside is dropped.
      template: a name in `TEMPLATES`; it is part of the contract of a checkpoint.

    Raises:
      UserError: unknown template.
    """
    if template not in TEMPLATES:
        raise UserError(f"prompt template: expected one of {', '.join(TEMPLATES)}; found {template!r}")
    return TEMPLATES[template].format(instruction=" ".join(instruction.split()))


def prefix_bytes(template: str) -> int:
    """How many bytes of the prompt stand before the instruction: the instruction length must exceed this."""
    return len(build_prompt("", template).encode("utf-8"))


def build_chat(prompt: str, chat: str = "train") -> str:
    """The text that Qwen3-VL reads for a prompt and one image.

    Args:
      prompt: from `build_prompt`.
      chat: a name in `CHATS`.

    Raises:
      UserError: unknown chat, or a prompt that contains one of the chat's own markers.
    """
    if chat not in CHATS:
        raise UserError(f"chat: expected one of {', '.join(CHATS)}; found {chat!r}")
    if marker := re.search(r"<\|\w+\|>", prompt):
        raise UserError(f"prompt {prompt!r}: expected plain text, found the chat marker {marker[0]!r}; remove it")
    return CHATS[chat].format(prompt=prompt)
