"""Tokenizers that need no download: one of bytes, as GPT-2's and Qwen's, and one of words, as Llama's and Mixtral's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from moelens.text.tokenizer import Tokenizer

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role not in ['system', 'user', 'assistant'] %}{{ raise_exception('unknown role') }}{% endif %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if tools %}tools: {{ tools | length }}\n{% endif %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if thinking %}<think>{% endif %}{% endif %}"
)
SPECIAL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")
MERGES = (("t", "h"), ("th", "e"), ("Ġ", "the"), ("Ġ", "a"), ("Ġ", "Ġ"), ("s", "t"), ("o", "p"), ("st", "op"))


@pytest.fixture(scope="session")
def byte_tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Token ids 0 … 3 are `SPECIAL`, the next 256 are bytes, the others merges; every prompt gets a <s>."""
    import transformers
    from tokenizers import Tokenizer as Tokens
    from tokenizers import decoders, models, pre_tokenizers, processors

    pieces = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(left + right for left, right in MERGES)]
    tokens = Tokens(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=list(MERGES)))
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    tokens.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    hf = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokens,
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        chat_template=CHAT_TEMPLATE,
    )
    folder = tmp_path_factory.mktemp("byte_tokenizer")
    hf.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def byte_tokenizer(byte_tokenizer_folder: Path) -> Tokenizer:
    from moelens.text.tokenizer import load_tokenizer

    return load_tokenizer(byte_tokenizer_folder)


@pytest.fixture(scope="session")
def word_tokenizer() -> Tokenizer:
    """Words begin with ▁, unknown characters are bytes, and the first space of a text is dropped in decoding."""
    import transformers
    from tokenizers import Tokenizer as Tokens
    from tokenizers import decoders, models, normalizers

    from moelens.text.tokenizer import Tokenizer

    merges = [("▁", "a"), ("▁", "b"), ("a", "b"), ("▁", "ab"), ("b", "a")]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "."]
    vocab = {piece: i for i, piece in enumerate([*pieces, *(left + right for left, right in merges)])}
    tokens = Tokens(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True))
    tokens.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokens.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    hf = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokens, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    return Tokenizer(hf)
