"""A client for any OpenAI server that notes when each piece of an answer came. It uses threads and nothing beyond Python: with eight streams
of a model on a CPU it takes some thousandths of a core."""

import contextlib
import http.client
import json
import random
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from tandem_server import LocalServer

# Of one read: a long prompt on a busy machine takes minutes.
TIMEOUT_S = 1800
# Token ids that any vocabulary has.
VOCABULARY = 1000


@dataclass
class Answer:
    """When what of one streamed answer came. Times are of the monotonic clock, in seconds."""

    sent: float
    tokens: int
    """Output tokens, as the server counted them."""
    arrivals: list[float] = field(default_factory=list)
    """Of each piece of text; a token that is only a part of a character makes none."""

    @property
    def first(self) -> float:
        """When the first text came."""
        return self.arrivals[0]

    @property
    def last(self) -> float:
        """When the last text came."""
        return self.arrivals[-1]

    @property
    def ttft(self) -> float:
        """Time to first token."""
        return self.first - self.sent

    def tokens_between(self, start: float, end: float) -> float:
        """Tokens after `start` and until `end`. Pieces of text stand for tokens, each for as many as there were for a piece on the average."""
        return sum(start < arrival <= end for arrival in self.arrivals) * self.tokens / len(self.arrivals)


@dataclass(frozen=True)
class Round:
    """The answers to a set of prompts, and how long all of it took."""

    answers: list[Answer]
    seconds: float

    @property
    def rate(self) -> float:
        """Output tokens per second, over everything."""
        return sum(answer.tokens for answer in self.answers) / self.seconds

    @property
    def decode_rate(self) -> float:
        """Tokens per second of all answers together while all of them are being decoded."""
        start = max(answer.first for answer in self.answers)
        end = min(answer.last for answer in self.answers)
        if start >= end:
            raise SystemExit("error: the answers did not overlap: too few tokens, or answers without text")
        return sum(answer.tokens_between(start, end) for answer in self.answers) / (end - start)


# Has prompts answered, so many tokens each, so many at a time.
Ask = Callable[[Sequence[list[int]], int, int], Round]


def random_prompts(seed: int | str, length: int, count: int) -> list[list[int]]:
    """So many of so many tokens; no two begin alike, so no prefix cache helps."""
    draw = random.Random(seed)
    return [draw.choices(range(VOCABULARY), k=length) for _ in range(count)]


def served_model(server: LocalServer) -> dict:
    """The entry of the one model that the server lists."""
    with urllib.request.urlopen(f"{server.base_url}/models", timeout=TIMEOUT_S) as response:
        return json.load(response)["data"][0]


def post(server: LocalServer, path: str, body: dict) -> dict:
    """One request that is answered at once."""
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}{path}", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
        return json.load(response)


def ask_all(server: LocalServer, prompts: Sequence[list[int]], tokens: int, concurrency: int) -> Round:
    """Sends all prompts, `concurrency` at a time, each as soon as one before it is answered; every answer has exactly `tokens` tokens."""
    model = served_model(server)["id"]
    with ThreadPoolExecutor(concurrency) as pool:
        started = time.monotonic()
        answers = list(pool.map(lambda prompt: stream(server, model, prompt, tokens), prompts))
        seconds = time.monotonic() - started
    return Round(answers, seconds)


def stream(server: LocalServer, model: str, prompt: list[int], tokens: int) -> Answer:
    """One greedy completion of token ids that does not end before `tokens` tokens, streamed, on a connection of its own: the two servers keep
    connections for different numbers of requests."""
    body = {
        "model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True,
        "stream": True, "stream_options": {"include_usage": True},
    }
    payload = json.dumps(body).encode()
    answer = Answer(time.monotonic(), tokens)
    usage = None
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=TIMEOUT_S)) as connection:
        connection.request("POST", "/v1/completions", payload, {"content-type": "application/json"})
        for event in events(connection.getresponse()):
            arrived = time.monotonic()
            for choice in event.get("choices", ()):
                # An answer of nothing but control tokens and halves of characters says for the first time that it is there when it ends.
                if choice["text"] or (choice["finish_reason"] and not answer.arrivals):
                    answer.arrivals.append(arrived)
            usage = event.get("usage") or usage
    counted = usage and (usage["prompt_tokens"], usage["completion_tokens"])
    if counted != (len(prompt), tokens):
        raise SystemExit(f"error: asked for {tokens} tokens after {len(prompt)}, the server counts (prompt, output) {counted}")
    return answer


def events(response: http.client.HTTPResponse) -> Iterator[dict]:
    """The JSON of each server-sent event, and the end of the body read."""
    if response.status != 200:
        raise SystemExit(f"error: status {response.status}: {response.read()[:500]!r}")
    while line := response.readline():
        if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
            continue
        event = json.loads(line[len(b"data: "):])
        if "error" in event:
            raise SystemExit(f"error: an error in the stream: {event['error']}")
        yield event
