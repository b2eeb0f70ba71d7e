#!/usr/bin/env python3
"""Writes Llama models with random weights, to measure speed with where no model can be downloaded.

Such a model computes what a real one of its shape does, and says nothing sensible. Its weights follow from the seed, its tokenizer from the
texts inside the pinned source package that the peer is built from, so that a file is the same to the byte wherever the same versions made it.
Three files for each size: F16, written here, and Q8_0 and Q4_K_M, made of it by the peer's llama-quantize.

    scripts/setup peers
    ~/.cache/tandem/peers/venv/bin/python scripts/make_gguf.py --size 0.5b [--seed 1] [--out DIRECTORY]
"""

import argparse
import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from peers.llama_cpp import LlamaCpp
from peers.servers import PEERS_CACHE, output_of

QUANTIZATIONS = ("Q8_0", "Q4_K_M")
VOCABULARY = 32_000
CONTEXT = 4096
# The middle of what trained models have; with it activations neither vanish nor grow beyond F16.
DEVIATION = 0.02
# Larger than anything that the layers add, so that what comes next depends on what came last and answers do not stand still.
EMBEDDING_DEVIATION = 1.0
# Of the logits: about as sure of itself as a trained model at temperature 1.
LOGIT_DEVIATION = 2.0

END_OF_TEXT = "<|endoftext|>"
IM_START = "<|im_start|>"
IM_END = "<|im_end|>"
# Three ids of 32,000: random logits choose one of them once in ten thousand tokens.
SPECIAL_TOKENS = [END_OF_TEXT, IM_START, IM_END]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# How llama.cpp splits text for the tokenizer that it calls "gpt-2".
SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
CORPUS_SUFFIXES = (".md", ".py")


@dataclass(frozen=True)
class Shape:
    """What decides how large a model is. Embedding and output are two matrices: were they one, the last token would be its own likeliest
    successor."""

    dim: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    feed_forward: int

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes, rows first."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        yield "token_embd.weight", (VOCABULARY, self.dim)
        yield "output.weight", (VOCABULARY, self.dim)
        yield "output_norm.weight", (self.dim,)
        for layer in range(self.layers):
            for name, shape in (
                ("attn_norm", (self.dim,)),
                ("attn_q", (queries, self.dim)),
                ("attn_k", (keys, self.dim)),
                ("attn_v", (keys, self.dim)),
                ("attn_output", (self.dim, queries)),
                ("ffn_norm", (self.dim,)),
                ("ffn_gate", (self.feed_forward, self.dim)),
                ("ffn_up", (self.feed_forward, self.dim)),
                ("ffn_down", (self.dim, self.feed_forward)),
            ):
                yield f"blk.{layer}.{name}.weight", shape


# Every dimension is a multiple of 256, the block of the K quantisations.
SHAPES = {
    "0.2b": Shape(dim=768, layers=24, heads=12, kv_heads=4, head_dim=64, feed_forward=2048),
    "0.5b": Shape(dim=1024, layers=28, heads=16, kv_heads=8, head_dim=128, feed_forward=3072),
}


def main() -> None:
    """Writes the three files of a size and prints where they are."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SHAPES, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=PEERS_CACHE / "models", metavar="DIRECTORY")
    args = parser.parse_args()

    peer = LlamaCpp.build()
    args.out.mkdir(parents=True, exist_ok=True)
    wide = args.out / f"random-{args.size}-f16.gguf"
    with replaced(wide) as part:
        write_f16(part, args.size, train_tokenizer(peer.package), args.seed)
    print(wide)
    for quantization in QUANTIZATIONS:
        narrow = args.out / f"random-{args.size}-{quantization.lower()}.gguf"
        with replaced(narrow) as part:
            output_of(peer.quantize, wide, part, quantization)
        print(narrow)


class replaced:
    """`with replaced(path) as part`: what is written to `part` becomes `path` when it is whole."""

    def __init__(self, path: Path):
        self._path = path
        self._part = path.with_suffix(".part")

    def __enter__(self) -> Path:
        return self._part

    def __exit__(self, exception_type: object, *_: object) -> None:
        if exception_type is None:
            os.replace(self._part, self._path)
        else:
            self._part.unlink(missing_ok=True)


def train_tokenizer(package: Path) -> Tokenizer:
    """Byte-level BPE over the package's documentation and Python sources, so that English and code have tokens of sensible lengths."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(package), trainer)
    if tokenizer.get_vocab_size() != VOCABULARY:
        raise SystemExit(f"error: the texts of {package} give {tokenizer.get_vocab_size()} tokens, not {VOCABULARY}")
    return tokenizer


def corpus(package: Path) -> Iterator[str]:
    """The texts of the package, in the archive's order."""
    with tarfile.open(package) as archive:
        for member in archive:
            if member.isfile() and member.name.endswith(CORPUS_SUFFIXES):
                yield archive.extractfile(member).read().decode(errors="replace")


def write_f16(path: Path, size: str, tokenizer: Tokenizer, seed: int) -> None:
    """The whole model, weights drawn tensor by tensor; norms are F32."""
    shape = SHAPES[size]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(f"random {size}")
    writer.add_block_count(shape.layers)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(shape.dim)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(VOCABULARY)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_tokenizer(writer, tokenizer)
    for index, (name, dims) in enumerate(shape.tensors()):
        writer.add_tensor(name, weights(name, dims, np.random.default_rng([seed, index])))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def weights(name: str, dims: tuple[int, ...], draw: np.random.Generator) -> np.ndarray:
    """A matrix of normal numbers, or a norm of ones."""
    if len(dims) == 1:
        return np.ones(dims, dtype=np.float32)
    # What the last norm hands to the output has a deviation of 1.
    deviation = {"token_embd.weight": EMBEDDING_DEVIATION, "output.weight": LOGIT_DEVIATION / dims[1] ** 0.5}.get(name, DEVIATION)
    return (deviation * draw.standard_normal(dims, dtype=np.float32)).astype(np.float16)


def add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Tokenizer) -> None:
    """Vocabulary, merges and template."""
    described = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(described["vocab"], key=described["vocab"].__getitem__)
    kinds = [gguf.TokenType.CONTROL if token in SPECIAL_TOKENS else gguf.TokenType.NORMAL for token in tokens]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(merge) for merge in described["merges"]])
    writer.add_bos_token_id(tokenizer.token_to_id(END_OF_TEXT))
    writer.add_eos_token_id(tokenizer.token_to_id(IM_END))
    writer.add_pad_token_id(tokenizer.token_to_id(END_OF_TEXT))
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


if __name__ == "__main__":
    main()
