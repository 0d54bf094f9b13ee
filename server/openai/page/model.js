// What is served: /props, the variants of it (scaled and :base), and how its prompts are counted.

import {get, post} from "./api.js";
import {count} from "./dom.js";

export const VARIANTS = ["scaled", "base"];

/** /props, null until the server has told. */
export let props = null;

export async function loadModel() {
  try {
    props = await get("props");
  } catch (e) {
    props = null;
    throw e;
  }
}

/** Whether there is something to compare with. */
export const isScaled = () => Boolean(props?.layer_scale);

export const modelId = variant => props.model + (variant === "base" ? ":base" : "");

/** The request that answers messages; models without a chat template continue the last one as text. */
export function requestOf(variant, messages, options) {
  const common = {model: modelId(variant), ...options};
  return props.chat_template
    ? ["v1/chat/completions", {...common, messages}]
    : ["v1/completions", {...common, prompt: messages[messages.length - 1].content}];
}

/** How many tokens messages make as a prompt. */
export async function promptTokens(messages, signal) {
  const body = props.chat_template ? {messages} : {prompt: messages[messages.length - 1].content};
  return (await post("tokenize", body, signal)).count;
}

export async function textTokens(text, signal) {
  return (await post("tokenize", {content: text, parse_special: false}, signal)).tokens;
}

/** What an answer ran under, by its system_fingerprint: in words, or null where there is only one plan. */
export function planOf(fingerprint) {
  const hash = /^ropebend-(.+)$/.exec(fingerprint || "")?.[1];
  const plans = props?.plans || [];
  if (!hash || plans.length < 2) return null;
  const i = plans.findIndex(p => (p.hash || "unscaled") === hash);
  return i < 0 ? null : planName(plans, i);
}

export function planName(plans, i) {
  const {up_to, hash} = plans[i];
  const length = up_to ? `up to ${count(up_to)} tokens` : `beyond ${count(plans[i - 1].up_to)} tokens`;
  return `plan ${length}` + (hash ? "" : " (unscaled)");
}
