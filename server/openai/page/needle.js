// The needle test: a fact is hidden at depths of a long text, and each variant is asked for it, outside of the chat.

import {post} from "./api.js";
import {heading} from "./answer.js";
import {$, count, make} from "./dom.js";
import {props, textTokens} from "./model.js";
import {attached} from "./texts.js";

// fact, question and filler as in RULER (arXiv 2404.06654)
const FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n";
const THINGS = "harbour lantern meadow violin glacier compass orchard falcon marble saddle teapot walnut".split(" ");
const DEPTHS = [0, 25, 50, 75, 100];
/** Tokens for the template, the fact and the question, roughly: what a length is proposed with. */
const BESIDE = 160;
const ANSWER = 256;

const pick = list => list[Math.floor(Math.random() * list.length)];

function newFact() {
  const thing = pick(THINGS), value = String(1000000 + Math.floor(Math.random() * 9000000));
  $("needle-fact").value = `One of the special magic numbers for ${thing} is: ${value}.`;
  $("needle-question").value = `What is the special magic number for ${thing} mentioned in the provided text?`;
  $("needle-expected").value = value;
}

const source = () => attached().map(t => t.text).join("\n\n");

/** Propose a length, and say of what. */
function propose() {
  const room = Math.max(64, props.n_ctx - BESIDE - ANSWER), texts = attached();
  const all = texts.reduce((sum, t) => sum + (t.n_tokens || 0), 0);
  $("needle-length").max = room;
  $("needle-length").value = texts.length ? Math.min(all, room) : Math.min(2000, room);
  $("needle-source").textContent = texts.length
    ? `Of ${texts.map(t => t.name).join(", ")}: ${count(all)} tokens` + (all > room ? `, of which the first ${count(room)} fit.` : ".")
    : "No text is attached, so RULER’s filler sentences are used. Drop or attach a long text to hide the fact in that.";
}

/** onRun: called with {name, length, depths, fact, question, expected}. */
export function watchNeedle(onRun) {
  const dialog = $("needle");
  $("needle-open").addEventListener("click", () => { newFact(); propose(); dialog.showModal(); });
  $("needle-new").addEventListener("click", newFact);
  $("needle-cancel").addEventListener("click", () => dialog.close());
  const depth = $("needle-depth");
  const say = () => { $("needle-depth-text").textContent = `${depth.value} %`; depth.disabled = $("needle-all").checked; };
  depth.addEventListener("input", say);
  $("needle-all").addEventListener("change", say);
  say();
  $("needle-form").addEventListener("submit", () => onRun({
    name: attached().map(t => t.name).join(", ") || "RULER’s filler",
    length: Number($("needle-length").value),
    depths: $("needle-all").checked ? DEPTHS : [Number(depth.value)],
    fact: $("needle-fact").value.trim(),
    question: $("needle-question").value.trim(),
    expected: $("needle-expected").value.trim(),
  }));
}

/** The first `length` tokens of the text. */
async function cut(length, signal) {
  let text = source();
  if (!text) {
    const each = (await textTokens(FILLER, signal)).length;
    text = FILLER.repeat(Math.ceil(length / each) + 1);
  }
  const tokens = await textTokens(text, signal);
  return tokens.length <= length ? text : (await post("detokenize", {tokens: tokens.slice(0, length)}, signal)).content;
}

/** The text with the fact between two sentences, as near as can be to a depth in percent. */
export function hidden(text, fact, depth) {
  const wanted = Math.round(text.length * depth / 100);
  const ends = [...text.matchAll(/[.!?]["”’)]*(?:\s+|$)|\n+/g)].map(m => m.index + m[0].length);
  const at = [0, ...(ends.length ? ends : [text.length])].reduce((best, e) => (Math.abs(e - wanted) < Math.abs(best - wanted) ? e : best));
  const before = text.slice(0, at), after = text.slice(at);
  return `${before}${before && !/\s$/.test(before) ? " " : ""}${fact}${after ? " " : ""}${after}`;
}

/**
 * Run it: one depth after the other, the variants side by side.
 *
 * ask: (parent, variant, messages, options, longest, signal) => Answer, once it is written
 */
export async function runNeedle(test, turn, variants, ask, options, signal) {
  const {depths, expected} = test;
  const cell = () => make("td", {}, "…");
  const rows = variants.map(v => make("tr", {}, make("th", {scope: "row"}, ...heading(v)), ...depths.map(cell)));
  const table = make("table", {class: "needle"},
    make("caption", {}, "Found at each depth of the text"),
    make("thead", {}, make("tr", {}, make("td"), ...depths.map(d => make("th", {scope: "col"}, `${d} %`)))), make("tbody", {}, ...rows));
  turn.append(make("div", {class: "wide"}, table));
  const text = await cut(test.length, signal);
  for (const [i, depth] of depths.entries()) {
    const content = "Some special magic numbers are hidden within the following text. Make sure to memorize it. "
      + `I will quiz you about the numbers afterwards.\n${hidden(text, test.fact, depth)}\n${test.question}`;
    const messages = [{role: "user", content}];
    const answers = make("div", {class: "answers"});
    const folded = make("details", {open: ""}, make("summary", {}, `Answers at ${depth} %`), answers);
    turn.append(folded);
    await Promise.all(variants.map(async (variant, row) => {
      const answer = await ask(answers, variant, messages, {...options, temperature: 0}, ANSWER, signal);
      const result = rows[row].cells[i + 1];
      if (answer.element.dataset.state === "stopped" || answer.failed) {
        result.textContent = "–";
        return;
      }
      const found = answer.text.replaceAll(",", "").toLowerCase().includes(expected.toLowerCase());
      result.textContent = found ? "✓ found" : "✗ missed";
      result.className = found ? "found" : "missed";
    }));
    if (signal.aborted) return;
    folded.open = depths.length === 1; // with several the table says it
  }
}
