#!/usr/bin/env python3
"""Makes small random models of every family that the candle backend runs, and what Hugging Face's transformers computes with them.

Each fixture is a model directory without a tokenizer, and expected.safetensors: the tokens of a prompt and of its greedy continuation, and the
logits at some positions of the prompt and at every one after it. Shapes are awkward on purpose, and numbers such that each part of a family
counts: a window is shorter than the prompt, caps are low, factors are far from one.

The weights follow from a seed. Seeds are tried until the greedy continuation is varied and no choice in it near a tie, so that rounding on
another machine cannot change it. Everything is computed anew from the files that were written, in F32 and without a cache.

    pip install -r scripts/fixtures_requirements.txt
    python scripts/make_model_fixtures.py [NAME ...]
"""

import argparse
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

FIXTURES = Path(__file__).resolve().parent.parent / "backends/candle/tests/fixtures"
PROMPT = 90
CONTINUATION = 64
# Positions of the prompt whose logits are kept; chunks of the test end at them.
KEPT = [0, 1, 6, 15, 16, 17, 30, 47, 63, 64, 88, 89]
# Of the logits, between the first and the second choice. Errors are a thousandth of it.
MARGIN = 0.01
# Of probabilities, between the last expert that is chosen and the next.
EXPERT_MARGIN = 1e-4
DISTINCT = 12

Json = dict[str, Any]


def classic(config: Json) -> Json:
    """Says in the terms of transformers 4 what version 5 keeps in `rope_parameters` or calls by another name."""
    if "num_local_experts" in config:
        config["num_experts"] = config.pop("num_local_experts")
    rope = config.pop("rope_parameters")
    kinds = config.pop("layer_types", None)
    if "full_attention" in rope:
        config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
        config["sliding_window_pattern"] = kinds.index("full_attention") + 1
    rope = dict(rope)
    config["rope_theta"] = rope.pop("rope_theta")
    kind = rope.pop("rope_type")
    if "partial_rotary_factor" in rope:
        config["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
    config["rope_scaling"] = None if kind == "default" else {"type": kind, **rope}
    return config


def early_phi(config: Json) -> Json:
    """The same, with the name that longrope had in the first files of Phi 3."""
    config = classic(config)
    config["rope_scaling"]["type"] = "su"
    return config


def as_saved(config: Json) -> Json:
    return config


@dataclass(frozen=True)
class Fixture:
    model_type: str
    config: Json
    # What becomes of config.json.
    rewrite: Callable[[Json], Json] = as_saved
    # Standard deviation of the embeddings, less where the model scales them up itself.
    embedding: float = 0.8
    # What the weights of the last norm are raised by, where the same embeddings would otherwise give flat logits.
    last_norm: float = 0.0
    base: Json = field(
        default_factory=lambda: {
            "vocab_size": 110,
            "hidden_size": 36,
            "intermediate_size": 44,
            "num_hidden_layers": 3,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "max_position_embeddings": 256,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": 0,
        }
    )


def rope(**fields: Any) -> Json:
    return {"rope_theta": 400.0, **fields}


FIXTURES_BY_NAME = {
    "llama": Fixture(
        "llama",
        {
            "head_dim": 10,
            "attention_bias": True,
            "mlp_bias": True,
            "rope_parameters": rope(
                rope_type="llama3",
                factor=4.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=64,
            ),
        },
    ),
    "llama_linear": Fixture(
        "llama",
        {
            "num_key_value_heads": 6,
            "tie_word_embeddings": True,
            "rope_parameters": rope(rope_type="linear", factor=2.5),
        },
        rewrite=classic,
    ),
    "llama_yarn": Fixture(
        "llama",
        {
            "head_dim": 16,
            "num_hidden_layers": 1,
            "rope_parameters": rope(
                rope_type="yarn",
                factor=4.0,
                original_max_position_embeddings=64,
                beta_fast=6.0,
                beta_slow=0.7,
                truncate=False,
                mscale=1.4,
                mscale_all_dim=0.6,
            ),
        },
    ),
    "mistral": Fixture(
        "mistral",
        {
            "vocab_size": 130,
            "hidden_size": 40,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "head_dim": 6,
            "sliding_window": 20,
            "rope_parameters": rope(),
        },
        rewrite=classic,
    ),
    "qwen2": Fixture(
        "qwen2",
        {
            "hidden_size": 42,
            "num_attention_heads": 7,
            "num_key_value_heads": 1,
            "max_position_embeddings": 64,
            "tie_word_embeddings": True,
            "use_sliding_window": True,
            "sliding_window": 25,
            "max_window_layers": 1,
            "rope_parameters": rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=64),
        },
        rewrite=classic,
    ),
    "qwen3": Fixture(
        "qwen3",
        {
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "head_dim": 12,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 21,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": rope(rope_type="dynamic", factor=2.0),
        },
    ),
    "qwen3_moe": Fixture(
        "qwen3_moe",
        {
            "num_hidden_layers": 4,
            "head_dim": 8,
            "num_experts": 7,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 12,
            "norm_topk_prob": True,
            "decoder_sparse_step": 2,
            "mlp_only_layers": [1],
            "rope_parameters": rope(),
        },
    ),
    "qwen3_moe_window": Fixture(
        "qwen3_moe",
        {
            "num_hidden_layers": 2,
            "head_dim": 8,
            "num_experts": 5,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 20,
            "norm_topk_prob": False,
            "use_sliding_window": True,
            "sliding_window": 33,
            "rope_parameters": rope(),
        },
        rewrite=classic,
    ),
    "gemma2": Fixture(
        "gemma2",
        {
            "head_dim": 10,
            "sliding_window": 17,
            "query_pre_attn_scalar": 5,
            "attn_logit_softcapping": 2.5,
            "final_logit_softcapping": 8.0,
            "rope_parameters": rope(),
        },
        embedding=0.03,
        last_norm=20.0,
        rewrite=classic,
    ),
    "gemma3": Fixture(
        "gemma3_text",
        {
            "num_hidden_layers": 5,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 12,
            "sliding_window": 19,
            "query_pre_attn_scalar": 7,
            "layer_types": ["sliding_attention", "full_attention"] * 2 + ["sliding_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 900.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 60.0},
            },
        },
        embedding=0.03,
        last_norm=20.0,
    ),
    "gemma3_classic": Fixture(
        "gemma3_text",
        {
            "num_hidden_layers": 4,
            "head_dim": 8,
            "sliding_window": 23,
            "query_pre_attn_scalar": 12,
            "final_logit_softcapping": 9.0,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 900.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 60.0},
            },
        },
        embedding=0.03,
        last_norm=20.0,
        rewrite=classic,
    ),
    "phi3": Fixture(
        "phi3",
        {
            "hidden_size": 48,
            "intermediate_size": 36,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "original_max_position_embeddings": 64,
            "rope_parameters": rope(
                rope_type="longrope",
                partial_rotary_factor=0.67,
                short_factor=[1.0, 1.1, 1.3, 1.6],
                long_factor=[1.2, 2.0, 3.5, 5.0],
            ),
        },
    ),
    "phi3_short": Fixture(
        "phi3",
        {
            "num_attention_heads": 3,
            "num_key_value_heads": 3,
            "max_position_embeddings": 1024,
            "original_max_position_embeddings": 160,
            "sliding_window": 40,
            "tie_word_embeddings": True,
            "rope_parameters": rope(
                rope_type="longrope",
                short_factor=[1.0, 1.1, 1.3, 1.6, 1.8, 2.0],
                long_factor=[1.2, 2.0, 3.5, 5.0, 7.0, 9.0],
            ),
        },
        rewrite=early_phi,
    ),
    "smollm3": Fixture(
        "smollm3",
        {
            "hidden_size": 40,
            "num_hidden_layers": 5,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "intermediate_size": 30,
            "no_rope_layers": [1, 0, 1, 1, 0],
            "use_sliding_window": True,
            "sliding_window": 22,
            "rope_parameters": rope(),
        },
    ),
    "granite": Fixture(
        "granite",
        {
            "hidden_size": 42,
            "num_attention_heads": 7,
            "num_key_value_heads": 1,
            "attention_bias": True,
            "embedding_multiplier": 6.0,
            "attention_multiplier": 0.3,
            "residual_multiplier": 0.6,
            "logits_scaling": 1.7,
            "rope_parameters": rope(),
        },
        embedding=0.3,
        rewrite=classic,
    ),
    "olmo2": Fixture("olmo2", {"num_attention_heads": 6, "num_key_value_heads": 3, "rope_parameters": rope()}),
}


def randomize(model: torch.nn.Module, fixture: Fixture, generator: torch.Generator) -> None:
    """Larger than what models are trained from, so that logits are far from flat."""

    def noise(weight: torch.Tensor) -> torch.Tensor:
        return torch.randn(weight.shape, generator=generator)

    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            weight.copy_(0.3 * noise(weight))
        elif weight.dim() == 1:
            # A norm, which is made as one or, where its factor is kept less one, as zero.
            weight.add_(0.3 * noise(weight) + (fixture.last_norm if name == "model.norm.weight" else 0.0))
        elif name.endswith("embed_tokens.weight"):
            weight.copy_(fixture.embedding * noise(weight))
        else:
            gain = 3.0 if name.startswith("lm_head") else 1.4
            weight.copy_(gain / math.sqrt(weight.shape[-1]) * noise(weight))


def logits_of(model: torch.nn.Module, tokens: list[int]) -> torch.Tensor:
    return model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]


def closest_experts(model: torch.nn.Module, tokens: list[int], per_token: int) -> float:
    """The smallest difference of probabilities between an expert that is chosen and one that is not."""
    gaps = []

    def watch(_module: torch.nn.Module, _inputs: Any, output: Any) -> None:
        ordered = torch.softmax(output[0], dim=-1).sort(dim=-1, descending=True).values
        gaps.append((ordered[:, per_token - 1] - ordered[:, per_token]).min().item())

    routers = [module for name, module in model.named_modules() if name.endswith("mlp.gate")]
    hooks = [router.register_forward_hook(watch) for router in routers]
    logits_of(model, tokens)
    for hook in hooks:
        hook.remove()
    return min(gaps)


def continuation(model: torch.nn.Module, prompt: list[int]) -> tuple[list[int], torch.Tensor] | None:
    """All tokens and all logits, or nothing when another machine might go on differently."""
    tokens = list(prompt)
    for _ in range(CONTINUATION):
        tokens.append(int(logits_of(model, tokens)[-1].argmax()))
    # The last token is chosen and then not looked at.
    logits = logits_of(model, tokens[:-1])
    first, second = logits[PROMPT - 1 :].topk(2, dim=-1).values.unbind(dim=-1)
    assert logits[PROMPT - 1 :].argmax(dim=-1).tolist() == tokens[PROMPT:]
    if (first - second).min().item() < MARGIN or len(set(tokens[PROMPT:])) < DISTINCT:
        return None
    return tokens, logits


def make(name: str, fixture: Fixture) -> None:
    directory = FIXTURES / name
    config = AutoConfig.for_model(fixture.model_type, **(fixture.base | fixture.config))
    for seed in range(300):
        generator = torch.Generator().manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32)
        randomize(model, fixture, generator)
        shutil.rmtree(directory, ignore_errors=True)
        model.save_pretrained(directory)
        (directory / "generation_config.json").unlink(missing_ok=True)
        path = directory / "config.json"
        saved = fixture.rewrite(json.loads(path.read_text()))
        path.write_text(json.dumps(saved, indent=2, sort_keys=True) + "\n")
        model = AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager", dtype=torch.float32).eval()
        prompt = torch.randint(config.vocab_size, (PROMPT,), generator=generator).tolist()
        result = continuation(model, prompt)
        if result is None:
            continue
        tokens, logits = result
        per_token = getattr(config, "num_experts_per_tok", None)
        if per_token is not None and closest_experts(model, tokens[:-1], per_token) < EXPERT_MARGIN:
            continue
        positions = KEPT + list(range(PROMPT, PROMPT + CONTINUATION - 1))
        expected = {
            "tokens": torch.tensor(tokens, dtype=torch.int32),
            "positions": torch.tensor(positions, dtype=torch.int32),
            "logits": logits[positions].contiguous(),
        }
        save_file(expected, directory / "expected.safetensors")
        size = sum(file.stat().st_size for file in directory.iterdir())
        deviation = logits.std().item()
        print(f"{name}: seed {seed}, {size / 1000:.0f} kB, logits deviate by {deviation:.1f}", flush=True)
        return
    raise SystemExit(f"{name}: no seed gives a continuation that is clear and varied")


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
