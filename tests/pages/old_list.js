/* The client side of old_list.html. It behaves as existing pages do, mistakes included:
 *
 * - it subscribes to every row of its list when it opens, and again one second after each new message,
 * - it sends `typing` with every key, and an `activity` with every movement of the mouse,
 * - after any close but 1000 it polls, and never uses its WebSocket again.
 */
'use strict';

var REFRESH_DELAY = 1000;
var RECONNECT_DELAY = 1000;

var query = new URLSearchParams(location.search);
var userId = Number(query.get('user'));
var rows = Number(query.get('rows'));
var url = query.get('url') || (location.protocol === 'https:' ? 'wss://' : 'ws://') + location.host + '/ws';

/* For the tests: the recorded messages. */
var wire = { sent: [], received: [], closes: [], polls: false };

var socket = null;

function byId(id) {
  return document.getElementById(id);
}

function send(message) {
  if (socket && socket.readyState === WebSocket.OPEN) {
    wire.sent.push(message);
    socket.send(JSON.stringify(message));
  }
}

function refresh() {
  for (var id = 1; id <= rows; id += 1) {
    send({ type: 'subscribe', conversation_id: id });
  }
}

function row(id) {
  var item = byId('conversations-' + id);
  if (!item) {
    item = document.createElement('li');
    item.id = 'conversations-' + id;
    byId('conversations').append(item);
  }
  return item;
}

function connect() {
  socket = new WebSocket(url);

  socket.onopen = function () {
    byId('status').textContent = 'open';
    send({ type: 'auth', user_id: userId });
    refresh();
  };

  socket.onmessage = function (frame) {
    var message = JSON.parse(frame.data);
    wire.received.push(message);
    if (message.event === 'new_message') {
      row(message.data.conversation_id).textContent = message.data.message.content;
      setTimeout(refresh, REFRESH_DELAY);
    }
  };

  socket.onclose = function (close) {
    wire.closes.push(close.code);
    if (close.code === 1000) {
      byId('status').textContent = 'closed';
      setTimeout(connect, RECONNECT_DELAY);
    } else {
      wire.polls = true;
      byId('status').textContent = 'polling';
    }
  };
}

document.addEventListener('mousemove', function () {
  send({ type: 'activity', activity_type: 'mouse_move' });
});

byId('answer').addEventListener('input', function () {
  send({ type: 'typing', conversation_id: 1, is_typing: true });
});

connect();
