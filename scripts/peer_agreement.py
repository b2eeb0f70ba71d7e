#!/usr/bin/env python3
"""Whether Tandem and llama-server say the same: fifty chats, greedy, one at a time, on the same GGUF file.

Tandem renders each chat with the model's template and is asked for the token ids (POST /tokenize); llama-server gets these ids through its own
endpoint, which tells log-probabilities of the model's logits, before any sampler. Answers are compared token by token, by the bytes of the
tokens; llama-server tells tokens that are parts of a character together with the one that completes it, so these are compared as one, and not
at all where an answer ends amid a character. As long as two answers are the same, their next tokens follow from the same text, so
log-probabilities are compared up to the first difference and not after it; there the gap says how near a tie it was: the difference of the
log-probabilities of the two tokens that were chosen, as each side sees it.

Prefix caches are off on both sides unless `--caches` leaves them on. With them the same prompt is computed in passes of other shapes, depending
on what came before it, and in another shape llama.cpp adds in another order: the difference that is then seen is not one between servers.
Needs nothing beyond Python.

    scripts/peer_agreement.py --model FILE.gguf [--tokens 64] [--caches] [--out result.json]
"""

import argparse
import json
import random
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from peers.client import post, served_model
from peers.llama_cpp import LlamaCpp
from peers.servers import Contest
from tandem_server import LocalServer

# How far down the list of each side the other's token is looked for.
TOP = 10
# Control tokens in an answer are spelled out, as Tandem tells them.
PEER_FLAGS = ["--special"]
TANDEM_NO_CACHE = {"TANDEM__BACKEND__PREFIX_CACHE": "false"}
PEER_NO_CACHE = ["--no-cache-prompt"]

COUNTRIES = ("France", "Japan", "Kenya", "Peru", "Norway", "Egypt", "Canada", "Italy", "Chile", "Poland")
WORDS = ("hot", "big", "early", "light", "open", "wet", "quiet", "strong", "new", "full")
PASSAGE = (
    "the river old stone bridge market morning lamp letter winter garden road station window music paper bread and of near under a with"
).split()


@dataclass(frozen=True)
class Token:
    """One token of an answer, and the likeliest in its place. For llama-server it may be the last of several, whose text is that of all."""

    text: bytes
    logprob: float
    top: dict[bytes, float]
    count: int = 1


@dataclass(frozen=True)
class Comparison:
    """What became of one chat."""

    prompt_tokens: int
    compared: int
    """Tokens that are the same, from the first on."""
    exact: bool
    """The answers are the same, and ended for the same reason."""
    largest_difference: float
    """Of the log-probabilities of tokens that are the same."""
    gaps: tuple[float | None, float | None] | None
    """At the first token that differs, for Tandem and for llama-server, as far as it is known."""


def main() -> None:
    """Compares, prints what was found, and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    Contest.add_arguments(parser)
    LlamaCpp.add_arguments(parser)
    parser.add_argument("--tokens", type=int, default=64, help="at most, of each answer (64)")
    parser.add_argument("--caches", action="store_true", help="leave the prefix caches on")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where to write every comparison, as JSON")
    args = parser.parse_args()

    peer = LlamaCpp.of(args)
    contest = Contest.of(args).changed({}, PEER_FLAGS)
    if not args.caches:
        contest = contest.changed(TANDEM_NO_CACHE, PEER_NO_CACHE)
    report = contest.described(peer) | {"tokens": args.tokens}
    with contest.start_tandem() as ours, peer.start_server(contest) as theirs:
        model = served_model(ours)["id"]
        comparisons = [compare_chat(ours, theirs, model, message, args.tokens) for message in chats()]
    print_summary(contest.model.name, comparisons)
    if args.out:
        report["chats"] = [asdict(comparison) for comparison in comparisons]
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def chats() -> list[str]:
    """Fifty messages, short ones and some of two hundred words; always the same."""
    draw = random.Random(50)
    questions = [f"What is the capital of {country}?" for country in COUNTRIES]
    questions += [f"What is {draw.randint(1, 40)}+{draw.randint(1, 40)}?" for _ in range(10)]
    questions += [f"What is the opposite of {word}?" for word in WORDS]
    questions += [f"Count from {start} to {start + 9}." for start in range(1, 11)]
    return questions + [f"Repeat this: {' '.join(draw.choices(PASSAGE, k=200))}." for _ in range(10)]


def compare_chat(ours: LocalServer, theirs: LocalServer, model: str, message: str, tokens: int) -> Comparison:
    """Has both answer, and compares."""
    messages = [{"role": "user", "content": message}]
    prompt = post(ours, "/tokenize", {"model": model, "messages": messages})["tokens"]
    our_tokens, our_end = ask_tandem(ours, model, messages, prompt, tokens)
    their_tokens, their_end, their_length = ask_llama_server(theirs, prompt, tokens)
    same, largest, gaps = 0, 0.0, None
    for theirs_next in their_tokens:
        of_ours = our_tokens[same : same + theirs_next.count]
        if b"".join(token.text for token in of_ours) != theirs_next.text:
            # Where several tokens were told as one, nobody knows which of them is another.
            if len(of_ours) == theirs_next.count == 1:
                gaps = (gap(of_ours[0], theirs_next.text), gap(theirs_next, of_ours[0].text))
            break
        same += theirs_next.count
        largest = max(largest, abs(of_ours[-1].logprob - theirs_next.logprob))
    return Comparison(
        prompt_tokens=len(prompt),
        compared=same,
        exact=same == sum(token.count for token in their_tokens) and our_end == their_end and len(our_tokens) == their_length,
        largest_difference=largest,
        gaps=gaps,
    )


def gap(chosen: Token, other: bytes) -> float | None:
    """How much likelier the chosen token was than the other."""
    return chosen.logprob - chosen.top[other] if other in chosen.top else None


def ask_tandem(server: LocalServer, model: str, messages: list[dict], prompt: list[int], tokens: int) -> tuple[list[Token], str]:
    """The answer's tokens, and why it ended: `stop` or `length`."""
    body = {"model": model, "messages": messages, "max_tokens": tokens, "temperature": 0, "logprobs": True, "top_logprobs": TOP}
    answer = post(server, "/v1/chat/completions", body)
    if answer["usage"]["prompt_tokens"] != len(prompt):
        raise SystemExit(f"error: the chat has {answer['usage']['prompt_tokens']} tokens, /tokenize says {len(prompt)}")
    choice = answer["choices"][0]
    return [read_token(entry) for entry in choice["logprobs"]["content"]], choice["finish_reason"]


def ask_llama_server(server: LocalServer, prompt: list[int], tokens: int) -> tuple[list[Token], str, int]:
    """The same of the peer, and how many tokens there are with those of a last character that is not whole."""
    body = {
        "prompt": prompt, "n_predict": tokens, "temperature": 0, "return_tokens": True, "n_probs": TOP, "post_sampling_probs": False,
    }
    answer = post(server, "/completion", body)
    if answer["tokens_evaluated"] != len(prompt):
        raise SystemExit(f"error: llama-server evaluated {answer['tokens_evaluated']} tokens of {len(prompt)}")
    ids, entries, end = answer["tokens"], answer["completion_probabilities"], "length"
    if answer["stop_type"] == "eos":
        # The last of them is the token that ended the answer, which Tandem does not tell.
        ids, entries, end = ids[:-1], entries[:-1], "stop"
    told, at = [], 0
    for entry in entries:
        last = ids.index(entry["id"], at)
        told.append(replace(read_token(entry), count=last + 1 - at))
        at = last + 1
    return told, end, len(ids)


def read_token(entry: dict) -> Token:
    """Both sides tell a token in the same words."""
    top = {bytes(other["bytes"]): other["logprob"] for other in entry["top_logprobs"]}
    return Token(bytes(entry["bytes"]), entry["logprob"], top)


def print_summary(model: str, comparisons: list[Comparison]) -> None:
    """How many agree, where the others part, and how far the log-probabilities are apart."""
    exact = sum(comparison.exact for comparison in comparisons)
    compared = sum(comparison.compared for comparison in comparisons)
    largest = max(comparison.largest_difference for comparison in comparisons)
    print(f"{model}: {exact} of {len(comparisons)} answers are the same token for token; "
          f"{compared} tokens compared, largest difference of a log-probability {largest:.2e}")
    for number, comparison in enumerate(comparisons):
        if not comparison.exact:
            where = f"chat {number} ({comparison.prompt_tokens} prompt tokens): the same for {comparison.compared} tokens"
            ours, theirs = ("not known" if value is None else f"{value:.2e}" for value in comparison.gaps or (None, None))
            print(f"- {where}; gap of the log-probabilities of the next two {ours} for Tandem, {theirs} for llama-server")


if __name__ == "__main__":
    main()
