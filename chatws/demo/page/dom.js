// Helpers for the document. User text is inserted as text, never as markup.

import { setLanguage, t } from "./strings.js";

export const $ = (id) => document.getElementById(id);

/** Create an element: `h("p", {class: "x", "data-id": 5, onclick: f}, "text", child, …)`. Null children are omitted. */
export function h(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(key.slice(2), value);
    else if (value === true) element.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(key, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

export function initials(name) {
  const words = String(name).trim().split(/\s+/);
  const ends = words.length > 1 ? [words[0], words[words.length - 1]] : [words[0]];
  return ends.map((word) => [...word][0] || "?").join("").toUpperCase();
}

const TONES = 8;

/** Return a circle with initials, in a colour that depends on the id. */
export function avatar(name, id, more = "") {
  let sum = 0;
  for (const letter of String(id)) sum = sum * 3 + letter.codePointAt(0);
  return h("span", { class: `avatar tone-${sum % TONES} ${more}`, "aria-hidden": "true" }, initials(name));
}

/** Make `parent` contain exactly `entries` ([key, build, update]) in this order. Existing nodes are reused, and moved
 *  only if needed, so that focus and scroll position stay. */
export function reconcile(parent, entries) {
  const known = parent.rendered || (parent.rendered = new Map());
  const wanted = new Set(entries.map(([key]) => key));
  for (const [key, node] of known) {
    if (wanted.has(key)) continue;
    node.remove();
    known.delete(key);
  }
  let next = parent.firstChild;
  for (const [key, build, update] of entries) {
    let node = known.get(key);
    if (!node) {
      node = build();
      known.set(key, node);
    }
    update(node);
    if (node === next) next = next.nextSibling;
    else parent.insertBefore(node, next);
  }
}

/** Set the texts of all elements with data-t, data-t-label and data-t-placeholder. */
export function translatePage(language) {
  setLanguage(language);
  document.documentElement.lang = language === "pt" ? "pt-BR" : "en";
  for (const element of document.querySelectorAll("[data-t]")) element.textContent = t(element.dataset.t);
  for (const element of document.querySelectorAll("[data-t-label]")) {
    element.setAttribute("aria-label", t(element.dataset.tLabel));
  }
  for (const input of document.querySelectorAll("[data-t-placeholder]")) input.placeholder = t(input.dataset.tPlaceholder);
  for (const button of document.querySelectorAll("button.language")) {
    button.replaceChildren(icon("globe"), h("span", {}, t("other_language")));
    button.setAttribute("aria-label", t("other_language"));
    button.lang = language === "pt" ? "en" : "pt-BR";
  }
}

/** Show a short message that disappears by itself. `action` is [text, function]. */
export function toast(text, action = null) {
  const message = h("div", { class: "toast", "data-testid": "toast" }, h("span", {}, text));
  const close = () => message.remove();
  if (action) {
    message.append(h("button", { type: "button", onclick: () => (close(), action[1]()) }, action[0]));
  }
  message.append(h("button", { type: "button", class: "toast-close", "aria-label": t("dismiss"), onclick: close }, icon("close")));
  const stack = $("toasts");
  stack.append(message);
  while (stack.children.length > 3) stack.firstChild.remove();
  setTimeout(close, 6000);
}
