"""The umT5 encoder and the handling of its tokenizer against transformers."""

import numpy as np
import pytest
import small_tokenizers

from motus_jax.data.tokenizers import Umt5Tokenizer
from motus_jax.models.text_encoder import TextEncoder, TextEncoderConfig
from motus_jax.weights import kinds, umt5
from motus_jax.weights.name_map import to_tree

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

CONFIG = TextEncoderConfig(vocabulary=50, width=32, heads=4, head_dim=12, mlp=40, depth=3)


def test_encoder():
    theirs = transformers.UMT5EncoderModel(
        transformers.UMT5Config(
            vocab_size=50, d_model=32, num_heads=4, d_kv=12, d_ff=40, num_layers=3, feed_forward_proj="gated-gelu",
            relative_attention_num_buckets=32, relative_attention_max_distance=128, layer_norm_epsilon=1e-6,
        )
    ).eval()  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.15, generator=generator)
    spelling = umt5.SPELLINGS["Hugging Face UMT5EncoderModel"]
    state = {kinds.rename(name, spelling): tensor.numpy() for name, tensor in theirs.state_dict().items()}
    params = to_tree(state, umt5.rules(CONFIG), CONFIG.depth)
    lengths, total = np.array([40, 150, 1]), 150  # farther apart than the largest bucket
    mask = np.arange(total) < lengths[:, None]
    tokens = np.random.default_rng(0).integers(1, 50, mask.shape) * mask
    with torch.no_grad():
        expected = theirs(input_ids=torch.from_numpy(tokens), attention_mask=torch.from_numpy(mask).long())
    found = TextEncoder(CONFIG).apply({"params": params}, tokens, mask)
    assert np.abs(expected.last_hidden_state.numpy()[mask]).max() > 1
    np.testing.assert_allclose(found[mask], expected.last_hidden_state.numpy()[mask], atol=5e-5, rtol=0)


def test_tokenizer(tmp_path):
    file = small_tokenizers.write_umt5(tmp_path)
    library = transformers.PreTrainedTokenizerFast(tokenizer_file=str(file), pad_token="<pad>", eos_token="</s>")
    ours = Umt5Tokenizer(file)
    for text in ("put the red cube into the bowl", "lift it", ""):
        expected = library(text, padding="max_length", truncation=True, max_length=6)
        tokens, mask = ours.encode(text, 6)
        assert tokens.tolist() == expected["input_ids"]
        assert mask.tolist() == list(map(bool, expected["attention_mask"]))
