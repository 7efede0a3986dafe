// One file, loaded in every way that it promises.

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

/** A world of its own, as a page has. */
function page() {
  const world = vm.createContext({ console, setTimeout, clearTimeout });
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

test('an older wsClient of another make is replaced', () => {
  const world = page();
  world.wsClient = { connect() {} };
  world.load();
  assert.equal(vm.runInContext('wsClient instanceof ChatwsClient', world), true);
});

test('loading does nothing else: no connection, no timer, no listener, no other global', () => {
  const world = vm.createContext({});
  vm.runInContext(readFileSync(PATH, 'utf8'), world);
  assert.deepEqual(Object.keys(world).sort(), ['ChatwsClient', 'wsClient']);
});

test('an ES module gets it by importing the file for its effect', async (t) => {
  const directory = mkdtempSync(join(tmpdir(), 'chatws-'));
  t.after(() => rmSync(directory, { recursive: true }));
  const copy = join(directory, 'websocket-client.mjs'); // .mjs: Node takes it for a module, as `import` in a page does
  copyFileSync(PATH, copy);
  await import(pathToFileURL(copy).href);
  assert.equal(globalThis.wsClient, wsClient, 'and there is still one');
});

test('import by name, as with a bundler, and require', () => {
  assert.equal(wsClient instanceof ChatwsClient, true);
  assert.equal(byDefault.wsClient, wsClient);
  assert.equal(createRequire(import.meta.url)(PATH).wsClient, wsClient);
});
