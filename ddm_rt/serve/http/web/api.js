// Calls of the server, and what goes wrong with them in words.

const KEY = "ddm-rt key";

/** Something to tell the person at the page. `field` is the part of the request that the server complains of. */
export class Problem extends Error {
  constructor(message, { field = null, status = 0 } = {}) {
    super(message);
    this.field = field;
    this.status = status; // 0: no answer
  }
}

/** Sent with every call from now on; it lasts as long as the tab. */
export function useKey(key) {
  sessionStorage.setItem(KEY, key);
}

/** What the server has to say of its model. */
export async function model() {
  const list = await (await call("v1/models")).json();
  return list.data[0];
}

/** The streams of one scope, each with its shares. */
export async function balance(scope) {
  const list = await (await call(`v1/balance?scope=${encodeURIComponent(scope)}`)).json();
  return list.data;
}

/** Events of a request as they come, each `{type, …}`. The last one is "image_generation.finished"; else it throws. */
export async function* generate(request, signal) {
  const response = await call("v1/images/generations", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...request, stream: true, extra_events: true }),
    signal,
  });
  for await (const { name, data } of serverSentEvents(response.body, signal)) {
    if (name === "error") throw new Problem(sentence(data.error.message), { field: data.error.param });
    yield data;
    if (name === "image_generation.finished") return;
  }
  throw new Problem("The connection was lost before the images were finished.");
}

/** JSON as the server writes it: seeds that are larger than a number of JavaScript can say exactly stay text. */
function parse(text) {
  const exact = (found, digits) => (Number.isSafeInteger(Number(digits)) ? found : `"seed":"${digits}"`);
  return JSON.parse(text.replace(/"seed": ?(\d+)/g, exact));
}

/** A manifest as a file has it: the way back of `parse`. */
export function manifestText(manifest) {
  return JSON.stringify(manifest, null, 1).replace(/"seed": "(\d+)"/g, '"seed": $1');
}

async function* serverSentEvents(body, signal) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch {
      signal.throwIfAborted();
      throw new Problem("The connection was lost before the images were finished.");
    }
    if (part.done) return;
    const blocks = (text + part.value).split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const lines = block.split("\n");
      const of = (field) => lines.find((line) => line.startsWith(`${field}: `))?.slice(field.length + 2);
      if (of("data")) yield { name: of("event"), data: parse(of("data")) };
    }
  }
}

/** The image of an event, as the server made it. */
export function fileOf({ b64_json: content, output_format: format }) {
  const bytes = Uint8Array.from(atob(content), (character) => character.charCodeAt(0));
  return new Blob([bytes], { type: `image/${format}` });
}

async function call(path, { headers = {}, ...options } = {}) {
  const key = sessionStorage.getItem(KEY);
  const authorization = key ? { Authorization: `Bearer ${key}` } : {};
  let response;
  try {
    response = await fetch(path, { ...options, headers: { ...headers, ...authorization } });
  } catch {
    options.signal?.throwIfAborted();
    throw new Problem("The server does not answer.");
  }
  if (!response.ok) throw await refusal(response, Boolean(key));
  return response;
}

async function refusal(response, hadKey) {
  const { status } = response;
  const { error } = await response.json().catch(() => ({}));
  if (status === 401) {
    return new Problem(hadKey ? "The server does not know this API key." : "", { status });
  }
  if (!error) return new Problem(`The server answers with status ${status}, and no reason.`, { status });
  const wait = Number(response.headers.get("Retry-After"));
  const again = wait ? ` Try again in ${wait === 1 ? "a second" : `${wait} seconds`}.` : "";
  if (status === 400) return new Problem(`Not accepted: ${error.message}.`, { field: error.param, status });
  return new Problem(sentence(error.message) + again, { field: error.param, status });
}

function sentence(message) {
  return `${message[0].toUpperCase()}${message.slice(1)}.`;
}
