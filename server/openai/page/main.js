// The chat: turns, the box below them, the meter, and what starts all of it.

import {setKey} from "./api.js";
import {Answer} from "./answer.js";
import {$, announce, count, debounced, make} from "./dom.js";
import {isScaled, loadModel, modelId, promptTokens, props, VARIANTS} from "./model.js";
import {runNeedle, watchNeedle} from "./needle.js";
import {showModel, watchSlots} from "./panel.js";
import {bindSettings, checked, keep, number, setting, text} from "./settings.js";
import {attached, clearTexts, putBack, watchTexts} from "./texts.js";

/** {content, typed, texts, answers: {scaled, base}, element} of each turn of the chat. */
let turns = [];
let abort = null;

// ---- what is asked

function variants() {
  const mode = document.querySelector("[name=mode]:checked").value;
  return !isScaled() ? ["scaled"] : mode === "both" ? VARIANTS : [mode];
}

/** The messages that a variant sees: its own answers, the other's where it was not asked. */
function history(variant) {
  const system = text("system").trim();
  const messages = system ? [{role: "system", content: system}] : [];
  for (const turn of turns) {
    messages.push({role: "user", content: turn.content});
    const answer = turn.answers[variant] || Object.values(turn.answers)[0];
    if (answer) messages.push(answer.message());
  }
  return messages;
}

/** A message as the model gets it: the long texts first, what is asked about them last. */
const contentOf = (typed, texts) => [...texts.map(t => t.text), typed].filter(Boolean).join("\n\n");

function sampling() {
  const seed = number("seed") ?? Math.floor(Math.random() * 2 ** 31);
  const options = {temperature: number("temperature") ?? 0.7, top_p: number("top_p") ?? 1, seed};
  if (canThink() && !checked("thinking")) options.chat_template_kwargs = {enable_thinking: false};
  return options;
}

const canThink = () => /\benable_thinking\b/.test(props?.chat_template || "");

/** The answer of a variant, once it is written. */
async function ask(parent, variant, messages, options, longest, signal) {
  const answer = await new Answer(parent, variant).run(messages, options, longest, signal);
  announce(`${modelId(variant)} has answered: ${answer.text.slice(0, 300)}`);
  return answer;
}

/** Ask every variant for the answer of the last turn; one that is there is replaced. */
async function answerTurn(turn) {
  const signal = begin(), options = sampling(), longest = number("max_tokens") ?? props.n_ctx;
  turn.answers = {};
  turn.box?.remove();
  turn.box = make("div", {class: "answers"});
  turn.element.append(turn.box);
  const asked = variants();
  const answers = await Promise.all(asked.map(v => ask(turn.box, v, history(v), options, longest, signal)));
  end();
  if (!turns.includes(turn)) return; // a new chat was begun
  // an answer that is none is no part of the chat
  asked.forEach((v, i) => { if (answers[i].text || answers[i].thinking) turn.answers[v] = answers[i]; });
  if (Object.keys(turn.answers).length === 0) {
    turns = turns.filter(t => t !== turn);
    if (!$("text").value && attached().length === 0) giveBack(turn);
  }
  showActions();
  measure();
}

function giveBack({typed, texts}) {
  $("text").value = typed;
  putBack(texts);
  grow();
}

function begin() {
  abort = new AbortController();
  document.body.classList.add("busy");
  $("send").disabled = true;
  $("stop").hidden = false;
  $("send").hidden = true;
  stick = true;
  return abort.signal;
}

function end() {
  abort = null;
  document.body.classList.remove("busy");
  $("stop").hidden = true;
  $("send").hidden = false;
  ready();
}

// ---- turns on the screen

function userBubble(typed, texts) {
  const folded = texts.map(({name, text, n_tokens}) => {
    const inside = make("pre", {tabindex: "0"});
    return make("details", {toggle: () => { inside.textContent = text; }},
      make("summary", {}, make("strong", {}, name), n_tokens === null ? "" : ` ${count(n_tokens)} tokens`), inside);
  });
  return make("div", {class: "user"}, make("span", {class: "sr"}, "You: "), ...folded, typed ? make("p", {}, typed) : null);
}

function newTurn(bubble) {
  $("welcome").hidden = true;
  const element = make("section", {class: "turn"}, bubble);
  $("turns").append(element);
  return element;
}

/** The last turn can be asked again or changed. */
function showActions() {
  for (const e of document.querySelectorAll(".actions")) e.remove();
  const turn = turns[turns.length - 1];
  if (!turn) return;
  turn.element.append(make("div", {class: "actions"},
    make("button", {type: "button", class: "quiet", click: () => { if (!abort) answerTurn(turn); }}, "Ask again"),
    make("button", {type: "button", class: "quiet", click: () => {
      if (abort) return;
      turns.pop();
      turn.element.remove();
      giveBack(turn);
      $("welcome").hidden = $("turns").childElementCount > 0;
      showActions();
      measure();
      $("text").focus();
    }}, "Edit")));
}

async function send(event) {
  event.preventDefault();
  const typed = $("text").value.trim(), texts = [...attached()];
  if (props === null || abort !== null || !(typed || texts.length)) return;
  $("text").value = "";
  clearTexts();
  grow();
  const turn = {content: contentOf(typed, texts), typed, texts, answers: {}, element: newTurn(userBubble(typed, texts))};
  turns.push(turn);
  await answerTurn(turn);
}

async function needle(test) {
  if (props === null || abort !== null) return;
  const depths = test.depths.map(d => `${d} %`).join(", ");
  const element = newTurn(make("div", {class: "user"},
    make("p", {}, make("strong", {}, "Needle test"), ` · ${count(test.length)} tokens of ${test.name} · depth ${depths}`),
    make("p", {class: "hint"}, `“${test.fact}” ${test.question}`)));
  const signal = begin();
  try {
    await runNeedle(test, element, variants(), ask, sampling(), signal);
  } catch (e) {
    if (e.name !== "AbortError") element.append(make("p", {class: "failed", role: "alert"}, e.message));
  }
  end();
}

// ---- the meter: what the next message would take of the context

let counting = null;

const measure = debounced(async () => {
  if (props === null) return;
  counting?.abort();
  counting = new AbortController();
  const content = contentOf($("text").value.trim(), attached());
  const messages = history(variants()[0]);
  const least = attached().reduce((sum, t) => sum + (t.n_tokens || 0), 0);
  if (least > props.n_ctx) {
    showMeter(least); // the server does not count what cannot fit
    return;
  }
  if (content) messages.push({role: "user", content});
  try {
    const used = messages.length && (content || turns.length) ? await promptTokens(messages, counting.signal) : 0;
    showMeter(used);
  } catch (e) {
    if (e.code === "context_length_exceeded") showMeter(null);
    else if (e.name !== "AbortError") $("meter-text").textContent = e.message;
  }
}, 300);

/** tokens; null: more than there is room for. */
function showMeter(tokens) {
  const {n_ctx, n_ctx_train} = props, meter = $("meter"), used = tokens ?? n_ctx;
  const answer = used ? Math.max(0, Math.min(number("max_tokens") ?? n_ctx, n_ctx - used)) : 0;
  const share = n => `${Math.min(100, n / n_ctx * 100)}%`;
  meter.style.setProperty("--used", share(used));
  meter.style.setProperty("--answer", share(answer));
  meter.style.setProperty("--trained", share(n_ctx_train));
  meter.dataset.over = used >= n_ctx ? "full" : used + answer > n_ctx_train ? "beyond" : "";
  meter.classList.toggle("extended", n_ctx > n_ctx_train);
  const said = `${count(used)} of ${count(n_ctx)} tokens` + (n_ctx > n_ctx_train ? `, trained at ${count(n_ctx_train)}` : "");
  $("meter-text").textContent = tokens === null ? `more than ${count(n_ctx)} tokens: too long` : used >= n_ctx ? `${said}: too long` : said;
  meter.setAttribute("aria-valuenow", used);
  meter.setAttribute("aria-valuemax", n_ctx);
  meter.setAttribute("aria-valuetext", said);
  meter.title = "Filled: the chat and what is in the box. Striped: room for the answer (max tokens)."
    + (n_ctx > n_ctx_train ? " The mark: the length the model was trained at." : "");
}

// ---- the box, and scrolling along

function grow() {
  const box = $("text");
  box.style.height = "auto";
  box.style.height = `${box.scrollHeight + 2}px`;
  ready();
}

function ready() {
  $("send").disabled = props === null || abort !== null || !($("text").value.trim() || attached().length);
}

let stick = true;

function scrollAlong() {
  const log = $("log");
  const atEnd = () => log.scrollHeight - log.scrollTop - log.clientHeight < 60;
  log.addEventListener("scroll", () => { stick = atEnd(); $("to-end").hidden = stick; });
  const follow = new ResizeObserver(() => {
    if (stick) log.scrollTop = log.scrollHeight;
    $("to-end").hidden = stick || atEnd();
  });
  follow.observe($("turns"));
  follow.observe(log);
  $("to-end").addEventListener("click", () => { stick = true; log.scrollTop = log.scrollHeight; });
}

function newChat() {
  abort?.abort();
  turns = [];
  $("turns").replaceChildren();
  $("welcome").hidden = false;
  measure();
  $("text").focus();
}

// ---- the panel and the server

function showPanel(open) {
  document.body.classList.toggle("with-panel", open);
  $("panel").hidden = !open;
  $("panel-open").setAttribute("aria-expanded", open);
}

async function connect() {
  try {
    await loadModel();
  } catch (e) {
    $("model").textContent = e.status === 503 ? "Loading the model…" : e.message;
    return;
  }
  $("key-form").hidden = true;
  $("model").textContent = props.model;
  document.title = `${props.model} · ropebend`;
  $("modes").hidden = !isScaled();
  $("thinking-row").hidden = !canThink();
  $("welcome-model").textContent = props.model;
  $("welcome-compare").hidden = !isScaled();
  showModel();
  showMeter(0);
  measure();
  ready();
}

/** While the server is away or loading, ask again; then show its slots. */
async function watch() {
  if (props === null && $("key-form").hidden) await connect();
  if (props !== null && !document.hidden && (abort || !$("panel").hidden)) {
    try {
      await watchSlots();
      if (!$("away").hidden) await connect(); // it may be another model now
      $("away").hidden = true;
    } catch (e) {
      $("away").textContent = e.message;
      $("away").hidden = false;
    }
  }
  setTimeout(watch, 1000);
}

function start() {
  bindSettings();
  const mode = document.querySelector(`[name=mode][value="${setting("mode", "both")}"]`);
  if (mode) mode.checked = true;
  for (const radio of document.querySelectorAll("[name=mode]")) {
    radio.addEventListener("change", () => { keep("mode", radio.value); measure(); });
  }
  for (const name of ["system", "max_tokens"]) document.querySelector(`[data-setting=${name}]`).addEventListener("input", measure);
  const wide = matchMedia("(min-width: 70rem)").matches;
  showPanel(wide && setting("panel", true));
  $("panel-open").addEventListener("click", () => {
    const open = $("panel").hidden;
    showPanel(open);
    if (wide) keep("panel", open);
    if (open && !wide) $("panel-close").focus();
  });
  $("panel-close").addEventListener("click", () => {
    showPanel(false);
    if (wide) keep("panel", false);
    $("panel-open").focus();
  });
  $("ask").addEventListener("submit", send);
  $("stop").addEventListener("click", () => abort?.abort());
  $("new").addEventListener("click", newChat);
  $("text").addEventListener("input", () => { grow(); measure(); });
  $("text").addEventListener("keydown", event => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    $("ask").requestSubmit();
  });
  addEventListener("keydown", event => {
    if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
    if (abort) abort.abort();
    else if (!wide && !$("panel").hidden) $("panel-close").click();
  });
  document.addEventListener("key-wanted", event => {
    $("key-form").hidden = false;
    $("key-text").textContent = event.detail;
    $("key").focus();
  });
  $("key-form").addEventListener("submit", event => {
    event.preventDefault();
    setKey($("key").value);
    $("key-form").hidden = true;
    connect();
  });
  watchTexts(() => { ready(); measure(); });
  watchNeedle(needle);
  scrollAlong();
  watch();
  $("text").focus();
}

start();
