// Tests of agents and contacts: statuses, presence, tokens that change, conversations that are newer than the token.

import assert from 'node:assert/strict';
import { afterEach, beforeEach, describe, test } from 'node:test';

import { clock } from './clock.mjs';
import { endClient, makeClient, newest, record } from './fake_browser.mjs';

const ADDRESS = 'ws://server.test/ws';
let client;

beforeEach(() => {
  client = makeClient({ random: () => 0.5 });
});

afterEach(() => endClient(client));

/** Wait until all pending promises have settled. */
async function settled() {
  for (let i = 0; i < 20; i++) await Promise.resolve();
}

const tokenOf = (claims) => `e30.${btoa(JSON.stringify({ sub: '7', role: 'contact', ...claims })).replace(/=+$/, '')}.x`;
const forbidden = (id) => ({ code: 'forbidden', message: 'no', request: { type: 'subscribe', conversation_id: id } });

function enterAsAgent() {
  client.connect(7, { url: ADDRESS });
  const data = { user_id: 7, role: 'agent', groups: ['sales'], status: 'away', connection_id: 'a', last_event_id: 'E:0' };
  return newest().open().event('authenticated', data);
}

/** Connect as contact 7 whose tokens list one conversation more with each call, beginning with `conversations`. */
async function enterAsContact(...conversations) {
  const tokens = [];
  const token = async () => {
    const made = tokenOf({ conversations: conversations.slice(0, tokens.length + 1) });
    tokens.push(made);
    return made;
  };
  client.connect(null, { url: ADDRESS, token });
  await settled();
  newest().open().event('authenticated', { contact_id: 7, role: 'contact', available: true, last_event_id: 'E:0' });
  return { socket: newest(), tokens };
}

describe('an agent', () => {
  test('sets a status and lists the agents online', () => {
    assert.equal(client.setStatus('away'), false);
    assert.equal(client.presence(), false, 'never queued');
    const socket = enterAsAgent();
    const seen = record(client);
    assert.equal(client.setStatus('away'), true);
    assert.equal(client.presence(), true);
    assert.deepEqual(socket.sent.slice(1), [{ type: 'status', status: 'away' }, { type: 'presence' }]);
    socket.event('status_set', { status: 'away' });
    socket.event('presence', { online: [7], status: { 7: 'away' } });
    assert.deepEqual(seen, [
      ['status_set', { status: 'away' }],
      ['presence', { online: [7], status: { 7: 'away' } }],
    ]);
  });

  test('types an internal note for agents only', () => {
    const socket = enterAsAgent();
    client.subscribe(5);
    assert.equal(client.sendTyping(5, true, { role: 'agent' }), true);
    assert.deepEqual(socket.of('typing'), [{ type: 'typing', conversation_id: 5, is_typing: true, role: 'agent' }]);
  });

  for (const [event, data] of [
    ['contact_status', { conversation_id: 5, contact_id: 7, status: 'online', since_ms: 1 }],
    ['groups', { groups: ['sales'] }],
    ['agent_status', { agent_id: 8, status: 'busy' }],
  ]) {
    test(`gets ${event}`, () => {
      const socket = enterAsAgent();
      const seen = record(client);
      socket.event(event, data);
      assert.deepEqual(seen, [[event, data]]);
    });
  }
});

describe('a contact', () => {
  test('connects with a token alone and learns whether an agent is available', async () => {
    const seen = record(client);
    const { socket, tokens } = await enterAsContact(5);
    assert.deepEqual(socket.sent, [{ type: 'auth', token: tokens[0] }]);
    assert.equal(seen.find(([event]) => event === 'connected')[1].available, true);
    socket.event('available', { available: false });
    assert.deepEqual(seen.at(-1), ['available', { available: false }]);
  });

  test('subscribes to a conversation that is newer than the token, with a fresh token', async () => {
    const { socket, tokens } = await enterAsContact(5, 6);
    const seen = record(client);
    client.subscribe(6);
    socket.event('error', forbidden(6));
    await settled();
    assert.equal(tokens.length, 2);
    assert.deepEqual(socket.sent.slice(1), [
      { type: 'subscribe', conversation_id: 6 },
      { type: 'auth', token: tokens[1] },
      { type: 'subscribe', conversation_id: 6 },
    ]);
    socket.event('authenticated', { contact_id: 7, role: 'contact', last_event_id: 'E:0' });
    socket.event('subscribed', { conversation_id: 6, last_event_id: 'E:0' });
    assert.deepEqual(seen.map(([event]) => event), ['authenticated', 'subscribed'], 'no error reaches the page');
  });

  test('asks once for each conversation, and then gets the error', async () => {
    const { socket, tokens } = await enterAsContact(5);
    const seen = record(client, 'authenticated');
    for (const times of [1, 2]) {
      client.subscribe(9);
      socket.event('error', forbidden(9));
      await settled();
      if (times === 1) socket.event('error', forbidden(9));
      await settled();
    }
    assert.equal(tokens.length, 2);
    assert.deepEqual(seen, Array(2).fill(['error', forbidden(9)]));
  });

  test('asks once for several conversations together', async () => {
    const { socket, tokens } = await enterAsContact(5, 6);
    for (const id of [6, 7, 8]) client.subscribe(id);
    for (const id of [6, 7, 8]) socket.event('error', forbidden(id));
    await settled();
    assert.equal(tokens.length, 2);
    assert.deepEqual(socket.of('subscribe').map(({ conversation_id: id }) => id), [6, 7, 8, 6, 7, 8]);
  });

  test('gets the error if there is no fresh token', async () => {
    let isLoggedOut = false;
    const token = async () => {
      if (isLoggedOut) throw new Error('logged out');
      return tokenOf({ conversations: [5] });
    };
    client.connect(null, { url: ADDRESS, token });
    await settled();
    const socket = newest().open().event('authenticated', { contact_id: 7, role: 'contact', last_event_id: 'E:0' });
    const seen = record(client);
    isLoggedOut = true;
    client.subscribe(6);
    socket.event('error', forbidden(6));
    await settled();
    assert.deepEqual(seen.map(([event, { code }]) => [event, code]), [['error', 'token_failed'], ['error', 'forbidden']]);
  });

  test('subscribes on the next connection if this one ends while the token is fetched', async () => {
    const { socket, tokens } = await enterAsContact(5, 6, 7);
    client.subscribe(6);
    socket.event('error', forbidden(6));
    socket.end();
    await settled();
    clock.tick(500);
    await settled();
    newest().open().event('authenticated', { contact_id: 7, role: 'contact', last_event_id: 'E:0' });
    assert.equal(newest().sent[0].token, tokens.at(-1));
    assert.deepEqual(newest().of('subscribe'), [{ type: 'subscribe', conversation_id: 6 }]);
  });

  for (const [why, token] of [
    ['lists it', tokenOf({ conversations: ['6'] })],
    ['lists none', tokenOf({})],
    ['is no JWT', 'opaque'],
  ]) {
    test(`asks for no fresh token if the token ${why}`, async () => {
      let calls = 0;
      client.connect(null, { url: ADDRESS, token: () => (calls += 1) && token });
      await settled();
      const socket = newest().open().event('authenticated', { contact_id: 7, role: 'contact', last_event_id: 'E:0' });
      client.subscribe(6);
      socket.event('error', forbidden(6));
      await settled();
      assert.equal(calls, 1);
    });
  }

  test('replaces the connection if a renewed token is another user\'s', async () => {
    let claims = { sub: '7', conversations: [5] };
    client.connect(null, { url: ADDRESS, token: async () => tokenOf(claims) });
    client.subscribe(5);
    await settled();
    const socket = newest().open().event('authenticated', { contact_id: 7, role: 'contact', last_event_id: 'E:4' });
    const seen = record(client);
    claims = { sub: '8', conversations: [6] }; // a log-in in another tab
    assert.equal(await client.renew(), false);
    await settled();
    assert.equal(socket.closedWith, 4000);
    client.on('identity_changed', () => client.subscribe(6));
    newest().open().event('authenticated', { contact_id: 8, role: 'contact', last_event_id: 'E:4', recovered: true, replayed: 0 });
    assert.deepEqual(newest().of('subscribe'), [{ type: 'subscribe', conversation_id: 6 }]);
    assert.deepEqual(seen.slice(0, 2).map(([event]) => event), ['disconnected', 'identity_changed']);
    newest().end();
    clock.tick(500);
    await settled();
    assert.equal(newest().open().sent[0].last_event_id, 'E:4', 'the position of the new user');
  });
});
