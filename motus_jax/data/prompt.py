"""The prompt around an instruction: one function for training, evaluation and serving."""

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
