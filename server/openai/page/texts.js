// Long texts beside the message: dropped, pasted or chosen, with their tokens counted before anything is sent.

import {$, announce, count, make} from "./dom.js";
import {props, textTokens} from "./model.js";

/** Characters from which a pasted text becomes one beside the message. */
const LONG = 3000;

let texts = [];
let changed = () => {};

/** {name, text, n_tokens (null: not known yet)} of each. */
export const attached = () => texts;

export function clearTexts() {
  texts = [];
  show();
}

export function putBack(given) {
  texts = [...given];
  show();
}

/** onChange: called when texts come, go or are counted. */
export function watchTexts(onChange) {
  changed = onChange;
  const box = $("text"), files = $("files");
  $("attach").addEventListener("click", () => files.click());
  files.addEventListener("change", () => { read(files.files); files.value = ""; });
  box.addEventListener("paste", event => {
    const text = event.clipboardData.getData("text/plain");
    if (event.clipboardData.files.length) read(event.clipboardData.files);
    else if (text.length >= LONG) add("Pasted text", text);
    else return;
    event.preventDefault();
  });
  let inside = 0;
  const over = by => { inside += by; document.body.classList.toggle("dropping", inside > 0); };
  const drops = event => [...event.dataTransfer.types].some(t => t === "Files" || t === "text/plain");
  addEventListener("dragenter", event => { if (drops(event)) over(1); });
  addEventListener("dragleave", event => { if (drops(event)) over(-1); });
  addEventListener("dragover", event => { if (drops(event)) event.preventDefault(); });
  addEventListener("drop", event => {
    if (!drops(event)) return;
    event.preventDefault();
    over(-inside);
    if (event.dataTransfer.files.length) read(event.dataTransfer.files);
    else add("Dropped text", event.dataTransfer.getData("text/plain"));
  });
}

async function read(files) {
  for (const file of files) {
    try {
      add(file.name, decoded(await file.arrayBuffer()));
    } catch {
      refuse(`${file.name} is not a text in UTF-8 or UTF-16.`);
    }
  }
}

function decoded(bytes) {
  const [a, b] = new Uint8Array(bytes);
  const encoding = a === 0xff && b === 0xfe ? "utf-16le" : a === 0xfe && b === 0xff ? "utf-16be" : "utf-8";
  const text = new TextDecoder(encoding, {fatal: true}).decode(bytes);
  if (text.includes("\0")) throw new TypeError("binary");
  return text;
}

function refuse(message) {
  const note = make("li", {class: "failed", role: "alert"}, message);
  $("texts").append(note);
  setTimeout(() => note.remove(), 8000);
}

async function add(name, text) {
  if (!text.trim()) {
    refuse(`${name} is empty.`);
    return;
  }
  const entry = {name, text, n_tokens: null, error: null};
  texts.push(entry);
  show();
  $("text").focus();
  try {
    entry.n_tokens = (await textTokens(text)).length;
    announce(`${name}: ${count(entry.n_tokens)} tokens`);
  } catch (e) {
    entry.error = e.message;
  }
  if (texts.includes(entry)) show();
}

function show() {
  $("texts").replaceChildren(...texts.map(chip));
  changed();
}

function chip(entry) {
  const {name, n_tokens, error} = entry;
  const tooLong = n_tokens !== null && props && n_tokens > props.n_ctx;
  const size = error || (n_tokens === null ? "counting…" : `${count(n_tokens)} tokens`);
  return make("li", {class: "chip" + (tooLong || error ? " failed" : "")},
    make("strong", {}, name), make("span", {}, tooLong ? `${size}, more than the context of ${count(props.n_ctx)}` : size),
    make("button", {type: "button", "aria-label": `Remove ${name}`, click: () => { texts = texts.filter(t => t !== entry); show(); }}, "✕"));
}
