"""Webhooks: the official library takes what the server sends, and nothing that was changed on the way."""

import base64
import http.server
import json
import os
import queue
import threading

import pytest
from openai import InvalidWebhookSignatureError, OpenAI

from support import chat_line, submit, wait
from tandem_server import TandemServer, default_binary

SECRET = "whsec_" + base64.b64encode(os.urandom(32)).decode()
ARRIVES_WITHIN_S = 60


@pytest.fixture
def hooks():
    """A receiver of webhooks: its port, and what has arrived."""
    arrived = queue.Queue()

    class Receiver(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            arrived.put((dict(self.headers), body))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.server_port, arrived
        server.shutdown()
        thread.join()


def test_the_library_unwraps_what_is_sent(hooks):
    port, arrived = hooks
    settings = {"TANDEM__WEBHOOKS__URL": f"http://127.0.0.1:{port}/hook", "TANDEM__WEBHOOKS__SECRET": SECRET}
    with TandemServer(default_binary(), ["--profile", "sim"], settings) as server:
        client = OpenAI(base_url=server.base_url, api_key="not-needed-for-local", webhook_secret=SECRET, max_retries=0)
        ended = wait(client, submit(client, [chat_line("a", "sim")]))
        assert ended.status == "completed"
        headers, body = arrived.get(timeout=ARRIVES_WITHIN_S)
        event = client.webhooks.unwrap(body, headers)
        assert (event.type, event.object, event.data.id) == ("batch.completed", "event", ended.id)
        assert event.id == headers["webhook-id"]
        with pytest.raises(InvalidWebhookSignatureError):
            client.webhooks.unwrap(body.replace(b"completed", b"cancelled"), headers)

        failed = wait(client, submit(client, [chat_line("a", "sim"), "{"]))
        event = client.webhooks.unwrap(*reversed(arrived.get(timeout=ARRIVES_WITHIN_S)))
        assert (event.type, event.data.id) == ("batch.failed", failed.id)
        assert json.loads(body)["created_at"] >= ended.created_at
