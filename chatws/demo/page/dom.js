// Small helpers around the document. Text from people goes in as text, never as markup.

import { setLanguage, t } from "./strings.js";

export const $ = (id) => document.getElementById(id);

/** An element: `h("p", {class: "x", "data-id": 5, onclick: f}, "text", child, …)`. Null children are left out. */
export function h(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(key.slice(2), value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children.flat().filter((one) => one !== null && one !== undefined && one !== false));
  return made;
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
  const letters = words.length > 1 ? [words[0], words[words.length - 1]] : [words[0]];
  return letters.map((one) => [...one][0] || "?").join("").toUpperCase();
}

const TONES = 8;

/** A round with initials, in a colour that is always this id's. */
export function avatar(name, id, more = "") {
  let sum = 0;
  for (const letter of String(id)) sum = sum * 3 + letter.codePointAt(0);
  return h("span", { class: `avatar tone-${sum % TONES} ${more}`, "aria-hidden": "true" }, initials(name));
}

/** Make `parent` hold exactly `entries` ([key, build, update]) in this order. What is there already is kept, with its
 *  focus and its scroll position, and moved only where it has to be. */
export function reconcile(parent, entries) {
  const known = parent.rendered || (parent.rendered = new Map());
  const wanted = new Set(entries.map(([key]) => key));
  for (const [key, node] of known) {
    if (wanted.has(key)) continue;
    node.remove();
    known.delete(key);
  }
  let place = parent.firstChild;
  for (const [key, build, update] of entries) {
    let node = known.get(key);
    if (!node) {
      node = build();
      known.set(key, node);
    }
    update(node);
    if (node === place) place = place.nextSibling;
    else parent.insertBefore(node, place);
  }
}

/** Put the language's texts into everything marked data-t, data-t-label and data-t-placeholder. */
export function translatePage(language) {
  setLanguage(language);
  document.documentElement.lang = language === "pt" ? "pt-BR" : "en";
  for (const one of document.querySelectorAll("[data-t]")) one.textContent = t(one.dataset.t);
  for (const one of document.querySelectorAll("[data-t-label]")) one.setAttribute("aria-label", t(one.dataset.tLabel));
  for (const one of document.querySelectorAll("[data-t-placeholder]")) one.placeholder = t(one.dataset.tPlaceholder);
  for (const one of document.querySelectorAll("button.language")) {
    one.replaceChildren(icon("globe"), h("span", {}, t("other_language")));
    one.setAttribute("aria-label", t("other_language"));
    one.lang = language === "pt" ? "en" : "pt-BR";
  }
}

/** Something short in the corner that goes by itself. `action` is [text, function]. */
export function toast(text, action = null) {
  const shown = h("div", { class: "toast", "data-testid": "toast" }, h("span", {}, text));
  const leave = () => shown.remove();
  if (action) {
    shown.append(h("button", { type: "button", onclick: () => (leave(), action[1]()) }, action[0]));
  }
  shown.append(h("button", { type: "button", class: "toast-close", "aria-label": t("dismiss"), onclick: leave }, icon("close")));
  const stack = $("toasts");
  stack.append(shown);
  while (stack.children.length > 3) stack.firstChild.remove();
  setTimeout(leave, 6000);
}
