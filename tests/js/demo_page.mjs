// Tests of the demo page's state and texts, without a browser. tests/test_demo_page.py runs them with node --test.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

// The page loads its files as modules. Node would decide by the file name, so it gets the text.
const load = (name) => {
  const text = readFileSync(new URL(`../../chatws/demo/page/${name}`, import.meta.url), "utf8");
  return import(`data:text/javascript,${encodeURIComponent(text)}`);
};
const { State } = await load("state.js");
const strings = await load("strings.js");

const NOON = Date.parse("2026-11-23T12:00:00.000Z");
const at = (seconds) => new Date(NOON + seconds * 1000).toISOString();

function inbox() {
  const clock = { now: NOON };
  const state = new State(() => clock.now);
  state.me = 1;
  state.agents = [{ id: 1, name: "Ana" }, { id: 2, name: "Bruno" }, { id: 3, name: "Carla" }];
  state.resetConversations([
    { id: 1, contact_name: "Marina", status: "open", assigned_to: 1, updated_at: at(-60), version: 5, unread_counts: { 1: 2 } },
    { id: 2, contact_name: "James", status: "open", assigned_to: null, updated_at: at(-30), version: 3, unread_counts: { 1: 1 } },
    { id: 3, contact_name: "Lucas", status: "closed", assigned_to: 2, updated_at: at(-10), version: 2, unread_counts: {} },
  ]);
  return { state, clock };
}
const names = (conversations) => conversations.map(({ contact_name: name }) => name);
const contents = (messages) => messages.map(({ content }) => content);

test("the list shows the latest conversation first, by filter or search", () => {
  const { state } = inbox();
  assert.deepEqual(names(state.listed()), ["James", "Marina"]);
  state.filter = "mine";
  assert.deepEqual(names(state.listed()), ["Marina"]);
  state.filter = "closed";
  assert.deepEqual(names(state.listed()), ["Lucas"]);
  state.search = " MAR ";
  assert.deepEqual(names(state.listed()), ["Marina"]);
  assert.deepEqual(["open", "mine", "closed"].map((filter) => state.count(filter)), [2, 1, 1]);
});

test("the state ignores an older version of a conversation", () => {
  const { state } = inbox();
  assert.equal(state.mergeConversation(1, { version: 4, status: "closed" }), undefined);
  assert.equal(state.conversation(1).status, "open");
  assert.equal(state.mergeConversation("1", { version: 6, status: "closed" }).status, "open");
  assert.equal(state.conversation(1).status, "closed");
  assert.equal(state.conversation(1).contact_name, "Marina");
});

test("the state keeps a pushed conversation without a version", () => {
  const { state } = inbox();
  assert.equal(state.mergeConversation("order-7", { contact_name: "Nadia" }), null);
  assert.equal(names(state.listed())[0], "Nadia");
  state.resetConversations([{ id: 1, contact_name: "Marina", status: "open", updated_at: at(1), version: 9 }]);
  assert.deepEqual(names(state.listed()), ["Marina", "Nadia"]);
});

test("the visible open conversation has no unread messages", () => {
  const { state } = inbox();
  assert.equal(state.unreadTotal(), 3);
  state.open = 1;
  assert.equal(state.unreadTotal(), 1);
  state.visible = false;
  assert.equal(state.unreadTotal(), 3);
});

test("the thread contains a repeated message once and in order", () => {
  const { state } = inbox();
  const message = (id, seconds, content) => ({ id, sender_type: "customer", content, created_at: at(seconds) });
  assert.equal(state.addMessage(1, message(12, 2, "b")), true);
  assert.equal(state.addMessage("1", message("12", 2, "b")), false);
  state.resetThread(1, [message(11, 1, "a"), message(12, 2, "b"), message(14, 3, "d")], { 2: 12 });
  assert.equal(state.addMessage(1, message(13, 3, "c")), true);
  assert.deepEqual(contents(state.messages(1)), ["a", "b", "c", "d"]);
});

test("the stored message replaces the one that was being sent", () => {
  const { state } = inbox();
  state.outbox.set("x1", { client_id: "x1", conversation_id: 1, content: "hello", created_at: at(5) });
  state.outbox.set("x2", { client_id: "x2", conversation_id: 1, content: "there", created_at: at(6) });
  state.addMessage(1, { id: 20, sender_type: "agent", sender_id: 1, content: "hello", created_at: at(7), client_id: "x1" });
  state.addMessage(1, { id: 21, sender_type: "customer", content: "hi", created_at: at(8) });
  assert.deepEqual(contents(state.messages(1)), ["hello", "hi", "there"]);
  assert.deepEqual(contents(state.messages(2)), []);
});

test("a pushed message with only an id and a text is shown last and moves the list", () => {
  const { state } = inbox();
  state.addMessage(1, { id: 1001, sender_type: "agent", sender_id: 2, content: "old", created_at: at(-60) });
  assert.equal(state.addMessage(1, { id: 9, content: "hi" }), true);
  assert.deepEqual(contents(state.messages(1)), ["old", "hi"]);
  assert.equal(names(state.listed())[0], "Marina");
  assert.equal(state.addMessage(1, { content: "no id" }), false);
  assert.equal(state.addMessage(1, null), false);
});

test("the state detects that a thread lacks the last message", () => {
  const { state } = inbox();
  state.mergeConversation(1, { version: 6, last_message: { id: 30, content: "?" } });
  assert.equal(state.isBehind(1), true);
  state.addMessage(1, { id: 30, sender_type: "customer", content: "?", created_at: at(0) });
  assert.equal(state.isBehind(1), false);
});

test("typing ends with an event, a message, or a timeout", () => {
  const { state, clock } = inbox();
  state.setTyping(1, 1, true);
  assert.deepEqual(state.typingIn(1), []);
  for (const user of [2, 3, "customer-1"]) state.setTyping(1, user, true);
  assert.deepEqual(state.typingIn("1"), ["2", "3", "customer-1"]);
  state.setTyping(1, 2, false);
  state.addMessage(1, { id: 40, sender_type: "customer", content: "so", created_at: at(0) });
  assert.deepEqual(state.typingIn(1), ["3"]);
  clock.now += 6000;
  assert.deepEqual(state.typingIn(1), []);
});

test("the state lists the other agents that have read the last message", () => {
  const { state } = inbox();
  state.resetThread(1, [{ id: 50, sender_type: "agent", sender_id: 2, content: "x", created_at: at(0) }], { 1: 50, 2: 50, 3: 49 });
  assert.deepEqual(state.seenBy(1), []);
  state.addRead(1, 3, 50);
  state.addRead(1, 3, 48);
  assert.deepEqual(state.seenBy(1).map(({ name }) => name), ["Carla"]);
});

test("both languages have the same keys", () => {
  const { en, pt } = strings.keysByLanguage();
  assert.deepEqual(en, pt);
});

test("every key that the page uses exists", () => {
  const { en } = strings.keysByLanguage();
  const used = new Set();
  for (const name of ["index.html", "app.js", "connection.js", "dom.js", "list.js", "outbox.js", "thread.js"]) {
    const text = readFileSync(new URL(`../../chatws/demo/page/${name}`, import.meta.url), "utf8");
    for (const [, key] of text.matchAll(/data-t(?:-label|-placeholder)?="(\w+)"/g)) used.add(key);
    for (const [, key] of text.matchAll(/\bt\("(\w+)"/g)) used.add(key);
    for (const [, key] of text.matchAll(/\btn\("(\w+)"/g)) used.add(key).add(`${key}_one`);
  }
  assert.ok(used.size > 50);
  assert.deepEqual([...used].filter((key) => !en.includes(key)), []);
});

test("the language is the chosen one, that of the browser, or English", () => {
  const { preferredLanguage } = strings;
  assert.equal(preferredLanguage("pt", "en-US"), "pt");
  assert.equal(preferredLanguage(null, "pt-BR"), "pt");
  assert.equal(preferredLanguage("xx", "de"), "en");
  assert.equal(preferredLanguage(null, undefined), "en");
});

test("texts contain the given values and keep unknown placeholders", () => {
  strings.setLanguage("pt");
  assert.equal(strings.tn("unread", 1), "1 mensagem não lida");
  assert.equal(strings.tn("unread", 3), "3 mensagens não lidas");
  strings.setLanguage("en");
  assert.equal(strings.t("typing_one", { name: "$& {other}" }), "$& {other} is typing…");
  assert.equal(strings.t("no such key"), "no such key");
});
