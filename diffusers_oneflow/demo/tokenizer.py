"""The model's tokenizer: CLIP's byte-level BPE with merges trained on the caption words.

Each word of the captions is one token; any other text falls back to the 256 byte
tokens and whatever merges fit.
"""

from __future__ import annotations

import json
import os

import torch

from .captions import WORDS

START, END = "<|startoftext|>", "<|endoftext|>"
MAX_LENGTH = 32  # tokens, with the two above


def train_merges() -> list[tuple[str, str]]:
    """Return the merges, in order, that make each caption word one token."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        # Pairs of one count are merged in the order of their ids: without this, that of letters which
        # end a word is the order of a hash table, another one in every process.
        special_tokens=[letter + "</w>" for letter in alphabet],
        vocab_size=4096,  # never reached: training ends when no pair is left to merge
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator([word for word in WORDS if word.isalpha()], trainer)
    return [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]


def build_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return CLIP's layout: bytes, bytes ending a word, merged tokens, START, END."""
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = train_merges()
    tokens = alphabet + [c + "</w>" for c in alphabet] + [a + b for a, b in merges]
    # Two merges may lead to one token; it keeps its first place.
    tokens = [*dict.fromkeys(tokens), START, END]
    return {token: i for i, token in enumerate(tokens)}, merges


def write_tokenizer(folder: str) -> None:
    """Write the files of a stock CLIPTokenizer into `folder`, which is made if needed."""
    vocabulary, merges = build_vocabulary()
    config = {
        "add_prefix_space": False,
        "bos_token": START,
        "do_lower_case": True,
        "eos_token": END,
        "model_max_length": MAX_LENGTH,
        "pad_token": END,
        "tokenizer_class": "CLIPTokenizer",
        "unk_token": END,
    }
    special = {k: config[k] for k in ("bos_token", "eos_token", "pad_token", "unk_token")}
    lines = ["#version: 0.2"] + [f"{a} {b}" for a, b in merges]
    files = {
        "vocab.json": json.dumps(vocabulary, ensure_ascii=False),
        "merges.txt": "\n".join(lines),
        "tokenizer_config.json": json.dumps(config, indent=2),
        "special_tokens_map.json": json.dumps(special, indent=2),
    }
    os.makedirs(folder, exist_ok=True)
    for name, text in files.items():
        with open(os.path.join(folder, name), "w", encoding="utf-8") as f:
            f.write(text + "\n")


def word_table(vocabulary: dict[str, int]) -> torch.Tensor:
    """Return int64 [len(WORDS)]: the id of each caption word's one token.

    Raises:
        KeyError: a word is no single token of the vocabulary.
    """
    return torch.tensor([vocabulary[word + "</w>"] for word in WORDS])
