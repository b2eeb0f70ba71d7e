"""The demo's last part: starts the server, runs the example batch through it, and checks both answers."""

import argparse
import shlex
import sys
from pathlib import Path

from openai import OpenAI

from example_batch import QUESTIONS, run_batch
from tandem_server import ServerFailed, TandemServer

MODEL = "tiny"
EXPECTED = {"request-1": "Paris", "request-2": "4"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", type=Path, required=True)
    parser.add_argument("serve_arguments", nargs="*", help="passed to `tandem serve`")
    arguments = parser.parse_args()
    serve_arguments = ["--profile", "demo", *arguments.serve_arguments]

    print(f"tandem serve {shlex.join(serve_arguments)}", flush=True)
    try:
        with TandemServer(arguments.binary, serve_arguments) as server:
            print(f"serving  {server.base_url}", flush=True)
            answers = run_batch(OpenAI(base_url=server.base_url, api_key="not-needed-for-local"), MODEL)
    except ServerFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1

    wrong = [custom_id for custom_id, word in EXPECTED.items() if word not in answers.get(custom_id, "")]
    for custom_id, question in QUESTIONS.items():
        mark = "wrong" if custom_id in wrong else "ok"
        print(f"\n  {question}\n    {answers.get(custom_id, '(no answer)')}   [{mark}]")
    if wrong:
        print(f"\nerror: expected {EXPECTED}", file=sys.stderr)
        return 1

    print(f"""
It works. The server is stopped again; to go on:

  start it            {arguments.binary} serve
  ask it              curl http://127.0.0.1:8000/v1/chat/completions -H 'content-type: application/json' \\
                        -d '{{"model": "{MODEL}", "messages": [{{"role": "user", "content": "What is the capital of France?"}}]}}'
  the batch again     {sys.executable} scripts/example_batch.py
  the other backend   scripts/demo --backend candle
  your own model      {arguments.binary} serve --model path/to/model.gguf
  run the tests       make test
""")
    return 0


if __name__ == "__main__":
    sys.exit(main())
