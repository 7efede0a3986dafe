// Tests of every way to load the file.

import assert from 'node:assert/strict';
import { copyFileSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath, pathToFileURL } from 'node:url';
import vm from 'node:vm';

import byDefault, { ChatwsClient, wsClient } from '../../chatws/static/websocket-client.js';

const PATH = fileURLToPath(new URL('../../chatws/static/websocket-client.js', import.meta.url));

/** A global scope of its own, as a page has. @param {object} [more] further globals of a browser */
function page(more = {}) {
  const world = vm.createContext({ console, setTimeout, clearTimeout, ...more });
  world.load = () => vm.runInContext(readFileSync(PATH, 'utf8'), world);
  return world;
}

test('a classic script defines wsClient and its class', () => {
  const world = page();
  world.load();
  assert.equal(vm.runInContext('wsClient instanceof ChatwsClient && wsClient === globalThis.wsClient', world), true);
  assert.equal(vm.runInContext('wsClient.connected', world), false);
});

test('a script loaded twice leaves one wsClient', () => {
  const world = page();
  world.load();
  const first = world.wsClient;
  world.load();
  assert.equal(world.wsClient, first);
});

test('a wsClient of another library is replaced', () => {
  const world = page();
  world.wsClient = { connect() {} };
  world.load();
  assert.equal(vm.runInContext('wsClient instanceof ChatwsClient', world), true);
});

/** Return the URL that `connect(1)` opens on a page, with the script loaded from `src`. */
function openedUrl(href, src) {
  let url;
  const target = { addEventListener() {}, removeEventListener() {} };
  const WebSocket = function (address) {
    url = address;
    this.readyState = 3;
  };
  const document = { ...target, currentScript: src === null ? null : { src } };
  const world = page({ WebSocket, URL, location: new URL(href), window: target, document });
  world.load();
  document.currentScript = null; // browsers reset it before the page's handlers run
  world.wsClient.connect(1);
  world.wsClient.disconnect();
  return url;
}

for (const [src, href, url] of [
  ['http://localhost:9090/assets/js/websocket-client.js', 'http://localhost:8000/', 'ws://localhost:9090/ws'],
  ['http://localhost:9090/assets/js/websocket-client.js', 'file:///home/ana/inbox.html', 'ws://localhost:9090/ws'],
  ['https://chat.example/assets/js/websocket-client.js?v=3', 'https://shop.example/', 'wss://chat.example/ws'],
  ['https://chat.example:8443/assets/js/websocket-client.js', 'http://localhost/', 'wss://chat.example:8443/ws'],
  ['http://chat.example/assets/js/websocket-client.js', 'http://shop.example/', 'ws://chat.example/ws'],
  ['https://shop.example/chat/assets/js/websocket-client.js', 'https://shop.example/', 'wss://shop.example/chat/ws'],
  // Not loaded from chatws: a bundle, a copy on a content delivery network, a module, an inline script
  ['https://cdn.example/app.js', 'https://shop.example/', 'wss://shop.example/ws'],
  ['https://cdn.example/websocket-client.js', 'https://shop.example/', 'wss://shop.example/ws'],
  ['file:///app/assets/js/websocket-client.js', 'file:///app/index.html', 'ws://localhost:8080/'],
  [null, 'http://localhost:8000/', 'ws://localhost:8080/'],
  ['', 'https://shop.example/', 'wss://shop.example/ws'],
]) {
  test(`the client loaded from ${src} by ${href} connects to ${url}`, () => {
    assert.equal(openedUrl(href, src), `${url}?client=js`);
  });
}

test('loading the file has no other effect', () => {
  const world = vm.createContext({});
  vm.runInContext(readFileSync(PATH, 'utf8'), world);
  assert.deepEqual(Object.keys(world).sort(), ['ChatwsClient', 'wsClient']);
});

test('an ES module imports the file for its side effect', async (t) => {
  const directory = mkdtempSync(join(tmpdir(), 'chatws-'));
  t.after(() => rmSync(directory, { recursive: true }));
  const copy = join(directory, 'websocket-client.mjs'); // Node loads .mjs as a module, as `import` in a page does
  copyFileSync(PATH, copy);
  await import(pathToFileURL(copy).href);
  assert.equal(globalThis.wsClient, wsClient, 'there is still one client');
});

test('import by name and require return the same client', () => {
  assert.equal(wsClient instanceof ChatwsClient, true);
  assert.equal(byDefault.wsClient, wsClient);
  assert.equal(createRequire(import.meta.url)(PATH).wsClient, wsClient);
});
