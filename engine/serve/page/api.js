// The server's interface, which is the one that every client has. A prompt goes into bodies alone.

import { parsed, written } from "./json.js";

/** What the server answers instead of what was asked for. `body`: the members of its `error`. */
export class ServerError extends Error {
  constructor(status, body, retryAfter = null) {
    super(body.message);
    Object.assign(this, { status, body, retryAfter, code: body.code });
  }
}

/** There is no answer, or none any more. `began`: whether there was one. */
export class UnreachableError extends Error {
  constructor(began, cause = null) {
    super("the server does not answer", { cause });
    this.began = began;
  }
}

/** What is at a path. Throws ServerError or UnreachableError. */
export async function get(path, key) {
  return parsed(await (await sent(path, { headers: headers(key) })).text());
}

/** What is at a path, byte for byte. */
export async function bytes(path, key) {
  return (await sent(path, { headers: headers(key) })).arrayBuffer();
}

/** What a path answers to a JSON body. */
export async function post(path, body, key) {
  return parsed(await (await sent(path, json(body, key))).text());
}

/** Events of a picture while it is drawn, each as its data: of a prompt, or of a photo (and a mask) where one is given. */
export async function* draw({ body, photo, mask, key, signal }) {
  const request = photo ? form(body, photo, mask, key) : json(body, key);
  const path = photo ? "v1/images/edits" : "v1/images/generations";
  const answer = await sent(path, { ...request, signal });
  let completed = false;
  for await (const { name, data } of events(answer.body)) {
    if (name === "error") throw new ServerError(answer.status, data.error);
    yield data;
    completed ||= name.endsWith(".completed");
  }
  if (!completed) throw new UnreachableError(true);
}

function headers(key) {
  return key ? { authorization: `Bearer ${key}` } : {};
}

function json(body, key) {
  return { method: "POST", headers: { ...headers(key), "content-type": "application/json" }, body: written(body) };
}

function form({ twig, ...fields }, photo, mask, key) {
  const body = new FormData();
  for (const [name, value] of Object.entries(fields)) body.append(name, value);
  for (const [name, value] of Object.entries(twig)) body.append(`twig[${name}]`, value);
  body.append("image", photo);
  if (mask) body.append("mask", mask);
  return { method: "POST", headers: headers(key), body };
}

async function sent(path, options) {
  const always = { cache: "no-store", credentials: "omit", redirect: "error" };
  const answer = await reached(false, fetch(path, { ...always, ...options }));
  if (answer.ok) return answer;
  const after = answer.headers.get("retry-after");
  throw new ServerError(answer.status, await errorOf(answer), after === null ? null : Number(after));
}

async function reached(began, answer) {
  try {
    return await answer;
  } catch (error) {
    throw new UnreachableError(began, error);
  }
}

async function errorOf(answer) {
  const text = await answer.text();
  try {
    return JSON.parse(text).error ?? { code: null, message: text };
  } catch {
    return { code: null, message: text || answer.statusText }; // a proxy between, which speaks in its own way
  }
}

async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { done, value } = await reached(true, reader.read());
    if (done) return;
    held += value;
    const blocks = held.split("\n\n");
    held = blocks.pop();
    for (const block of blocks) {
      const fields = Object.fromEntries(block.split("\n").map((line) => line.split(/: (.*)/s).slice(0, 2)));
      if (fields.data) yield { name: fields.event, data: parsed(fields.data) };
    }
  }
}
