// The AI SDK of Vercel, by its provider for OpenAI and by the one for servers that are compatible, against the real server.

import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { homedir, tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { after, before, test } from "node:test";
import { setTimeout as pause } from "node:timers/promises";

import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, Output, embedMany, generateText, streamText, tool } from "ai";
import { z } from "zod";

const READY_WITHIN_MS = 120_000;
const POLL_MS = 50;
const repository = join(import.meta.dirname, "../..");
const cache = process.env.XDG_CACHE_HOME ?? join(homedir(), ".cache");
const target = process.env.CARGO_TARGET_DIR ?? join(cache, "tandem", "target");
const binary = process.env.TANDEM_BIN ?? join(target, "debug", "tandem");
const sim = ["--profile", "sim", "--config", join(import.meta.dirname, "models.toml")];

const CAPITAL = "What is the capital of France?";
const SENTENCE = "Extract the name, age and city as JSON: Nora is 34 years old and lives in Oslo.";
const WEATHER = "What is the weather in Rome?";
const person = z.strictObject({ name: z.string().max(30), age: z.int().min(0).max(150), city: z.string().max(30) });
const NORA = { name: "Nora", age: 34, city: "Oslo" };
const weather = z.strictObject({ city: z.string().max(30), unit: z.enum(["celsius", "fahrenheit"]) });

/** A running server, on a port and a data directory of its own. */
class Server {
  static async start(args) {
    const server = new Server();
    server.storage = mkdtempSync(join(tmpdir(), "tandem-"));
    server.environment = { ...process.env, STORAGE_PATH: server.storage, RUST_LOG: "error" };
    server.process = spawn(binary, ["serve", ...args, "--port", "0"], {
      stdio: ["ignore", "pipe", "inherit"],
      env: server.environment,
      cwd: repository, // profiles name the shipped model by a path from there
    });
    const [line] = await once(createInterface({ input: server.process.stdout }), "line");
    server.address = line.match(/^Tandem is listening on (\S+)$/)[1];
    server.baseURL = `${server.address}/v1`;
    await server.until(`${server.address}/health`, 200);
    return server;
  }

  /** Makes an API key, as another command of the program does it, and waits until the server asks for one. */
  async makeKey() {
    const made = spawnSync(binary, ["keys", "create", "--profile", "sim"], { env: this.environment, cwd: repository });
    assert.equal(made.status, 0, made.stderr.toString());
    await this.until(`${this.baseURL}/models`, 401);
    return made.stdout.toString().trim();
  }

  async until(url, status) {
    const deadline = Date.now() + READY_WITHIN_MS;
    while ((await fetch(url)).status !== status) {
      assert.ok(Date.now() < deadline, `${url} is not answered ${status}`);
      await pause(POLL_MS);
    }
  }

  async stop() {
    this.process.kill("SIGTERM");
    if (this.process.exitCode === null) await once(this.process, "exit");
    rmSync(this.storage, { recursive: true });
  }
}

globalThis.AI_SDK_LOG_WARNINGS = false; // that a completion has no tools, for one

let demo, simulated, guarded, key;

before(async () => {
  [demo, simulated, guarded] = await Promise.all([["--profile", "demo"], sim, sim].map(Server.start));
  key = await guarded.makeKey();
});

after(async () => {
  await Promise.all([demo, simulated, guarded].filter(Boolean).map((server) => server.stop()));
});

/** The two providers. That for OpenAI speaks the Responses API unless it is asked for a chat. */
const providers = {
  openai: (server, apiKey = "none") => {
    const provider = createOpenAI({ baseURL: server.baseURL, apiKey });
    return { chat: provider.chat, completion: provider.completion, embedding: provider.embeddingModel };
  },
  "openai-compatible": (server, apiKey) => {
    const options = { name: "tandem", baseURL: server.baseURL, apiKey, includeUsage: true, supportsStructuredOutputs: true };
    const provider = createOpenAICompatible(options);
    return { chat: provider.chatModel, completion: provider.completionModel, embedding: provider.embeddingModel };
  },
};

for (const [name, provider] of Object.entries(providers)) {
  const asked = (prompt) => ({ model: provider(demo).chat("tiny"), prompt, temperature: 0, maxRetries: 0 });

  test(`${name}: a chat is answered`, async () => {
    const answer = await generateText({ ...asked(CAPITAL), maxOutputTokens: 16 });
    assert.match(answer.text, /Paris/);
    assert.equal(answer.finishReason, "stop");
    const { inputTokens, outputTokens, totalTokens } = answer.usage;
    assert.ok(inputTokens > 0 && outputTokens > 0 && outputTokens <= 16);
    assert.equal(totalTokens, inputTokens + outputTokens);
    const short = await generateText({ ...asked(CAPITAL), maxOutputTokens: 1 });
    assert.equal(short.finishReason, "length");
  });

  test(`${name}: a stream joins to the whole answer`, async () => {
    const whole = await generateText({ ...asked(CAPITAL), maxOutputTokens: 16 });
    const streamed = streamText({ ...asked(CAPITAL), maxOutputTokens: 16 });
    const pieces = [];
    for await (const piece of streamed.textStream) pieces.push(piece);
    assert.ok(pieces.length > 3, `${pieces.length} pieces`);
    assert.equal(pieces.join(""), whole.text);
    assert.equal((await streamed.usage).outputTokens, whole.usage.outputTokens);
    assert.equal(await streamed.finishReason, whole.finishReason);
  });

  test(`${name}: an object has its schema`, async () => {
    const { output } = await generateText({ ...asked(SENTENCE), output: Output.object({ schema: person }) });
    assert.deepEqual(output, NORA);
    const streamed = streamText({ ...asked(SENTENCE), output: Output.object({ schema: person }) });
    const parts = [];
    for await (const part of streamed.partialOutputStream) parts.push(part);
    assert.ok(parts.length > 3, `${parts.length} parts`);
    assert.deepEqual(parts.at(-1), NORA);
    const choice = Output.choice({ options: ["sunny", "rainy"] });
    assert.ok(["sunny", "rainy"].includes((await generateText({ ...asked(WEATHER), output: choice })).output));
  });

  test(`${name}: a tool is called, and its result told`, async () => {
    const called = [];
    const get_weather = tool({
      description: "Tells the weather of a city.",
      inputSchema: weather,
      execute: async (input) => {
        called.push(input);
        return { degrees: 20 };
      },
    });
    const answer = await generateText({
      ...asked(WEATHER),
      tools: { get_weather },
      maxOutputTokens: 100,
      // The first step has to call it, the second must not.
      prepareStep: ({ stepNumber }) => ({ toolChoice: stepNumber === 0 ? "required" : "none" }),
      stopWhen: ({ steps }) => steps.length === 2,
    });
    assert.equal(answer.steps.length, 2);
    assert.equal(answer.steps[0].finishReason, "tool-calls");
    assert.ok(called.length > 0);
    for (const input of called) weather.parse(input);
    assert.ok(answer.text.length > 0);

    const stream = streamText({ ...asked(WEATHER), tools: { get_weather }, toolChoice: { type: "tool", toolName: "get_weather" } });
    const pieces = [];
    for await (const part of stream.stream) if (part.type === "tool-input-delta") pieces.push(part.delta);
    const [call] = await stream.toolCalls;
    assert.ok(pieces.length > 3, `${pieces.length} pieces`);
    assert.deepEqual(JSON.parse(pieces.join("")), call.input);
    weather.parse(call.input);
  });

  test(`${name}: a text is continued`, async () => {
    const parameters = { model: provider(simulated).completion("sim"), prompt: "Once upon a time", maxOutputTokens: 8, seed: 7 };
    const { text, usage } = await generateText(parameters);
    assert.ok(text.length > 0 && usage.outputTokens > 0 && usage.outputTokens <= 8);
    let streamed = "";
    for await (const piece of streamText(parameters).textStream) streamed += piece;
    assert.equal(streamed, text);
  });

  test(`${name}: texts are embedded`, async () => {
    const values = ["one", "two", "three"];
    const { embeddings, usage } = await embedMany({ model: provider(simulated).embedding("embedder"), values });
    assert.equal(embeddings.length, 3);
    assert.equal(new Set(embeddings.map((vector) => vector.length)).size, 1);
    for (const vector of embeddings) assert.ok(Math.abs(Math.hypot(...vector) - 1) < 1e-5);
    assert.ok(usage.tokens > 0);
  });

  test(`${name}: errors tell their status, code and whether to try again`, async () => {
    const refusal = async (model, extra) => {
      let caught;
      await generateText({ model, prompt: "Hi", maxRetries: 0, ...extra }).catch((error) => (caught = error));
      assert.ok(APICallError.isInstance(caught), `${caught}`);
      return [caught.statusCode, JSON.parse(caught.responseBody).error.code, caught.isRetryable];
    };
    const { chat } = provider(demo);
    assert.deepEqual(await refusal(chat("no-such-model")), [404, "model_not_found", false]);
    assert.deepEqual(await refusal(chat("tiny"), { temperature: 3 }), [400, "decimal_above_max_value", false]);
    assert.deepEqual(await refusal(chat("tiny"), { prompt: "word ".repeat(2000) }), [400, "context_length_exceeded", false]);
    assert.deepEqual(await refusal(provider(guarded, "wrong").chat("sim")), [401, "invalid_api_key", false]);
    const allowed = provider(guarded, key).chat("sim");
    assert.ok((await generateText({ model: allowed, prompt: "Hi", maxOutputTokens: 4 })).text.length > 0);
  });
}

test("openai: the Responses API, which it speaks unless told otherwise, is refused by name", async () => {
  const model = createOpenAI({ baseURL: demo.baseURL, apiKey: "none" })("tiny");
  await assert.rejects(generateText({ model, prompt: "Hi", maxRetries: 0 }), (error) => {
    assert.ok(APICallError.isInstance(error));
    assert.deepEqual([error.statusCode, error.isRetryable], [404, false]);
    assert.match(error.message, /\/v1\/responses/);
    return true;
  });
});
