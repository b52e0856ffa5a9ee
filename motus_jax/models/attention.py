"""Attention of the experts: one function, and the table of the kernels that may compute it.

Numbers: scores, softmax and sums in float32; products in the type of the queries.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Shaped

from motus_jax.errors import UserError
from motus_jax.models import placement

MASKED = -1e30
"""Added to the scores of padded keys."""
LANES = 128
"""Splash takes lengths in multiples of so many tokens."""
LONGEST_BLOCK = 1024
"""Tokens that splash holds at once, so that their scores fit a core's own memory."""


def attention(
    q: Float[Array, "B S N K"],
    k: Float[Array, "B M N K"],
    v: Float[Array, "B M N K"],
    key_mask: Bool[Array, "B M"] | None = None,
    kernel: str = "xla",
) -> Float[Array, "B S N K"]:
    """Softmax attention with scale 1/sqrt(K); keys where `key_mask` is False are padding and get no weight.

    Args:
      kernel: a row of `KERNELS`; `xla` where the platform does not have it. The result is the same up to rounding.

    Raises:
      UserError: no such row, or one that cannot compute in this type.
    """
    return KERNELS[chosen(kernel)].compute(q, k, v, key_mask)


def chosen(kernel: str) -> str:
    """The row that computes what a row is asked for, on the platform that is traced for.

    Raises:
      UserError: no such row.
    """
    if kernel not in KERNELS:
        raise UserError(f"model.overrides.attention: expected one of {', '.join(KERNELS)}; found {kernel!r}")
    return kernel if KERNELS[kernel].platform in ("", platform()) else "xla"


def words(kernel: str) -> str:
    """What computes where a row is asked for, for people."""
    found = chosen(kernel)
    return found if found == kernel else f"{found}: there is no {kernel} on {platform()}"


def platform() -> str:
    """What is traced for, `cpu`, `gpu` or `tpu`: the devices of the mesh that is set, absent ones too; without a mesh
    those that JAX has chosen."""
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    found = device.platform if device is not None else jax.default_backend()
    return "gpu" if found in ("cuda", "rocm") else found


def plain(q: Array, k: Array, v: Array, key_mask: Array | None) -> Float[Array, "B S N K"]:
    """Products and softmax as XLA fuses them.

    The backward pass finds queries, keys, values, the result and one number a row, and recomputes the probabilities
    (Dao et al. 2022, "FlashAttention", algorithm 4), so that no [S, M] array outlives its use. The result and the row's
    number are named `attention` for rematerialisation policies.
    """
    bias = None if key_mask is None else jnp.where(key_mask, 0.0, MASKED)[:, None, None]
    return _attention(q, k, v, bias)


def cudnn(
    q: Array, k: Array, v: Array, key_mask: Array | None, implementation: Any = "cudnn"
) -> Float[Array, "B S N K"]:
    """cuDNN's flash attention, for GPUs from Ampere on: no [S, M] array is ever written.

    It takes how many keys are real, not which (broadcast masks came out wrong in jax-ml/jax#28974). The softmax does
    not mind their order, so the real ones go in front.

    Args:
      implementation: of `jax.nn.dot_product_attention`; `xla` shows where there is no GPU that nothing else is wrong.

    Raises:
      UserError: numbers of 32 bits.
    """
    if implementation == "cudnn" and q.dtype not in (jnp.bfloat16, jnp.float16):
        raise UserError(f"model.overrides.attention=cudnn: expected bfloat16 (model.overrides.dtype); found {q.dtype}")
    lengths = {}
    if key_mask is not None:
        order = jnp.argsort(~key_mask, axis=1, stable=True)[..., None, None]
        k, v = (jnp.take_along_axis(x, order, axis=1) for x in (k, v))
        lengths = {"query_seq_lengths": jnp.full(q.shape[:1], q.shape[1], jnp.int32),
                   "key_value_seq_lengths": key_mask.sum(1, dtype=jnp.int32)}  # fmt: skip
    out = jax.nn.dot_product_attention(q, k, v, implementation=implementation, **lengths)
    return checkpoint_name(out, "attention")


def splash(q: Array, k: Array, v: Array, key_mask: Array | None, interpret: bool = False) -> Float[Array, "B S N K"]:
    """JAX's flash attention for TPUs, a Pallas kernel: no [S, M] array is ever written.

    Lengths are filled up to multiples of `LANES`. Padding, and what fills up, is another segment, which queries do not
    see. On a mesh each device attends for its own examples and heads, since nobody tells the compiler how a kernel may
    be split.

    Args:
      interpret: in Python's steps, where there is no TPU.
    """
    real = jnp.ones(k.shape[:2], bool) if key_mask is None else key_mask
    segments = jnp.where(_filled(real), 0, 1)
    ours = [_rows(_filled(x)) for x in (q * q.shape[-1] ** -0.5, k, v)]
    attend, mesh = functools.partial(_splash, interpret=interpret), jax.sharding.get_abstract_mesh()
    if mesh.size > 1:
        examples, heads = placement.EXAMPLES[0], mesh.shape.get("tensor", 1)
        parts = math.prod(mesh.shape.get(axis, 1) for axis in examples)
        place = PartitionSpec(None if len(q) % parts else examples, "tensor" if heads > 1 else None)
        specs = (place, place, place, PartitionSpec(place[0]))
        attend = jax.shard_map(attend, in_specs=specs, out_specs=place, check_vma=False)
    return attend(*ours, segments).transpose(0, 2, 1, 3)[:, : q.shape[1]]


def _splash(
    q: Float[Array, "B N S K"], k: Float[Array, "B N M K"], v: Float[Array, "B N M K"], segments: Int[Array, "B M"],
    interpret: bool,
) -> Float[Array, "B N S K"]:  # fmt: skip
    """The kernel, for scaled queries; `segments` is 0 at the keys that they see."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    tokens, keys = q.shape[2], k.shape[2]
    a, b = (min(length, LONGEST_BLOCK) for length in (tokens, keys))
    blocks = kernel.BlockSizes(
        block_q=a, block_kv=b, block_kv_compute=b, block_q_dkv=a, block_kv_dkv=b, block_kv_dkv_compute=b,
        block_q_dq=a, block_kv_dq=b,
    )  # fmt: skip
    mask = masks.MultiHeadMask([masks.FullMask((tokens, keys))] * q.shape[1])
    attend = kernel.make_splash_mha(
        mask, block_sizes=blocks, head_shards=1, q_seq_shards=1, residual_checkpoint_name="attention",
        interpret=interpret,
    )  # fmt: skip
    sees = jnp.zeros((len(q), tokens), segments.dtype)
    return jax.vmap(attend)(q, k, v, kernel.SegmentIds(sees, segments))


def _filled(x: Shaped[Array, "B S ..."]) -> Shaped[Array, "B T ..."]:
    """Zeros behind the tokens, up to the next length that splash takes."""
    length = x.shape[1]
    unit = LANES if length <= LONGEST_BLOCK else LONGEST_BLOCK
    return jnp.pad(x, [(0, 0), (0, -length % unit)] + [(0, 0)] * (x.ndim - 2))


class Kernel(NamedTuple):
    """A way to compute attention.

    Attributes:
      compute: (queries, keys, values, mask) -> result, as `attention` has them.
      platform: the one that has it; empty: all.
    """

    compute: Callable[[Array, Array, Array, Array | None], Array]
    platform: str = ""


KERNELS: dict[str, Kernel] = {
    "xla": Kernel(plain),
    "cudnn": Kernel(cudnn, "gpu"),
    "splash": Kernel(splash, "tpu"),
}


@jax.custom_vjp
def _attention(q: Array, k: Array, v: Array, bias: Array | None) -> Array:
    """`attention` with a float32 bias [B, 1, 1, M] on the scores, which gets no gradient."""
    return _attention_forward(q, k, v, bias)[0]


def _attention_forward(q: Array, k: Array, v: Array, bias: Array | None) -> tuple[Array, tuple]:
    scores = _scores(q, k, bias)
    top = jnp.max(scores, -1, keepdims=True)
    weights = jnp.exp(scores - top)
    total = jnp.sum(weights, -1, keepdims=True)
    # Dividing the result instead of the weights saves a pass over [S, M].
    out = (_product(weights.astype(v.dtype), _rows(v)) / total).astype(v.dtype).transpose(0, 2, 1, 3)
    out, log_total = (checkpoint_name(x, "attention") for x in (out, top + jnp.log(total)))
    return out, (q, k, v, bias, out, log_total)


def _attention_backward(residuals: tuple, g: Array) -> tuple[Array, Array, Array, None]:
    # Every product takes the [S, M] array as it lies: only the small arrays are turned.
    q, k, v, bias, out, log_total = residuals
    scale = q.shape[-1] ** -0.5
    weights = jnp.exp(_scores(q, k, bias) - log_total)
    slope = jnp.sum(g.astype(jnp.float32) * out, -1).transpose(0, 2, 1)[..., None]
    d_scores = (weights * (_product(_rows(g), _columns(v)) - slope)).astype(q.dtype)
    d_q = _product(d_scores, _rows(k)).transpose(0, 2, 1, 3) * scale
    d_k = _product(_columns(q), d_scores).transpose(0, 3, 1, 2) * scale
    d_v = _product(_columns(g), weights.astype(g.dtype)).transpose(0, 3, 1, 2)
    return d_q.astype(q.dtype), d_k.astype(k.dtype), d_v.astype(v.dtype), None


_attention.defvjp(_attention_forward, _attention_backward)


def _scores(q: Array, k: Array, bias: Array | None) -> Float[Array, "B N S M"]:
    scores = _product(_rows(q) * q.shape[-1] ** -0.5, _columns(k))
    return scores if bias is None else scores + bias


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, preferred_element_type=jnp.float32)


def _rows(x: Float[Array, "B S N K"]) -> Float[Array, "B N S K"]:
    return x.transpose(0, 2, 1, 3)


def _columns(x: Float[Array, "B S N K"]) -> Float[Array, "B N K S"]:
    return x.transpose(0, 2, 3, 1)
