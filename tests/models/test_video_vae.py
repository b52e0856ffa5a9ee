"""What streaming promises, and what is refused; the release's numbers are in `tests/weights/test_golden.py`."""

import dataclasses
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motus_jax.errors import UserError
from motus_jax.models.video_vae import VideoVae, VideoVaeConfig

TOLERANCE = 5e-5
TINY = VideoVaeConfig(
    width=4, decoder_width=4, channels=3, multipliers=(2, 2), blocks=1, temporal=(True,),
    latent_mean=(0.1, -0.2, 0.3), latent_std=(0.5, 1.0, 2.0),
)  # fmt: skip
"""Another geometry than the release's: groups of 2 frames, a latent for 4 x 4 pixels."""


def _tiny():
    """VAE, parameters none of which is zero (a cache that starts in the wrong place must show), and a video."""
    vae, rng = VideoVae(TINY), np.random.default_rng(0)
    shapes = jax.eval_shape(vae.init, jax.random.key(0))
    params = jax.tree.map(lambda x: jnp.asarray(_random(rng, x.shape)), shapes)
    return vae, params, rng.uniform(-1, 1, (2, 9, 8, 12, 3)).astype(np.float32)


def _random(rng, shape):
    if len(shape) == 1:
        return rng.uniform(0.5, 1.0, shape).astype(np.float32)
    return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[:-1]))).astype(np.float32)


def test_a_stream_equals_the_whole():
    vae, params, video = _tiny()
    whole = vae.encode(params, video)
    assert whole.shape[1:] == vae.latent_shape(9, 8, 12) == (5, 2, 3, 3)
    latent, cache = vae.encode_first(params, video[:, :1])
    parts, shapes = [latent], _shapes(cache)
    for start in (1, 3, 5, 7):
        latent, cache = vae.encode_next(params, cache, video[:, start : start + 2])
        parts.append(latent)
        assert _shapes(cache) == shapes, "the cache must not grow"
    np.testing.assert_allclose(np.concatenate(parts, 1), whole, atol=1e-6)

    frames = vae.decode(params, whole, clamp=False)
    frame, cache = vae.decode_first(params, whole[:, :1], clamp=False)
    parts, shapes = [frame], _shapes(cache)
    for start, stop in ((1, 2), (2, 5)):
        frame, cache = vae.decode_next(params, cache, whole[:, start:stop], clamp=False)
        parts.append(frame)
        assert _shapes(cache) == shapes, "the cache must not grow"
    assert frames.shape == video.shape
    np.testing.assert_allclose(np.concatenate(parts, 1), frames, atol=1e-6)


def _shapes(cache):
    return jax.tree.map(lambda x: (x.shape, x.dtype), cache)


def test_clamp_cuts_and_nothing_else():
    vae, params, video = _tiny()
    latents = 30 * vae.encode(params, video)
    frames = vae.decode(params, latents, clamp=False)
    assert np.abs(frames).max() > 1.5
    np.testing.assert_allclose(vae.decode(params, latents), np.clip(frames, -1, 1), atol=1e-6)


def test_bfloat16_stays_near_float32():
    vae, params, video = _tiny()
    low = VideoVae(dataclasses.replace(TINY, dtype="bfloat16"))
    latents = vae.encode(params, video)
    for found, expected in (
        (low.encode(params, video), latents),
        (low.decode(params, latents, clamp=False), vae.decode(params, latents, clamp=False)),
    ):
        assert found.dtype == jnp.float32
        error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
        assert 1e-4 < error < 0.03, "computed in bfloat16, and no worse than that"


@pytest.mark.parametrize("way", ["encode", "decode"])
def test_memory_does_not_grow_with_the_video(way):
    """Temporary memory of the compiled program, over what the frames and latents themselves take."""
    vae, params, _ = _tiny()

    def temporary(groups):
        video = jax.ShapeDtypeStruct((1, 1 + 2 * groups, 32, 32, 3), jnp.float32)
        latents = jax.eval_shape(vae.encode, params, video)
        given = video if way == "encode" else latents
        compiled = getattr(VideoVae, way).lower(vae, params, given).compile()
        size = sum(x.size * x.dtype.itemsize for x in (video, latents))
        return compiled.memory_analysis().temp_size_in_bytes, size

    (short, short_size), (long, long_size) = temporary(2), temporary(40)
    # The video is moved to the loop's order and back: two copies.
    assert long - short <= 2 * (long_size - short_size)


def _cache(batch, height, width):
    return {"stem": {"past": np.zeros((batch, 2, height, width, 1))}}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda v: v.encode({}, np.zeros((1, 8, 32, 32, 3))), r"8 frames.*1 \+ 4k.*cut it to 5"),
        (lambda v: v.encode({}, np.zeros((1, 0, 32, 32, 3))), r"0 frames.*1 \+ 4k"),
        (lambda v: v.encode({}, np.zeros((1, 5, 32, 40, 3))), "32x40.*divisible by 16.*32x48"),
        (lambda v: v.encode({}, np.zeros((1, 5, 32, 32, 4))), "3 colours.*found.*4"),
        (lambda v: v.encode_first({}, np.zeros((1, 2, 32, 32, 3))), "encode_first: expected 1 frame, found 2"),
        (lambda v: v.encode_next({}, {}, np.zeros((1, 3, 32, 32, 3))), "multiple of 4 frames, found 3"),
        (lambda v: v.encode_next({}, {}, np.zeros((1, 0, 32, 32, 3))), "multiple of 4 frames, found 0"),
        (lambda v: v.decode({}, np.zeros((1, 0, 2, 2, 48))), "expected 1 latent frame, found 0"),
        (lambda v: v.decode_first({}, np.zeros((1, 1, 2, 2, 16))), "expected 48 channels"),
        (lambda v: v.decode_next({}, {}, np.zeros((1, 0, 2, 2, 48))), "at least 1 latent frame"),
        (lambda v: v.encode_next({}, _cache(2, 16, 16), np.zeros((1, 4, 32, 48, 3))), r"\(2, 32, 32\).*\(1, 32, 48\)"),
        (lambda v: v.decode_next({}, _cache(2, 2, 3), np.zeros((2, 1, 2, 2, 48))), r"\(2, 2, 3\).*\(2, 2, 2\)"),
    ],
)
def test_videos_that_do_not_fit_are_refused(call, message):
    with pytest.raises(UserError, match=message):
        call(VideoVae(VideoVaeConfig()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": 16}, "latent_mean: expected 16 numbers"),
        ({"latent_std": (1.0,)}, "latent_std: expected 48 numbers"),
        ({"temporal": (True,)}, "temporal: expected one entry"),
        ({"multipliers": (1, 2, 4, 8)}, "stage 3 makes 1280 channels of 640, expected a divisor of 640"),
    ],
)
def test_configurations_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        VideoVaeConfig(**changes)


FULL_SIZE = """
import json, resource, time
import jax, jax.numpy as jnp
from motus_jax.models.video_vae import VideoVae, VideoVaeConfig

vae, seconds = VideoVae(VideoVaeConfig()), {}

def timed(name, function, *arguments):
    start = time.perf_counter()
    result = jax.block_until_ready(function(*arguments))
    seconds[name] = round(time.perf_counter() - start, 1)
    return result

params = timed("init", vae.init, jax.random.key(0))
video = jax.random.uniform(jax.random.key(1), (1, 9, 384, 320, 3), minval=-1.0)
latents = timed("encode", vae.encode, params, video)
decoded = timed("decode", vae.decode, params, latents)
assert latents.shape == (1, 3, 24, 20, 48) and decoded.shape == video.shape
assert bool(jnp.isfinite(latents).all()) and bool(jnp.isfinite(decoded).all())
print(json.dumps({**seconds, "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}))
"""


@pytest.mark.heavy
def test_full_size_on_cpu_within_12_gib():
    """9 frames of 384x320, float32, random weights of the release's size, in a process of its own."""
    done = subprocess.run([sys.executable, "-c", FULL_SIZE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    print(report)
    assert report["peak_gib"] < 12
