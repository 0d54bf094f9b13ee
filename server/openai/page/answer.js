// One answer on the screen: streamed text, folded thinking, and what it took.

import {stream} from "./api.js";
import {copyButton, count, make} from "./dom.js";
import {showMarkdown} from "./markdown.js";
import {isScaled, modelId, planOf, promptTokens, props, requestOf} from "./model.js";

/** What a variant is called on the screen: parts of an element. */
export function heading(variant) {
  if (!isScaled()) return [props.model];
  return [props.model, " ", make("em", {class: variant}, variant === "base" ? ":base, unscaled" : "scaled")];
}

/** The answers being written, for what is told of them while they wait. */
export const waiting = new Set();

export class Answer {
  /** variant: "scaled" or "base". */
  constructor(parent, variant) {
    this.variant = variant;
    this.text = "";
    this.thinking = "";
    this.failed = false;
    this.element = make("article", {class: "answer", "data-variant": variant, "data-state": "waiting", "aria-busy": "true"});
    this.state = make("p", {class: "state"}, "waiting…");
    this.body = make("div", {class: "markdown"});
    this.facts = make("p", {class: "facts"});
    this.element.append(make("header", {}, make("h2", {}, ...heading(variant))), this.state, this.body, this.facts);
    parent.append(this.element);
  }

  /** Ask for it. options: the sampling parameters; longest: max_tokens, where the context has that many left. */
  async run(messages, options, longest, signal) {
    let reason = null, usage = null, fingerprint = "", first = null, last = null, begun = 0, room = 0;
    try {
      this.n_prompt = await promptTokens(messages, signal);
      room = props.n_ctx - this.n_prompt;
      if (room < 1) throw new Error(`${count(this.n_prompt)} tokens do not fit in the context of ${count(props.n_ctx)}.`);
      const [path, body] = requestOf(this.variant, messages, {...options, max_tokens: Math.min(longest, room)});
      this.state.textContent = `reading ${count(this.n_prompt)} tokens…`;
      waiting.add(this);
      begun = performance.now();
      for await (const event of stream(path, body, signal)) {
        fingerprint = event.system_fingerprint || fingerprint;
        usage = event.usage || usage;
        const choice = event.choices[0];
        if (!choice) continue;
        reason = choice.finish_reason || reason;
        const thought = choice.delta?.reasoning_content || "", said = (choice.delta ? choice.delta.content : choice.text) || "";
        if (!thought && !said) continue;
        last = performance.now();
        first ??= last;
        this.thinking += thought;
        this.text += said;
        this.#show();
      }
    } catch (e) {
      reason = e.name === "AbortError" ? "stopped" : "failed";
      this.failed = reason === "failed";
      if (this.failed) this.element.append(make("p", {class: "failed", role: "alert"}, e.message));
    } finally {
      waiting.delete(this);
    }
    this.#render(true);
    this.state.remove();
    if (first !== null) this.element.firstChild.append(copyButton(() => this.text));
    else if (!this.failed) this.body.append(make("p", {class: "state"}, reason === "stopped" ? "Nothing was written." : "An empty answer."));
    this.#tell({reason, usage, fingerprint, first, last, begun, longest, capped: room < longest, seed: options.seed});
    this.element.dataset.state = {stopped: "stopped", failed: "failed"}[reason] || "done";
    this.element.removeAttribute("aria-busy");
    return this;
  }

  /** Of /status: how far the prompt is. */
  progress(n_computed) {
    if (n_computed < this.n_prompt) this.state.textContent = `reading ${count(n_computed)} of ${count(this.n_prompt)} tokens…`;
  }

  message() {
    return {role: "assistant", content: this.text, ...(this.thinking ? {reasoning_content: this.thinking} : {})};
  }

  // Markdown is read anew each time: seldom enough that long answers stay cheap
  #show() {
    if (this.timer) return;
    this.timer = setTimeout(() => {
      const begun = performance.now();
      this.#render(false);
      this.pause = Math.min(1000, Math.max(40, 5 * (performance.now() - begun)));
      this.timer = null;
    }, this.pause || 0);
  }

  #render(finished) {
    if (finished) clearTimeout(this.timer);
    this.element.dataset.state = "writing";
    if (this.thinking) {
      if (!this.thoughts) {
        this.thoughts = make("details", {class: "thinking"}, make("summary", {}, "Thinking…"), make("div"));
        this.body.before(this.thoughts);
      }
      this.thoughts.lastChild.textContent = this.thinking;
      if (this.text || finished) this.thoughts.firstChild.textContent = "Thought";
      if (finished && !this.text) this.thoughts.open = true; // all that there is
    }
    this.state.hidden = Boolean(this.text || this.thinking);
    showMarkdown(this.body, this.text, finished);
  }

  #tell({reason, usage, fingerprint, first, last, begun, longest, capped, seed}) {
    const facts = [];
    if (first !== null) facts.push(`${seconds(first - begun)} to the first token`);
    const n = usage?.completion_tokens;
    if (n > 1 && last > first) facts.push(`${((n - 1) / (last - first) * 1000).toFixed(1)} tokens/s`);
    if (usage) facts.push(`${count(usage.total_tokens)} of ${count(props.n_ctx)} tokens of context`);
    const plan = this.variant === "scaled" ? planOf(fingerprint) : null;
    if (plan) facts.push(plan);
    const end = {length: capped ? "stopped: the context is full" : `stopped at max tokens (${count(longest)})`, stopped: "stopped by you"};
    this.facts.replaceChildren(...facts.map(f => make("span", {}, f)));
    if (end[reason]) this.facts.append(make("span", {class: "end"}, end[reason]));
    this.facts.title = [
      modelId(this.variant), fingerprint && `computed as ${fingerprint}`, `seed ${seed}`,
      usage && `${count(usage.prompt_tokens)} prompt tokens, ${count(usage.prompt_tokens_details?.cached_tokens || 0)} of them from the cache, ${count(n)} generated`,
    ].filter(Boolean).join("\n");
  }
}

const seconds = ms => (ms < 100 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(ms < 10000 ? 2 : 1)} s`);
