"""The linear video codec: what it keeps, what it leaves out, and components of places of their own."""

import jax
import numpy as np
import pytest

from motus_jax.errors import UserError
from motus_jax.models.video_codec import VideoCodec, VideoCodecConfig

PATCH, GROUP, SIZE = 4, 2, (8, 12)


def textures(seed):
    """A texture for each place of the picture, as unlike its neighbours as noise is."""
    return np.random.default_rng(seed).uniform(-60, 60, (*SIZE, 3))


@pytest.fixture(scope="module")
def clips():
    """uint8 [200, 5, 8, 12, 3]: a grey picture; in each future frame each place shows its two textures, so bright."""
    strengths = np.random.default_rng(0).normal(size=(200, 5, 2, 2, 3, 1))
    strengths[:, 0] = 0
    places = strengths.repeat(PATCH, 3).repeat(PATCH, 4)  # one strength a patch and texture
    video = 128 + sum(places[:, :, index] * textures(index + 1) for index in range(2))
    return np.clip(video.round(), 0, 255).astype(np.uint8)


def unit(clips):
    return clips.astype(np.float32) / 127.5 - 1


def there_and_back(codec, params, video):
    return np.asarray(jax.jit(lambda p, x: codec.decode(p, codec.encode(p, x), x[:, :1]))(params, video))


@pytest.fixture(scope="module", params=[False, True], ids=["shared", "local"])
def fitted(request, clips):
    codec = VideoCodec(VideoCodecConfig(channels=4, patch=PATCH, group=GROUP, local=request.param, whitening=0.5))
    return codec, codec.fit(clips)


def test_says_what_fit_returns(fitted):
    codec, params = fitted
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), params)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), codec.shapes(*SIZE)) == shapes


def test_nothing_changes_and_nothing_is_decoded(fitted, clips):
    codec, params = fitted
    video = np.repeat(unit(clips[:3, 4:]), 5, axis=1)
    latents = np.asarray(codec.encode(params, video))
    np.testing.assert_allclose(latents[:, 1:], 0, atol=1e-5)
    np.testing.assert_allclose(there_and_back(codec, params, video), video, atol=1e-5)


def test_the_first_latent_sees_the_first_frame_alone(fitted, clips):
    codec, params = fitted
    video = unit(clips[:3])
    alone = codec.encode(params, video[:, :1])
    np.testing.assert_allclose(alone, codec.encode(params, video)[:, :1], atol=1e-6)
    assert alone.shape[1:] == (1, *codec.latent_shape(5, *SIZE)[1:])


@pytest.mark.parametrize("local", [False, True])
def test_with_all_components_nothing_is_lost(clips, local):
    codec = VideoCodec(VideoCodecConfig(channels=3 * PATCH**2, patch=PATCH, group=1, local=local))
    params, video = codec.fit(clips), unit(clips)
    np.testing.assert_allclose(there_and_back(codec, params, video), video, atol=1e-3)


def test_components_of_places_hold_what_shared_ones_cannot(clips):
    errors = {}
    for local in (False, True):
        codec = VideoCodec(VideoCodecConfig(channels=4, patch=PATCH, group=GROUP, local=local, whitening=0.0))
        decoded = there_and_back(codec, codec.fit(clips[:150]), unit(clips[150:]))
        errors[local] = np.mean(np.square(decoded - unit(clips[150:])))
    assert errors[True] < 0.02 * errors[False]


def test_channels_mean_the_same_where_the_same_can_move():
    """Six textures that all places show, each place some of them more than the others."""
    random = np.random.default_rng(1)
    textures = random.uniform(-1, 1, (6, 2, PATCH, PATCH, 3))
    strengths = random.normal(size=(200, 2, 6, 2, 3)) * random.uniform(5, 25, (6, 2, 3))
    future = np.einsum("mksab,sgijc->mkgaibjc", strengths, textures).reshape(200, 4, *SIZE, 3)
    clips = np.concatenate([np.zeros((200, 1, *SIZE, 3)), future], 1)
    codec = VideoCodec(VideoCodecConfig(channels=6, patch=PATCH, group=GROUP, local=True))
    basis = codec.fit((128 + clips).round().astype(np.uint8))["motion"]["basis"].reshape(6, -1, 6)
    likeness = np.einsum("pgc,qgc->pqc", basis, basis)
    assert likeness.min() > 0.95


@pytest.mark.parametrize("local", [False, True])
def test_a_video_that_stands_still_is_kept(local):
    clips = np.full((3, 5, *SIZE, 3), 90, np.uint8)
    codec = VideoCodec(VideoCodecConfig(channels=4, patch=PATCH, group=GROUP, local=local))
    np.testing.assert_allclose(there_and_back(codec, codec.fit(clips), unit(clips)), unit(clips), atol=1e-5)


def test_more_channels_than_a_patch_has_numbers_are_refused():
    with pytest.raises(UserError, match=r"at most 48 channels.*found 49"):
        VideoCodec(VideoCodecConfig(channels=49, patch=PATCH))
