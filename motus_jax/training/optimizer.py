"""Optimizers, learning-rate schedules and the regex tables that say what happens to which parameter.

Tables over parameter paths `a/b/c` (`motus_jax.weights.tree.match`: first match wins): `config.optimizer.trained` and
`frozen` say what is trained, `lr_multipliers` scales the learning rate, `weight_decay` gives the decay. Frozen leaves
have no optimizer state and get no gradient, because only the trained part of the tree reaches either.

With an empty `trained` everything is trained or, where there are adapters (`config.lora`), they alone; adapters are
always among the trained. What `frozen` names never is.
"""

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
import optax.contrib
from jaxtyping import Array, Float

from motus_jax.errors import UserError
from motus_jax.weights import lora, tree

Schedule = Callable[[Any], Any]
"""Number of updates already made -> learning rate."""


def constant(steps: int, *, peak: float) -> Schedule:
    """The same rate for every update."""
    del steps
    return optax.constant_schedule(peak)


def warmup_cosine(steps: int, *, peak: float, warmup: int, end: float) -> Schedule:
    """Linear warm-up over `warmup` updates (the first is peak / warmup, not 0), then a cosine down to `end`."""
    decay = optax.cosine_decay_schedule(peak, max(1, steps - warmup), alpha=end / peak)
    return _after_warmup(decay, peak, warmup)


def warmup_linear(steps: int, *, peak: float, warmup: int, end: float) -> Schedule:
    """Linear warm-up as in `warmup_cosine`, then linear down to `end`."""
    return _after_warmup(optax.linear_schedule(peak, end, max(1, steps - warmup)), peak, warmup)


def lambda_linear(
    steps: int,
    *,
    peak: float,
    warmup: int,
    cycle: int,
    f_max: float,
    f_min: float,
    f_start: float = 1e-6,
    upstream_first_step: bool = False,
) -> Schedule:
    """The public release's schedule: factor `f_start` -> `f_max` over the warm-up, then linear to `f_min` at `cycle`.

    Args:
      peak: base rate that the factor multiplies.
      upstream_first_step: the release applies its schedule only from the second update on, so that its first update
        uses the full base rate; True repeats that.
    """
    del steps

    def schedule(count: Any) -> Float[Array, ""]:
        count = jnp.asarray(count, jnp.float32)
        rising = f_start + (f_max - f_start) * count / max(1, warmup)
        left = jnp.clip((cycle - count) / max(1, cycle - warmup), 0.0, 1.0)
        factor = jnp.where(count < warmup, rising, f_min + (f_max - f_min) * left)
        if upstream_first_step:
            factor = jnp.where(count == 0, 1.0, factor)
        return peak * factor

    return schedule


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "constant": constant,
    "warmup_cosine": warmup_cosine,
    "warmup_linear": warmup_linear,
    "lambda_linear": lambda_linear,
}
"""Name -> function of the number of steps and the fields of `config.optimizer.schedule`."""

POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
)
"""Coefficients of the first four steps of Polar Express (arXiv:2505.16932, with its margin for rounding)."""


def _muon(config: ml_collections.ConfigDict, **orthogonalisation: Any) -> optax.GradientTransformation:
    """Orthogonalised momentum for the matrices of the experts' layers and of a video encoder, Adam for everything else.

    A convolution is orthogonalised at each place of its kernel. `orthogonalisation` goes to optax; by default it takes
    five steps of Newton-Schulz.

    An orthogonalised update has unit spectral norm whatever the gradient, so the matrices want about ten times Adam's
    rate: say so in `lr_multipliers` (`("motus/layers/.*kernel$", 7.0)`).
    """

    def label(params: tree.Tree) -> tree.Tree:
        return _map_with_path(lambda path, _: "muon" if _is_inner_matrix(path) else "adam", params)

    def axes(params: tree.Tree) -> tree.Tree:
        return jax.tree.map(lambda leaf: optax.contrib.MuonDimensionNumbers(leaf.ndim - 2, leaf.ndim - 1), params)

    muon = optax.contrib.scale_by_muon(
        weight_dimension_numbers=axes, mu_dtype=config.mu_dtype, **orthogonalisation
    )
    return optax.partition({"muon": muon, "adam": _adam(config)}, label)


def _adam(config: ml_collections.ConfigDict) -> optax.GradientTransformation:
    """Adam. The second moment stays float32: with b2 near one its changes would be lost in bfloat16's rounding."""
    return optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps, mu_dtype=config.mu_dtype)


def _is_inner_matrix(path: str) -> bool:
    return path.endswith("/kernel") and ("/layers/" in f"/{path}" or path.startswith("video_codec/"))


OPTIMIZERS: dict[str, Callable[[ml_collections.ConfigDict], optax.GradientTransformation]] = {
    "adamw": _adam,
    # Factored second moments, update clipping by block RMS; the rate is ours, not relative to the parameter's scale.
    "adafactor": lambda c: optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0)),
    "muon": _muon,
    # Four steps that come as near to orthogonal as muon's five, with a fifth more in the mean: a smaller rate is due.
    "muon_polar": lambda c: _muon(c, ns_coeffs=POLAR_EXPRESS),
}
"""Name -> the direction of the update; clipping, weight decay and the learning rate are the same for all."""

WITHOUT_MU = ("adafactor",)
"""Optimizers that keep no first moment."""


DTYPES = ("float32", "bfloat16")
"""What the matrices of frozen layers (`frozen_dtype`) and the first moment (`mu_dtype`) may be kept in."""


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """What the step needs.

    Attributes:
      transform: updates for the trained part of the tree.
      schedule: the learning rate before multipliers.
      trained: leaf paths that are trained; all others are frozen.
      multipliers, decays: per leaf path, frozen ones included, for the parameter table.
      ema: decay of the running average of the trained leaves; 0 keeps none.
      frozen_dtype: what the matrices of layers that are not trained are kept in.
    """

    transform: optax.GradientTransformation
    schedule: Schedule
    trained: frozenset[str]
    multipliers: Mapping[str, float]
    decays: Mapping[str, float]
    ema: float
    frozen_dtype: str

    def stored(self, params: tree.Tree) -> tree.Tree:
        """Fresh parameters in the types that a run keeps them in.

        Where the layers compute in bfloat16, keeping their matrices in it loses nothing: `Dense` casts them before the
        product. They are nearly all there is; norms, modulation and what lies outside the layers stay as they are.
        """

        def cast(path: str, leaf: Array) -> Array:
            kept = path in self.trained or not _is_inner_matrix(path)
            return leaf if kept else leaf.astype(self.frozen_dtype)

        return _map_with_path(cast, params)


def make_optimizer(config: ml_collections.ConfigDict, params: tree.Tree, steps: int) -> Optimizer:
    """Builds the optimizer of `config` (= `config.optimizer`).

    Args:
      params: the parameter tree; shapes suffice.
      steps: length of the run in updates; decaying schedules end there.

    Raises:
      UserError: an unknown name, or a table that does not fit the tree.
    """
    paths = list(tree.flatten(params))
    trained = _trained(config, paths)
    multipliers = tree.match(paths, config.lr_multipliers, "config.optimizer.lr_multipliers")
    decays = tree.match(paths, config.weight_decay, "config.optimizer.weight_decay")
    schedule = make_schedule(config.schedule, steps)
    if config.name not in OPTIMIZERS:
        raise UserError(f"config.optimizer.name: expected one of {', '.join(OPTIMIZERS)}, found {config.name!r}")
    if not 0 <= config.ema < 1:
        raise UserError(f"config.optimizer.ema: expected a decay from 0 (no average) to below 1, found {config.ema}")
    for name in ("frozen_dtype", "mu_dtype"):
        if config[name] not in DTYPES:
            raise UserError(f"config.optimizer.{name}: expected {' or '.join(DTYPES)}, found {config[name]!r}")
    if config.mu_dtype != "float32" and config.name in WITHOUT_MU:
        raise UserError(
            f"config.optimizer.mu_dtype: expected float32 with {config.name}, which keeps no first moment; found "
            f"{config.mu_dtype!r}"
        )
    transform = optax.chain(
        _clip(config.clip),
        OPTIMIZERS[config.name](config),
        _add_weight_decay(decays),
        _multiply(multipliers),
        optax.scale_by_learning_rate(schedule),
    )
    return Optimizer(transform, schedule, trained, multipliers, decays, config.ema, config.frozen_dtype)


def make_schedule(config: ml_collections.ConfigDict, steps: int) -> Schedule:
    """Builds `config.optimizer.schedule`: a dict of `name` and the fields of that schedule.

    Raises:
      UserError: an unknown schedule, or a field that is missing or not one of its own.
    """
    fields = dict(config)
    name = fields.pop("name")
    if name not in SCHEDULES:
        raise UserError(f"config.optimizer.schedule.name: expected one of {', '.join(SCHEDULES)}, found {name!r}")
    try:
        inspect.signature(SCHEDULES[name]).bind(steps, **fields)
    except TypeError as error:
        raise UserError(f"config.optimizer.schedule ({name}): {error}; found {', '.join(sorted(fields))}") from error
    return SCHEDULES[name](steps, **fields)


def global_norm(leaves: Mapping[str, Array]) -> Float[Array, ""]:
    """L2 norm over all leaves, accumulated in float32."""
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in leaves.values()))


def ema_decay(decay: float, count: Any) -> Float[Array, ""]:
    """Decay of the running average after `count` updates: (1 + n) / (10 + n) until that exceeds `decay`.

    The warm-up keeps the random initialisation from lingering in the average of a short run.
    """
    count = jnp.asarray(count, jnp.float32)
    return jnp.minimum(decay, (1.0 + count) / (10.0 + count))


def _trained(config: ml_collections.ConfigDict, paths: list[str]) -> frozenset[str]:
    """The leaves that are trained; see the head of this file."""
    frozen = tree.match(paths, [(regex, True) for regex in config.frozen], "config.optimizer.frozen", default=False)
    adapters = {path for path in paths if lora.is_adapter(path)}
    rows, rest = [(regex, True) for regex in config.trained], not (config.trained or adapters)
    chosen = tree.match(paths, rows, "config.optimizer.trained", default=rest)
    trained = frozenset(path for path in paths if (chosen[path] or path in adapters) and not frozen[path])
    if not trained:
        raise UserError(f"config.optimizer.frozen: {config.frozen} matches every parameter; nothing is left to train")
    return trained


def _after_warmup(decay: Schedule, peak: float, warmup: int) -> Schedule:
    if warmup < 1:
        return decay
    rising = optax.linear_schedule(peak / warmup, peak, max(1, warmup - 1))
    return optax.join_schedules([rising, decay], [warmup])


def _clip(limit: float | None) -> optax.GradientTransformation:
    if limit is None:
        return optax.identity()
    if not (limit > 0 and math.isfinite(limit)):
        raise UserError(f"config.optimizer.clip: expected a positive global norm or None, found {limit}")
    return optax.clip_by_global_norm(limit)


def _add_weight_decay(decays: Mapping[str, float]) -> optax.GradientTransformation:
    """Adds decay * parameter per leaf, decoupled from the gradient's moments (AdamW)."""

    def decay(updates: tree.Tree, params: tree.Tree) -> tree.Tree:
        return _map_with_path(lambda path, u, p: u + decays[path] * p if decays[path] else u, updates, params)

    return optax.stateless(decay)


def _multiply(factors: Mapping[str, float]) -> optax.GradientTransformation:
    return optax.stateless(lambda updates, _: _map_with_path(lambda path, u: factors[path] * u, updates))


def _map_with_path(function: Callable[..., Array], *trees: tree.Tree) -> tree.Tree:
    return jax.tree_util.tree_map_with_path(lambda path, *leaves: function(tree.path_name(path), *leaves), *trees)
