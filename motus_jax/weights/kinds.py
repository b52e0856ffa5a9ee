"""One table: what can be imported and exported, under which names, and where each tensor goes in our trees."""

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from motus_jax.errors import UserError
from motus_jax.models import flow_autoencoder, flow_network
from motus_jax.models.config import MotusConfig, get_variant
from motus_jax.models.flow_autoencoder import FlowAutoencoderConfig
from motus_jax.models.flow_network import FlowNetworkConfig
from motus_jax.models.layers import position_table
from motus_jax.models.text_encoder import XXL, TextEncoderConfig
from motus_jax.models.video_vae import VideoVaeConfig
from motus_jax.models.vlm import QWEN3_VL_2B, VlmConfig
from motus_jax.weights import dc_ae, dpflow, motus, qwen3_vl, tree, umt5, wan, wan_vae
from motus_jax.weights.name_map import LAYOUTS, Rule

FULL = "5b"
"""The variant that the public weights have; encoders exist in this size only."""

FLOW_SIZES = {FULL: "f128c512", "debug": "debug"}
"""Variant -> size of the flow autoencoder; others by name, `{"size": "f64c128"}` as overrides."""

FLOW_NETWORKS = {FULL: "dpflow", "debug": "debug"}
"""The same for the network that estimates flow."""

Spelling = tuple[tuple[str, str], ...]
"""(regex, replacement) rows from the names of one layout to those of the map; the first that matches wins."""


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One leaf of our tree and the public tensors that it is made of.

    Attributes:
      path: `/`-separated.
      layout: a row of `name_map.LAYOUTS`.
      public: shape of each public tensor.
      names: public names, one per layer if `stacked`, else one.
      stacked: whether the leaf has a leading layer axis.
    """

    path: str
    layout: str
    public: tuple[int, ...]
    names: tuple[str, ...]
    stacked: bool

    @functools.cached_property
    def shape(self) -> tuple[int, ...]:
        """Our shape."""
        one = LAYOUTS[self.layout].ours(np.broadcast_to(np.zeros((), np.bool_), self.public)).shape
        return (len(self.names), *one) if self.stacked else one


@dataclasses.dataclass(frozen=True)
class PositionBuffer:
    """A table that public checkpoints store and we compute: [1, rows, width] with `extra` rows besides the actions."""

    name: str
    width: int
    extra: int

    def values(self, chunk: int) -> np.ndarray:
        """The table for `chunk` actions, float32."""
        return position_table(chunk + self.extra, self.width)[None].astype(np.float32)

    def chunk(self, stored: np.ndarray, place: object) -> int:
        """The number of actions that a stored table is for.

        Raises:
          UserError: it is not the table that the model computes; low-precision files may be off by one unit.
        """
        chunk = stored.shape[1] - self.extra if stored.ndim == 3 else 0
        if chunk < 1 or stored.shape != (1, chunk + self.extra, self.width):
            expected = f"(1, T + {self.extra}, {self.width})"
            raise UserError(f"tensor {self.name!r} in {place}: expected shape {expected}, found {stored.shape}")
        limit = max(1e-4, float(jax.numpy.finfo(stored.dtype).eps))
        worst = float(np.abs(stored.astype(np.float32) - self.values(chunk)).max())
        if not worst <= limit:
            raise UserError(
                f"tensor {self.name!r} in {place}: expected the sine-cosine table that the model computes, within"
                f" {limit:.0e}, found a deviation of {worst:.1e}"
            )
        return chunk


@dataclasses.dataclass(frozen=True)
class Part:
    """One subtree of a kind.

    Attributes:
      subtree: its name among our parameter trees.
      leaves: the map.
      dtype: what it is kept in unless the user says otherwise.
      buffer: the table that stands among its public tensors.
      tied: public name -> public name of the same tensor; written by an export, optional in an import.
      counters: public names of integers that nothing is computed from; optional in an import, 0 in an export.
    """

    subtree: str
    leaves: tuple[Leaf, ...]
    dtype: str
    buffer: PositionBuffer | None = None
    tied: Mapping[str, str] = dataclasses.field(default_factory=dict)
    counters: tuple[str, ...] = ()

    def public(self) -> dict[str, tuple[int, ...]]:
        """Public name -> shape of every tensor that must be there; without buffer, tied names and counters."""
        return {name: leaf.public for leaf in self.leaves for name in leaf.names}

    def exported(self, chunk: int) -> dict[str, tuple[int, ...]]:
        """Public name -> shape of everything that an export writes."""
        found = self.public()
        found |= {name: found[first] for name, first in self.tied.items()}
        found |= dict.fromkeys(self.counters, ())
        return found | ({self.buffer.name: self.buffer.values(chunk).shape} if self.buffer else {})

    def abstract(self, dtypes: Mapping[str, Any]) -> dict[str, Any]:
        """The subtree as `jax.ShapeDtypeStruct`s; `dtypes` says the type of every leaf path."""
        return tree.unflatten({leaf.path: jax.ShapeDtypeStruct(leaf.shape, dtypes[leaf.path]) for leaf in self.leaves})


@dataclasses.dataclass(frozen=True)
class Kind:
    """A row of `KINDS`: what it is, its parts for a (variant, overrides), and the layouts it is published in."""

    summary: str
    parts: Callable[[str, Mapping[str, Any]], tuple[Part, ...]]
    spellings: Mapping[str, Spelling]


def leaves(rules: Sequence[Rule], depth: int, prefix: str = "") -> tuple[Leaf, ...]:
    """The leaves of a list of rules whose per-layer tensors are `depth` deep; `prefix` goes before public names."""
    return tuple(
        Leaf(rule.path, rule.layout, rule.shape, tuple(prefix + name for name in rule.names(depth)),
             "{layer}" in rule.source)
        for rule in rules
    )  # fmt: skip


def parts_of(kind: str, variant: str = FULL, overrides: Mapping[str, Any] | None = None) -> tuple[Part, ...]:
    """The parts of a row of `KINDS`.

    Raises:
      UserError: no such kind or variant, or a size that the kind does not have.
    """
    if kind not in KINDS:
        raise UserError(f"unknown kind {kind!r}: expected one of {', '.join(KINDS)}")
    return KINDS[kind].parts(variant, overrides or {})


def rename(name: str, spelling: Spelling) -> str:
    """The map's name of a tensor; one that no row matches stays as it is."""
    for pattern, replacement in spelling:
        if found := re.fullmatch(pattern, name):
            return found.expand(replacement)
    return name


def motus_part(config: MotusConfig) -> Part:
    """The three experts."""
    extra = 2 + config.action.registers if config.action.with_state else 0
    buffer = PositionBuffer(motus.POSITION_BUFFER, config.action.width, extra)
    return Part("motus", leaves(motus.rules(config), config.depth), "float32", buffer)


def wan_part(config: MotusConfig) -> Part:
    """The video expert alone, under Wan's own names."""
    return Part("motus", leaves(wan.rules(config), config.depth), "float32")


def text_part(config: TextEncoderConfig) -> Part:
    """The umT5 encoder."""
    return Part("text_encoder", leaves(umt5.rules(config), config.depth), "bfloat16")


def vlm_part(config: VlmConfig, prefix: str = "") -> Part:
    """The vision-language model; `prefix` goes before its public names."""
    found = [leaf for rules, depth in qwen3_vl.groups(config) for leaf in leaves(rules, depth, prefix)]
    tied = {prefix + name: prefix + first for name, first in qwen3_vl.TIED.items()}
    return Part("vlm", tuple(found), "bfloat16", tied=tied)


def vae_part(config: VideoVaeConfig) -> Part:
    """The video VAE, whose place in the system is `video_codec`; its layers are leaves of their own."""
    return Part("video_codec", leaves(wan_vae.rules(config), 1), "float32")


def flow_part(config: FlowAutoencoderConfig) -> Part:
    """The flow autoencoder; its layers are leaves of their own."""
    found = leaves(dc_ae.rules(config), 0)
    return Part("flow_autoencoder", found, "float32", counters=dc_ae.counters(config))


def flow_network_part(config: FlowNetworkConfig) -> Part:
    """The network that estimates flow."""
    found = [leaf for rules, depth in dpflow.groups(config) for leaf in leaves(rules, depth)]
    return Part("flow_network", tuple(found), "float32")


def _wan(variant: str, overrides: Mapping[str, Any]) -> tuple[Part, ...]:
    return (wan_part(get_variant(variant, overrides)),)


def _finetuned(variant: str, overrides: Mapping[str, Any]) -> tuple[Part, ...]:
    # The releases carry their frozen VLM; our small variants see through a small one of their own.
    vlm = (vlm_part(QWEN3_VL_2B, qwen3_vl.MOTUS_PREFIX),) if variant == FULL else ()
    return (motus_part(get_variant(variant, overrides)), *vlm)


def _action_only(variant: str, overrides: Mapping[str, Any]) -> tuple[Part, ...]:
    without_state = {**overrides.get("action", {}), "state_dim": None, "registers": 0}
    return _finetuned(variant, {**overrides, "action": without_state})


def _flow(variant: str, overrides: Mapping[str, Any]) -> tuple[Part, ...]:
    given = {"size": FLOW_SIZES.get(variant)} | dict(overrides)
    if given.keys() != {"size"} or given["size"] not in flow_autoencoder.VARIANTS:
        raise UserError(
            f"--kind=dc_ae: expected --variant={' or '.join(FLOW_SIZES)}, or --overrides with a size of"
            f" {', '.join(flow_autoencoder.VARIANTS)}, found {variant} with {json.dumps(dict(overrides))}"
        )
    return (flow_part(flow_autoencoder.VARIANTS[given["size"]]),)


def _flow_network(variant: str, overrides: Mapping[str, Any]) -> tuple[Part, ...]:
    if variant not in FLOW_NETWORKS or overrides:
        raise UserError(
            f"--kind=dpflow: expected --variant={' or '.join(FLOW_NETWORKS)} without overrides, found {variant}"
        )
    return (flow_network_part(flow_network.VARIANTS[FLOW_NETWORKS[variant]]),)


def _one_size(kind: str, *parts: Part) -> Callable[[str, Mapping[str, Any]], tuple[Part, ...]]:
    def make(variant: str, overrides: Mapping[str, Any]) -> tuple[Part, ...]:
        if variant != FULL or overrides:
            raise UserError(f"--kind={kind} has one size: expected --variant={FULL} without overrides, found {variant}")
        return parts

    return make


MOTUS_SPELLINGS: dict[str, Spelling] = {
    "Motus": (
        (r"(?:video_module|action_module)\.(video_model\..+)", r"\1"),
        (r"action_module\.(action_expert\..+)", r"\1"),
        (r"und_module\.(und_expert\..+)", r"\1"),
        (r"(?:und_module|action_module)\.(vlm_model\..+)", r"\1"),
    ),
}
"""The release registers its modules several times, so its state dict holds most tensors under two or three names."""

KINDS: dict[str, Kind] = {
    "wan": Kind("Wan2.2-TI2V-5B, the video expert", _wan, wan.SPELLINGS),
    "motus_stage1": Kind("Motus after stage 1: the video expert", _wan, wan.SPELLINGS),
    "motus_stage2": Kind("Motus after stage 2: latent actions, no state", _action_only, MOTUS_SPELLINGS),
    "motus_stage3": Kind("Motus after stage 3: fine-tuned on a robot", _finetuned, MOTUS_SPELLINGS),
    "umt5": Kind("umT5-xxl text encoder of Wan2.2", _one_size("umt5", text_part(XXL)), umt5.SPELLINGS),
    "wan_vae": Kind("Video VAE of Wan2.2", _one_size("wan_vae", vae_part(wan_vae.RELEASE)), wan_vae.SPELLINGS),
    "dc_ae": Kind("DC-AE, the flow autoencoder", _flow, dc_ae.SPELLINGS),
    "dpflow": Kind("DPFlow, the estimator of optical flow", _flow_network, dpflow.SPELLINGS),
    "qwen3_vl": Kind("Qwen3-VL-2B-Instruct", _one_size("qwen3_vl", vlm_part(QWEN3_VL_2B)), qwen3_vl.SPELLINGS),
}
"""Name -> kind. `wan` and `motus_stage1` are the same network under the same names."""
