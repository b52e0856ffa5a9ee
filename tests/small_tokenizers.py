"""Small real `tokenizer.json` files: Qwen's kind (byte-level BPE with chat markers) and umT5's (unigram pieces)."""

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

MARKERS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
TEXTS = ["put the red cube into the bowl", "The whole scene is in a realistic style", "user\nassistant\n", "lift it"]


def write_qwen(folder):
    """Writes `tokenizer.json` into `folder` and returns its path."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    tokenizer.add_special_tokens([AddedToken(marker, special=True, normalized=False) for marker in MARKERS])
    return _save(tokenizer, folder)


def write_umt5(folder, pad="<pad>"):
    """Writes `tokenizer.json` into `folder` and returns its path."""
    pieces = sorted({piece for text in TEXTS for word in text.split() for piece in (*word, f"▁{word}")} | {"▁"})
    special = [(pad, 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    tokenizer = Tokenizer(models.Unigram([*special, *((piece, -len(piece) ** -1.0) for piece in pieces)], unk_id=2))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.enable_truncation(4)  # as some published files have it: the caller's length must count instead
    tokenizer.enable_padding(length=4, pad_id=0, pad_token=pad)
    return _save(tokenizer, folder)


def _save(tokenizer, folder):
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    return path
