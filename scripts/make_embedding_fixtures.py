#!/usr/bin/env python3
"""Makes small random embedding models of every kind that the candle backend runs, and what Hugging Face's transformers computes with them.

Each fixture is a model directory without a tokenizer, and expected.safetensors: the tokens of some inputs behind each other, their lengths, and
the vector of each, pooled and not normalised; or the score, of a model that ranks documents, whose inputs are pairs. Shapes are awkward on
purpose. Every input is computed alone, in F32.

    pip install -r scripts/fixtures_requirements.txt
    python scripts/make_embedding_fixtures.py [NAME ...]
"""

import argparse
import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

FIXTURES = Path(__file__).resolve().parent.parent / "backends/candle/tests/embedding_fixtures"
LENGTHS = range(1, 61)

Json = dict[str, Any]


@dataclass(frozen=True)
class Fixture:
    model_type: str
    # Of the modes that 1_Pooling/config.json may name.
    pooling: str
    config: Json
    # Whether modules.json and the files that it names are written.
    described: bool = True
    # Whether the file is that of a model that continues texts, as decoders are published.
    causal: bool = False
    # What stands before the names of all tensors.
    prefix: str = ""
    # What config.json names instead of the class that was saved.
    architecture: str | None = None
    # Between the texts of a pair, of a model that ranks; the token that ends a text is 3.
    separator: list[int] | None = None


BERT = {
    "vocab_size": 110,
    "hidden_size": 36,
    "intermediate_size": 44,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "max_position_embeddings": 64,
}

FIXTURES_BY_NAME = {
    "bert": Fixture("bert", "mean_tokens", {**BERT, "hidden_act": "gelu", "layer_norm_eps": 1e-12}),
    "bert_cls": Fixture(
        "bert",
        "cls_token",
        {**BERT, "num_hidden_layers": 1, "num_attention_heads": 4, "hidden_act": "gelu_new", "layer_norm_eps": 1e-3},
        prefix="bert.",
    ),
    "roberta": Fixture(
        "xlm-roberta",
        "mean_tokens",
        {
            **BERT,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 66,
            "type_vocab_size": 1,
            "pad_token_id": 1,
            "layer_norm_eps": 1e-5,
        },
        described=False,
    ),
    "distilbert": Fixture(
        "distilbert",
        "mean_tokens",
        {"vocab_size": 110, "dim": 30, "hidden_dim": 44, "n_layers": 3, "n_heads": 3, "max_position_embeddings": 64},
    ),
    "bert_ranks": Fixture(
        "bert",
        "",
        {**BERT, "num_hidden_layers": 2, "hidden_act": "gelu", "layer_norm_eps": 1e-12, "num_labels": 1},
        described=False,
        separator=[],
    ),
    "roberta_ranks": Fixture(
        "xlm-roberta",
        "",
        {
            **BERT,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 66,
            "type_vocab_size": 1,
            "pad_token_id": 1,
            "layer_norm_eps": 1e-5,
            "num_labels": 1,
        },
        described=False,
        separator=[3],
    ),
    "llama_embedding": Fixture(
        "llama",
        "lasttoken",
        {
            "vocab_size": 110,
            "hidden_size": 36,
            "intermediate_size": 44,
            "num_hidden_layers": 3,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "head_dim": 10,
            "max_position_embeddings": 64,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "rope_parameters": {"rope_type": "default", "rope_theta": 400.0},
        },
        causal=True,
    ),
    "qwen3_embedding": Fixture(
        "qwen3",
        "lasttoken",
        {
            "vocab_size": 110,
            "hidden_size": 36,
            "intermediate_size": 44,
            "num_hidden_layers": 3,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "head_dim": 12,
            "max_position_embeddings": 64,
            "rope_parameters": {"rope_type": "default", "rope_theta": 400.0},
        },
        # As it is published: named after the whole model, and saved without the head.
        architecture="Qwen3ForCausalLM",
    ),
}


def randomize(model: torch.nn.Module, generator: torch.Generator) -> None:
    """Larger than what models are trained from, so that every part counts."""
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        if name.endswith("bias"):
            weight.copy_(0.3 * noise)
        elif weight.dim() == 1:
            weight.copy_(1.0 + 0.3 * noise)
        elif "embed" in name:
            weight.copy_(0.8 * noise)
        else:
            weight.copy_(1.8 / math.sqrt(weight.shape[-1]) * noise)


def pooled(states: torch.Tensor, pooling: str) -> torch.Tensor:
    match pooling:
        case "mean_tokens":
            return states.mean(dim=0)
        case "cls_token":
            return states[0]
        case "lasttoken":
            return states[-1]
    raise ValueError(pooling)


def pair(length: int, separator: list[int], generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """A query and a document of random lengths, of so many tokens with what is around them, and the types of these."""
    texts = length - 3 - len(separator)
    query = int(torch.randint(texts + 1, (1,), generator=generator))
    words = torch.randint(4, BERT["vocab_size"], (texts,), generator=generator).tolist()
    first, second = [2, *words[:query], 3, *separator], [*words[query:], 3]
    return torch.tensor(first + second), torch.tensor([0] * len(first) + [1] * len(second))


def scores(model: torch.nn.Module, fixture: Fixture, generator: torch.Generator) -> tuple[list[torch.Tensor], torch.Tensor]:
    shortest = 3 + len(fixture.separator)
    inputs, found = [], []
    for length in range(shortest, shortest + len(LENGTHS)):
        tokens, types = pair(length, fixture.separator, generator)
        types = types if model.config.type_vocab_size > 1 else torch.zeros_like(types)
        inputs.append(tokens)
        found.append(model(input_ids=tokens.unsqueeze(0), token_type_ids=types.unsqueeze(0)).logits[0].sigmoid())
    return inputs, torch.stack(found)


def describe(directory: Path, fixture: Fixture, width: int) -> None:
    """Writes what sentence-transformers writes beside a model."""
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    modules = [
        {"idx": at, "name": str(at), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for at, (path, kind) in enumerate(kinds)
    ]
    modes = ["cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken"]
    config = {f"pooling_mode_{mode}": mode == fixture.pooling for mode in modes}
    (directory / "1_Pooling").mkdir()
    for path, content in [
        ("modules.json", modules),
        ("1_Pooling/config.json", {"word_embedding_dimension": width, **config, "include_prompt": True}),
    ]:
        (directory / path).write_text(json.dumps(content, indent=2) + "\n")


def make(name: str, fixture: Fixture) -> None:
    directory = FIXTURES / name
    config = AutoConfig.for_model(fixture.model_type, **fixture.config)
    generator = torch.Generator().manual_seed(1)
    auto = AutoModelForCausalLM if fixture.causal else AutoModel
    ranks = fixture.separator is not None
    if ranks:
        auto = AutoModelForSequenceClassification
    model = auto.from_config(config, attn_implementation="eager", dtype=torch.float32)
    randomize(model, generator)
    shutil.rmtree(directory, ignore_errors=True)
    model.save_pretrained(directory)
    (directory / "generation_config.json").unlink(missing_ok=True)
    # What is computed is what the files say.
    auto = AutoModelForSequenceClassification if ranks else AutoModel
    model = auto.from_pretrained(directory, attn_implementation="eager", dtype=torch.float32).eval()
    if fixture.prefix:
        path = directory / "model.safetensors"
        save_file({fixture.prefix + name: weight for name, weight in load_file(path).items()}, path)
    if fixture.architecture is not None:
        path = directory / "config.json"
        saved = json.loads(path.read_text()) | {"architectures": [fixture.architecture]}
        path.write_text(json.dumps(saved, indent=2, sort_keys=True) + "\n")
    if ranks:
        save(directory, *scores(model, fixture, generator))
        return
    inputs = [torch.randint(config.vocab_size, (length,), generator=generator) for length in LENGTHS]
    if fixture.model_type == "xlm-roberta":
        # It has no position for padding, and inputs have none.
        inputs = [torch.where(tokens == config.pad_token_id, 7, tokens) for tokens in inputs]
    states = [model(input_ids=tokens.unsqueeze(0)).last_hidden_state[0] for tokens in inputs]
    vectors = torch.stack([pooled(state, fixture.pooling) for state in states])
    if fixture.described:
        describe(directory, fixture, vectors.shape[1])
    save(directory, inputs, vectors)


def save(directory: Path, inputs: list[torch.Tensor], vectors: torch.Tensor) -> None:
    expected = {
        "tokens": torch.cat(inputs).to(torch.int32),
        "lengths": torch.tensor([len(tokens) for tokens in inputs], dtype=torch.int32),
        "vectors": vectors,
    }
    save_file(expected, directory / "expected.safetensors")
    size = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
    print(f"{directory.name}: {size / 1000:.0f} kB, vectors deviate by {vectors.std().item():.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these, of: " + ", ".join(FIXTURES_BY_NAME))
    names = parser.parse_args().names or list(FIXTURES_BY_NAME)
    torch.set_num_threads(1)
    with torch.no_grad():
        for name in names:
            make(name, FIXTURES_BY_NAME[name])


if __name__ == "__main__":
    main()
