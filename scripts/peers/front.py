"""OpenAI's chats over HTTP in front of an engine of in_process.py, in the same process: what `tandem bench` needs of a peer whose own package
has no server, or one that cannot be told how long answers are to be. Greedy, streamed or whole. What it does not know it refuses.
"""

import itertools
import json
import os
import queue
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import SimpleQueue

from in_process import Engine, Progress

FIELDS = {"model", "messages", "max_tokens", "temperature", "ignore_eos", "stream", "stream_options"}
# What is made of bytes that are no whole character yet.
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def serve(engine: Engine, model: str, port: int) -> None:
    """Until the process is told to end."""
    driver = Driver(engine)
    threading.Thread(target=driver.run, name="driver", daemon=True).start()
    with Server(("127.0.0.1", port), handler_for(engine, driver, model)) as server:
        server.serve_forever()


def handler_for(engine: Engine, driver: "Driver", model: str) -> type["Handler"]:
    """A class of its own, since the server makes one for each connection."""
    return type("EngineHandler", (Handler,), {"engine": engine, "driver": driver, "model": model})


class Server(ThreadingHTTPServer):
    """With room for as many who come at once as a bench sends."""

    request_queue_size = 128


@dataclass(frozen=True)
class Submitted:
    """A prompt on its way to the engine, and where its answer is waited for."""

    prompt: list[int]
    tokens: int
    may_end: bool
    answer: "SimpleQueue[Progress]"


class Driver:
    """The one thread that moves the engine on."""

    def __init__(self, engine: Engine):
        self._engine = engine
        self._submitted: SimpleQueue[Submitted] = SimpleQueue()

    def ask(self, prompt: list[int], tokens: int, may_end: bool) -> Iterator[Progress]:
        """What comes of an answer, as it comes."""
        answer: SimpleQueue[Progress] = SimpleQueue()
        self._submitted.put(Submitted(prompt, tokens, may_end, answer))
        while not (progress := answer.get()).ended:
            yield progress
        yield progress

    def run(self) -> None:
        """Without an engine there is nothing to answer with: if it fails the process ends, and whoever asks sees that."""
        try:
            self._run()
        except BaseException:
            traceback.print_exc()
            os._exit(1)

    def _run(self) -> None:
        running: dict[int, SimpleQueue[Progress]] = {}
        numbers = itertools.count()
        while True:
            for submitted in self._taken(wait=not running):
                number = next(numbers)
                running[number] = submitted.answer
                self._engine.submit(number, submitted.prompt, submitted.tokens, submitted.may_end)
            for progress in self._engine.wait():
                answer = running.pop(progress.number) if progress.ended else running[progress.number]
                answer.put(progress)

    def _taken(self, wait: bool) -> Iterator[Submitted]:
        """All that was submitted; with nothing to do otherwise at least one."""
        if wait:
            yield self._submitted.get()
        while True:
            try:
                yield self._submitted.get_nowait()
            except queue.Empty:
                return


class Refused(Exception):
    """A request that cannot be answered, and why."""


@dataclass(frozen=True)
class Chat:
    """What was asked."""

    messages: list[dict]
    tokens: int
    may_end: bool
    stream: bool
    wants_usage: bool

    @classmethod
    def read(cls, body: object) -> "Chat":
        if not isinstance(body, dict):
            raise Refused("the body has to be an object")
        if unknown := sorted(body.keys() - FIELDS):
            raise Refused(f"{', '.join(unknown)} cannot be asked for here")
        if body.get("temperature", 0) != 0:
            raise Refused("temperature has to be 0: answers are greedy")
        tokens, messages = body.get("max_tokens"), body.get("messages")
        if not isinstance(tokens, int) or tokens < 1:
            raise Refused("max_tokens has to be a number from 1 on")
        if not isinstance(messages, list) or not messages:
            raise Refused("messages has to be a list")
        return cls(
            messages, tokens, may_end=not body.get("ignore_eos"), stream=bool(body.get("stream")),
            wants_usage=isinstance(options := body.get("stream_options"), dict) and bool(options.get("include_usage")),
        )


class Handler(BaseHTTPRequestHandler):
    """The few paths that a bench asks for."""

    protocol_version = "HTTP/1.1"
    # A stream's pieces are small, and each is to be seen when it comes.
    disable_nagle_algorithm = True
    engine: Engine
    driver: Driver
    model: str

    def do_GET(self) -> None:
        if self.path == "/health":
            self._send(200, {"status": "ok"})
        elif self.path == "/v1/models":
            self._send(200, {"object": "list", "data": [{"id": self.model, "object": "model"}]})
        else:
            self._send_error(404, f"there is no {self.path}")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.path != "/v1/chat/completions":
            self._send_error(404, f"there is no {self.path}")
            return
        try:
            chat = Chat.read(json.loads(body))
        except ValueError as error:
            self._send_error(400, f"the body is no JSON: {error}")
        except Refused as refused:
            self._send_error(400, str(refused))
        else:
            self._answer(chat)

    def log_message(self, *_) -> None:
        """Not each request."""

    def _answer(self, chat: Chat) -> None:
        prompt = self.engine.chat_tokens(chat.messages)
        tokens: list[int] = []
        if chat.stream:
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
        told = ""
        for progress in self.driver.ask(prompt, chat.tokens, chat.may_end):
            tokens += progress.tokens
            text = self.engine.text(tokens)
            # The rest of a character may come with the next token.
            if chat.stream and len(text) > len(told) and (progress.ended or not text.endswith(REPLACEMENT)):
                self._event({"choices": [{"index": 0, "delta": {"content": text[len(told):]}, "finish_reason": None}]})
                told = text
        finish = "length" if len(tokens) == chat.tokens else "stop"
        usage = {"prompt_tokens": len(prompt), "completion_tokens": len(tokens), "total_tokens": len(prompt) + len(tokens)}
        if not chat.stream:
            message = {"role": "assistant", "content": self.engine.text(tokens)}
            choice = {"index": 0, "message": message, "finish_reason": finish}
            self._send(200, self._named({"object": "chat.completion", "choices": [choice], "usage": usage}))
            return
        self._event({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
        if chat.wants_usage:
            self._event({"choices": [], "usage": usage})
        self._chunk(b"data: [DONE]\n\n")
        self._chunk(b"")

    def _named(self, body: dict) -> dict:
        return {"model": self.model, "created": int(time.time()), **body}

    def _event(self, body: dict) -> None:
        self._chunk(b"data: " + json.dumps(self._named({"object": "chat.completion.chunk", **body})).encode() + b"\n\n")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def _send(self, status: int, body: dict) -> None:
        payload = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def _send_error(self, status: int, message: str) -> None:
        self._send(status, {"error": {"message": message, "type": "invalid_request_error", "code": status}})
