"""Sizes of the model as frozen dataclasses, and the table of named variants."""

import dataclasses
from collections.abc import Mapping

from motus_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class VideoExpertConfig:
    """Wan2.2 DiT (`wan_ti2v_5B.py`). Width = heads x head_dim.

    For training from scratch: `locality` is the strength of `layers.locality_bias` at initialisation, `places` whether
    tokens know where in the picture they are, by a learned vector a place (all frames share it), as suits cameras that
    stand still. Wan has neither.
    """

    heads: int
    head_dim: int
    mlp: int
    latent_channels: int
    text_width: int
    frequencies: int = 256
    patch: tuple[int, int, int] = (1, 2, 2)
    eps: float = 1e-6
    locality: float = 0.0
    places: bool = False

    @property
    def width(self) -> int:
        return self.heads * self.head_dim


@dataclasses.dataclass(frozen=True)
class ActionExpertConfig:
    """Action expert. With `state_dim` None it is the action-only form of phase 2: no state token, no registers."""

    width: int
    mlp: int
    action_dim: int
    state_dim: int | None
    registers: int = 4
    frequencies: int = 256
    eps: float = 1e-5

    @property
    def with_state(self) -> bool:
        return self.state_dim is not None


@dataclasses.dataclass(frozen=True)
class UnderstandingExpertConfig:
    """Understanding expert, fed by hidden states of width `input_width` from a vision-language model."""

    width: int
    mlp: int
    input_width: int
    eps: float = 1e-5


@dataclasses.dataclass(frozen=True)
class MotusConfig:
    """The three experts and what they share.

    Attributes:
      depth: layers, the same for all experts.
      dtype: of matrix products and attention; parameters and residual streams are float32.
      attention: a row of `motus_jax.models.attention.KERNELS`, for the joint attention and that to the text; where the
        platform does not have it, `xla`.
      remat: a row of `motus_jax.models.motus.REMAT_POLICIES`.
      mask_text_padding: False reproduces the public weights, which attend to padded text rows (Wan does so too).
      clean_condition_timestep: True tells the condition frame's tokens t = 0 (Wan2.2 TI2V); False gives all video
        tokens the noisy timestep, as the public Motus weights were trained.
      video_only: the video expert alone, as Wan was trained and as phase 1 trains it. The other experts have no tokens;
        the velocity of actions is zero.
      trim_last_layer: leaves out what nothing reads after the last layer, where the condition frame and the
        understanding stream serve as keys only. Velocities and gradients are the same. That layer's parameters are
        copied out of the stack: for models of few layers.
      scan_unroll: layers per iteration of the scan; more compiles longer.
    """

    depth: int
    video: VideoExpertConfig
    action: ActionExpertConfig
    understanding: UnderstandingExpertConfig
    dtype: str = "float32"
    attention: str = "xla"
    remat: str = "full"
    mask_text_padding: bool = False
    clean_condition_timestep: bool = False
    video_only: bool = False
    trim_last_layer: bool = False
    scan_unroll: int = 1


VARIANTS: dict[str, MotusConfig] = {
    "debug": MotusConfig(
        depth=2,
        video=VideoExpertConfig(heads=2, head_dim=16, mlp=64, latent_channels=8, text_width=16),
        action=ActionExpertConfig(width=16, mlp=32, action_dim=14, state_dim=14),
        understanding=UnderstandingExpertConfig(width=16, mlp=32, input_width=16),
        mask_text_padding=True,
    ),
    "demo": MotusConfig(
        depth=6,
        video=VideoExpertConfig(heads=4, head_dim=32, mlp=512, latent_channels=48, text_width=64),
        action=ActionExpertConfig(width=96, mlp=384, action_dim=14, state_dim=14),
        understanding=UnderstandingExpertConfig(width=64, mlp=256, input_width=64),
        mask_text_padding=True,
    ),
    "5b": MotusConfig(
        depth=30,
        video=VideoExpertConfig(heads=24, head_dim=128, mlp=14336, latent_channels=48, text_width=4096),
        action=ActionExpertConfig(width=1024, mlp=4096, action_dim=14, state_dim=14),
        understanding=UnderstandingExpertConfig(width=512, mlp=2048, input_width=2048),
        dtype="bfloat16",
    ),
}
"""`5b` is the public 8B layout without its VLM: 4,999,787,712 + 641,527,822 + 253,493,760 parameters."""


def get_variant(name: str, overrides: Mapping[str, object] | None = None) -> MotusConfig:
    """A row of `VARIANTS` with some fields replaced, e.g. `{"depth": 4, "action": {"action_dim": 7}}`.

    Raises:
      UserError: the variant or a field does not exist.
    """
    if name not in VARIANTS:
        raise UserError(f"unknown model variant {name!r}: expected one of {', '.join(VARIANTS)}")
    return _replace(VARIANTS[name], overrides or {})


def _replace(config: object, overrides: Mapping[str, object]) -> object:
    names = [field.name for field in dataclasses.fields(config)]
    for name, value in overrides.items():
        if name not in names:
            raise UserError(f"unknown model field {name!r}: {type(config).__name__} has {', '.join(names)}")
        if hasattr(value, "items"):  # a mapping; ConfigDict does not register as one
            value = _replace(getattr(config, name), value)
        config = dataclasses.replace(config, **{name: value})
    return config
