// The server's API: the key, requests, and answers as they are streamed.

const STORE = "ropebend-key";
let key = sessionStorage.getItem(STORE) || ""; // a secret: not kept beyond the tab

/** status: the HTTP status, 0 if the server did not answer at all; code: OpenAI's. */
export class ApiError extends Error {
  constructor(status, message, code = null) {
    super(message);
    Object.assign(this, {status, code});
  }
}

export function setKey(value) {
  key = value.trim();
  sessionStorage.setItem(STORE, key);
}

async function request(path, body, signal) {
  const headers = key ? {Authorization: `Bearer ${key}`} : {};
  const options = {headers, signal};
  if (body !== undefined) {
    headers["Content-Type"] = "application/json";
    Object.assign(options, {method: "POST", body: JSON.stringify(body)});
  }
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (e) {
    if (e.name === "AbortError") throw e;
    throw new ApiError(0, "The server does not answer. Is it still running?");
  }
  if (answer.ok) return answer;
  let message = `${answer.status} ${answer.statusText}`, code = null;
  try {
    ({message, code} = (await answer.json()).error);
  } catch {
    // not from this server: a proxy's page, say
  }
  if (answer.status === 401) document.dispatchEvent(new CustomEvent("key-wanted", {detail: message}));
  throw new ApiError(answer.status, message, code);
}

export async function get(path) {
  return (await request(path)).json();
}

export async function post(path, body, signal) {
  return (await request(path, body, signal)).json();
}

/** The events of a streamed answer. Raises ApiError where they end with an error, or before their end. */
export async function* stream(path, body, signal) {
  const answer = await request(path, {...body, stream: true, stream_options: {include_usage: true}}, signal);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    let piece;
    try {
      piece = await reader.read();
    } catch (e) {
      if (e.name === "AbortError") throw e;
      break;
    }
    if (piece.done) break;
    const parts = (held + piece.value).split("\n\n");
    held = parts.pop();
    for (const part of parts) {
      if (!part.startsWith("data: ")) continue;
      if (part === "data: [DONE]") return;
      const event = JSON.parse(part.slice("data: ".length));
      if (event.error) throw new ApiError(500, event.error.message);
      yield event;
    }
  }
  throw new ApiError(0, "The connection to the server was lost.");
}
