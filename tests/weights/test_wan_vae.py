"""Names of the Wan2.2 VAE in both public layouts."""

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from motus_jax.models.video_vae import VideoVae, VideoVaeConfig
from motus_jax.weights import kinds, wan_vae
from motus_jax.weights.name_map import flatten, to_public, to_tree

PARAMETERS = 704_688_668
SMALL = VideoVaeConfig(width=8, decoder_width=12, channels=6, latent_mean=(0.0,) * 6, latent_std=(1.0,) * 6)
LAYOUTS = [wan_vae.WAN, wan_vae.DIFFUSERS]


def test_names_and_shapes_of_the_release(golden_dir):
    rows = [line.split("\t") for line in (golden_dir / "checkpoint_params.tsv").read_text().splitlines()[1:]]
    public = {row[0]: tuple(map(int, row[1].split("x"))) for row in rows if row[0].startswith("VAE:")}
    assert {f"VAE:{rule.source}": rule.shape for rule in wan_vae.rules(wan_vae.RELEASE)} == public
    assert sum(int(np.prod(shape)) for shape in public.values()) == PARAMETERS


def test_full_size_tree_is_what_the_map_fills():
    tree = jax.eval_shape(VideoVae(wan_vae.RELEASE).init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(tree)) == PARAMETERS
    assert {leaf.dtype.name for leaf in jax.tree.leaves(tree)} == {"float32"}
    leaves = kinds.leaves(wan_vae.rules(wan_vae.RELEASE), 0)
    assert {leaf.path: leaf.shape for leaf in leaves} == {path: leaf.shape for path, leaf in flatten(tree).items()}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_export_is_the_inverse_of_import(golden_dir, layout):
    tensors = load_file(golden_dir / "golden_a" / "extra_vae_params.safetensors")
    names = {rule.source: other.source for rule, other in zip(wan_vae.rules(SMALL), wan_vae.rules(SMALL, layout))}
    tensors = {names[name]: tensor for name, tensor in tensors.items()}
    tree = to_tree(tensors, wan_vae.rules(SMALL, layout), 0)
    back = to_public(tree, wan_vae.rules(SMALL, layout), 0)
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name], tensor)


def test_both_layouts_give_one_tree(golden_dir):
    tensors = load_file(golden_dir / "golden_a" / "extra_vae_params.safetensors")
    tree = to_tree(tensors, wan_vae.rules(SMALL), 0)
    diffusers = to_public(tree, wan_vae.rules(SMALL, wan_vae.DIFFUSERS), 0)
    assert not diffusers.keys() & tensors.keys()
    jax.tree.map(np.testing.assert_array_equal, to_tree(diffusers, wan_vae.rules(SMALL, wan_vae.DIFFUSERS), 0), tree)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_spellings_of_the_release_lead_to_its_own_names(layout):
    spelling = wan_vae.SPELLINGS[layout]
    renamed = [kinds.rename(rule.source, spelling) for rule in wan_vae.rules(wan_vae.RELEASE, layout)]
    assert renamed == [rule.source for rule in wan_vae.rules(wan_vae.RELEASE)]
