// The panel beside the chat: the numbers of each layer, the cache and the slots.

import {get} from "./api.js";
import {waiting} from "./answer.js";
import {$, count, make, svg} from "./dom.js";
import {isScaled, planName, props} from "./model.js";

const WIDTH = 280, HEIGHT = 120, LEFT = 34, TOP = 10, BOTTOM = 18;

/** A number of each layer as a curve, with a dot a layer that says it. */
function curve(values, what) {
  const low = Math.min(1, ...values), high = Math.max(low + 0.05, ...values);
  const x = i => LEFT + i * (WIDTH - LEFT - 8) / Math.max(1, values.length - 1);
  const y = v => HEIGHT - BOTTOM - (v - low) / (high - low) * (HEIGHT - BOTTOM - TOP);
  const label = `${what} from layer 0 to ${values.length - 1}: ` + values.map(v => +v.toFixed(3)).join(", ");
  const picture = svg("svg", {viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: "curve", role: "img", "aria-label": label});
  for (const v of new Set([low, 1, high])) {
    const near = v === 1 && Math.min(y(low) - y(1), y(1) - y(high)) < 10 && low !== 1 && high !== 1;
    picture.append(svg("line", {x1: LEFT - 4, x2: WIDTH - 4, y1: y(v), y2: y(v), class: v === 1 ? "one" : "grid"}));
    if (!near) picture.append(svg("text", {x: LEFT - 8, y: y(v) + 3, "text-anchor": "end"}, v.toFixed(2)));
  }
  picture.append(svg("polyline", {points: values.map((v, i) => `${x(i)},${y(v)}`).join(" ")}));
  values.forEach((v, i) => picture.append(
    svg("circle", {cx: x(i), cy: y(v), r: values.length > 48 ? 1.8 : 2.6}, svg("title", {}, `layer ${i}: ${+v.toFixed(4)}`))));
  picture.append(svg("text", {x: LEFT, y: HEIGHT - 4}, "layer 0"),
    svg("text", {x: WIDTH - 8, y: HEIGHT - 4, "text-anchor": "end"}, `layer ${values.length - 1}`));
  return picture;
}

function plansOf(given) {
  const plans = given.plans || [];
  return plans.length ? plans : [{up_to: null, hash: given.plan_hash, layer_scale: given.layer_scale, layer_attn_factor: given.layer_attn_factor}];
}

/** Show what the model is. */
export function showModel() {
  const facts = [["Model", props.model], ["Architecture", props.architecture], ["Context", `${count(props.n_ctx)} tokens`],
    ["Trained at", `${count(props.n_ctx_train)} tokens`]];
  const {method, factor} = props.rope || {};
  if (method && method !== "none") facts.push(["Rope", `${method} × ${+factor.toFixed(3)}`]);
  if (!props.chat_template) facts.push(["Template", "none: each message is continued as text"]);
  $("model-facts").replaceChildren(...facts.flatMap(([k, v]) => [make("dt", {}, k), make("dd", {}, v)]));
  const box = $("curves");
  if (!isScaled()) {
    box.replaceChildren(make("p", {class: "hint"}, "No layer scales: the model runs as it is. "),
      make("p", {class: "hint"}, "Find some with ", make("code", {}, "ropebend tune"), "."));
    return;
  }
  const plans = plansOf(props), chosen = make("div");
  const show = i => {
    const {layer_scale, layer_attn_factor} = plans[i];
    chosen.replaceChildren();
    if (!layer_scale) chosen.append(make("p", {class: "hint"}, "Unscaled: these run as the model is."));
    else chosen.append(make("h3", {}, "Scale of each layer"), curve(layer_scale, "Scale"));
    if (layer_attn_factor?.some(f => f !== 1)) chosen.append(make("h3", {}, "Attention factor of each layer"), curve(layer_attn_factor, "Attention factor"));
  };
  box.replaceChildren(chosen);
  if (plans.length > 1) {
    const select = make("select", {"aria-label": "Plan by length", change: () => show(select.selectedIndex)},
      ...plans.map((_, i) => make("option", {}, planName(plans, i))));
    select.selectedIndex = plans.length - 1;
    box.prepend(select);
  }
  show(plans.length - 1);
}

/** Ask for the slots once, and show them and how far the waiting answers are. */
export async function watchSlots() {
  const {kv, slots, n_slots, n_waiting} = await get("status");
  $("kv").max = kv.n_cells;
  $("kv").value = kv.n_used;
  $("kv-text").textContent = `${count(kv.n_used)} of ${count(kv.n_cells)} cells, cached texts: ${kv.n_cached_sequences}`;
  $("slots-text").textContent = `${slots.length} of ${n_slots} busy, ${n_waiting} waiting`;
  $("slots").hidden = slots.length === 0;
  $("slots").tBodies[0].replaceChildren(...slots.map(s =>
    make("tr", {}, ...["n_prompt", "n_cached", "n_computed", "n_generated"].map(k => make("td", {}, count(s[k]))))));
  for (const answer of waiting) {
    const mine = slots.find(s => s.n_prompt === answer.n_prompt && Boolean(s.plan) === (answer.variant === "scaled" && isScaled()))
      || slots.find(s => s.n_prompt === answer.n_prompt); // a plan by length may be none
    if (mine) answer.progress(mine.n_computed);
  }
}
