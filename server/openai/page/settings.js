// What the user has set, remembered in this browser. Fields say with data-setting what they are called.

const STORE = "ropebend-settings";

function load() {
  try {
    return JSON.parse(localStorage.getItem(STORE)) || {};
  } catch {
    return {};
  }
}

const kept = load();

/** A setting that is no field, or `otherwise`. */
export function setting(name, otherwise) {
  return name in kept ? kept[name] : otherwise;
}

export function keep(name, value) {
  kept[name] = value;
  try {
    localStorage.setItem(STORE, JSON.stringify(kept));
  } catch {
    // a browser that keeps nothing: the settings hold for this visit
  }
}

/** Fill in the fields and keep what is changed. */
export function bindSettings() {
  for (const field of document.querySelectorAll("[data-setting]")) {
    const name = field.dataset.setting, property = field.type === "checkbox" ? "checked" : "value";
    if (name in kept) field[property] = kept[name];
    field.addEventListener("input", () => keep(name, field[property]));
  }
}

const field = name => document.querySelector(`[data-setting="${name}"]`);

export const text = name => field(name).value;
export const checked = name => field(name).checked;

/** The number in a field, within what it allows; null if there is none. */
export function number(name) {
  const {value, min, max} = field(name);
  if (value.trim() === "" || Number.isNaN(Number(value))) return null;
  const n = Math.max(min === "" ? -Infinity : Number(min), Math.min(max === "" ? Infinity : Number(max), Number(value)));
  return field(name).step === "1" || field(name).step === "" ? Math.round(n) : n;
}
