// Small helpers for elements and numbers.

export const $ = id => document.getElementById(id);

/** A new element: its name, attributes (functions are listeners, null is left out), and children. */
export function make(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

export function svg(name, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}

function filled(element, attributes, children) {
  for (const [k, v] of Object.entries(attributes)) {
    if (typeof v === "function") element.addEventListener(k, v);
    else if (v !== null) element.setAttribute(k, v);
  }
  element.append(...children.filter(c => c !== null));
  return element;
}

const format = new Intl.NumberFormat("en");

/** 8192 as "8,192". */
export const count = n => format.format(n);

/** Say it to screen readers; the screen shows it elsewhere. */
export function announce(text) {
  $("live").textContent = text;
}

/** `f`, once calls have stopped coming for so long. */
export function debounced(f, milliseconds) {
  let timer;
  return (...given) => {
    clearTimeout(timer);
    timer = setTimeout(f, milliseconds, ...given);
  };
}

/** A button that copies what `text` gives, and says that it did. */
export function copyButton(text, label = "Copy") {
  const button = make("button", {type: "button", class: "quiet copy"}, label);
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text());
      button.textContent = "Copied";
    } catch {
      button.textContent = "The browser forbids it"; // no clipboard without HTTPS, but for this machine
    }
    setTimeout(() => { button.textContent = label; }, 1500);
  });
  return button;
}
