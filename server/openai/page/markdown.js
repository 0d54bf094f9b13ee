// Answers as HTML. What a model writes is not trusted: its HTML is shown as text, and the rest is sanitised.

import {Marked} from "./vendor/marked.esm.js";
import "./vendor/purify.min.js";
import {copyButton} from "./dom.js";

const escape = text => text.replace(/[&<>"']/g, c => `&#${c.charCodeAt(0)};`);
const marked = new Marked({
  gfm: true,
  breaks: true,
  renderer: {
    html: token => escape(token.text),
    image: token => escape(token.raw), // nothing is loaded from elsewhere
    checkbox: token => (token.checked ? "☑ " : "☐ "),
  },
});
const purifier = globalThis.DOMPurify;
const ALLOWED = {
  ALLOWED_TAGS: [
    ..."a p br hr h1 h2 h3 h4 h5 h6 strong em del code pre blockquote ul ol li".split(" "),
    ..."table thead tbody tr th td".split(" "),
  ],
  ALLOWED_ATTR: ["href", "title", "align", "class", "start"],
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
  RETURN_DOM_FRAGMENT: true,
};

/** Show a text in Markdown in an element. finished: false while it is still being written. */
export function showMarkdown(element, text, finished) {
  const fragment = purifier.sanitize(marked.parse(text), ALLOWED);
  for (const a of fragment.querySelectorAll("a")) {
    a.target = "_blank";
    a.rel = "noopener noreferrer nofollow";
  }
  for (const table of fragment.querySelectorAll("table")) wrap(table, "wide");
  for (const pre of fragment.querySelectorAll("pre")) {
    pre.tabIndex = 0; // so that the keyboard can scroll it
    const box = wrap(pre, "code");
    const language = /language-(\S+)/.exec(pre.firstElementChild?.className || "");
    const head = document.createElement("div");
    head.append(language ? language[1] : "code");
    if (finished) head.append(copyButton(() => pre.textContent));
    box.prepend(head);
  }
  element.replaceChildren(fragment);
}

function wrap(element, name) {
  const box = document.createElement("div");
  box.className = name;
  element.replaceWith(box);
  box.append(element);
  return box;
}
