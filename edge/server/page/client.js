// What the page asks of the server that it came from.

const KEY = "edge-key";

export class ServerError extends Error {}

function headers(more = {}) {
  const key = sessionStorage.getItem(KEY);
  return key ? {...more, Authorization: `Bearer ${key}`} : more;
}

// Resolves when the person gave a key.
function askForKey() {
  const dialog = document.getElementById("keys"), field = document.getElementById("key");
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      sessionStorage.setItem(KEY, field.value.trim());
      field.value = "";
      resolve();
    }, {once: true});
    dialog.showModal();
  });
}

async function send(path, options = {}) {
  for (;;) {
    const response = await fetch(path, {...options, headers: headers(options.headers)});
    if (response.status === 401) {
      await askForKey();
      continue;
    }
    if (response.ok) return response;
    let message = `the server answered ${response.status}`;
    try {
      message = (await response.json()).error.message;
    } catch {
      // no JSON: the status says it
    }
    throw new ServerError(message);
  }
}

function post(path, body, signal) {
  const options = {method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(body), signal};
  return send(path, options);
}

// Server-sent events, parsed, until [DONE].
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const {value, done} = await reader.read();
    if (done) return;
    const parts = (held + value).split("\n\n");
    held = parts.pop();
    for (const part of parts) {
      const data = part.split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("\n");
      if (data === "[DONE]") return;
      if (!data) continue;
      const found = JSON.parse(data);
      if (found.error) throw new ServerError(found.error.message);
      yield found;
    }
  }
}

export const models = async () => (await (await send("/v1/models")).json()).data;

export async function* chat(model, messages, signal) {
  const body = {model, messages, stream: true, stream_options: {include_usage: true}};
  yield* events(await post("/v1/chat/completions", body, signal));
}

export async function* benchmark(model, signal) {
  yield* events(await post("/v1/benchmarks", {model}, signal));
}

export const frame = async (body, signal) => (await post("/v1/frames", body, signal)).json();

export async function memory() {
  const text = await (await send("/metrics")).text();
  return Number(/^process_resident_memory_bytes (\S+)/m.exec(text)?.[1] ?? 0);
}
