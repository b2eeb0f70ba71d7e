// The example batch with the official Node SDK, against the real server.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync } from "node:fs";
import { createServer } from "node:net";
import { homedir, tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { setTimeout as pause } from "node:timers/promises";

import OpenAI, { NotFoundError, toFile } from "openai";

const READY_WITHIN_MS = 120_000;
const ENDS_WITHIN_MS = 120_000;
const POLL_MS = 50;

const cache = process.env.XDG_CACHE_HOME ?? join(homedir(), ".cache");
const target = process.env.CARGO_TARGET_DIR ?? join(cache, "tandem", "target");
const binary = process.env.TANDEM_BIN ?? join(target, "debug", "tandem");

let server;
let directory;
let client;

async function freePort() {
  const probe = createServer().listen(0, "127.0.0.1");
  await once(probe, "listening");
  const { port } = probe.address();
  probe.close();
  await once(probe, "close");
  return port;
}

/** Calls `ask` until it returns something other than undefined, or the deadline has passed. */
async function poll(what, withinMs, ask) {
  const deadline = Date.now() + withinMs;
  while (Date.now() < deadline) {
    const answer = await ask();
    if (answer !== undefined) return answer;
    await pause(POLL_MS);
  }
  throw new Error(`${what} took more than ${withinMs} ms\n${readFileSync(join(directory, "server.log"))}`);
}

before(async () => {
  directory = mkdtempSync(join(tmpdir(), "tandem-"));
  const port = await freePort();
  const log = openSync(join(directory, "server.log"), "w");
  server = spawn(binary, ["serve", "--profile", "demo", "--host", "127.0.0.1", "--port", String(port)], {
    stdio: ["ignore", log, log],
    env: { ...process.env, STORAGE_PATH: join(directory, "data") },
    cwd: join(import.meta.dirname, "../.."), // profiles name the shipped model by a path from there
  });
  closeSync(log);
  await once(server, "spawn");
  await poll("starting", READY_WITHIN_MS, async () => {
    assert.equal(server.exitCode, null, "the server ended before it was ready");
    const health = await fetch(`http://127.0.0.1:${port}/health`).catch(() => undefined);
    return health?.ok ? true : undefined;
  });
  client = new OpenAI({ baseURL: `http://127.0.0.1:${port}/v1`, apiKey: "not-needed-for-local", maxRetries: 0 });
});

after(async () => {
  if (server?.pid !== undefined && server.exitCode === null) {
    server.kill("SIGTERM");
    await once(server, "exit");
  }
  if (directory) rmSync(directory, { recursive: true });
});

test("the example batch answers both questions", async () => {
  const questions = { "request-1": "What is the capital of France?", "request-2": "What is 2+2?" };
  const lines = Object.entries(questions).map(([custom_id, content]) =>
    JSON.stringify({
      custom_id,
      method: "POST",
      url: "/v1/chat/completions",
      body: { model: "tiny", messages: [{ role: "user", content }], max_tokens: 100 },
    }),
  );
  const file = await client.files.create({
    file: await toFile(Buffer.from(lines.join("\n") + "\n"), "batch_input.jsonl"),
    purpose: "batch",
  });
  const created = await client.batches.create({
    input_file_id: file.id,
    endpoint: "/v1/chat/completions",
    completion_window: "24h",
  });
  const batch = await poll("the batch", ENDS_WITHIN_MS, async () => {
    const now = await client.batches.retrieve(created.id);
    return ["completed", "failed", "expired", "cancelled"].includes(now.status) ? now : undefined;
  });
  assert.equal(batch.status, "completed", JSON.stringify(batch.errors));

  const output = await (await client.files.content(batch.output_file_id)).text();
  const records = output.trimEnd().split("\n").map((line) => JSON.parse(line));
  const answers = Object.fromEntries(
    records.map(({ custom_id, response }) => [custom_id, response.body.choices[0].message.content]),
  );
  assert.match(answers["request-1"], /Paris/);
  assert.match(answers["request-2"], /4/);
});

test("a stream ends, and says the same as the whole answer", async () => {
  const request = {
    model: "tiny",
    messages: [{ role: "user", content: "What is the capital of France?" }],
    max_tokens: 16,
    temperature: 0,
  };
  const whole = await client.chat.completions.create(request);
  let text = "";
  for await (const chunk of await client.chat.completions.create({ ...request, stream: true })) {
    text += chunk.choices[0]?.delta?.content ?? "";
  }
  assert.equal(text, whole.choices[0].message.content);
});

test("an unknown model is the SDK's NotFoundError", async () => {
  await assert.rejects(
    client.chat.completions.create({ model: "no-such-model", messages: [{ role: "user", content: "hello" }] }),
    NotFoundError,
  );
});
