/* The client side of old_page.html. It behaves as existing pages do, mistakes included. */
'use strict';

var MAX_RECONNECTS = 5;
var RECONNECT_DELAY = 3000;
var PING_INTERVAL = 30000;
var ACTIVITY_INTERVAL = 10000;

var query = new URLSearchParams(location.search);
var userId = Number(query.get('user'));
var current = Number(query.get('conversation'));
var url = query.get('url') || (location.protocol === 'https:' ? 'wss://' : 'ws://') + location.host + '/ws';

/* For the tests: the recorded messages. */
var wire = { sent: [], received: [], closes: [], sockets: 0 };

var socket = null;
var reconnects = 0;
var pingTimer = null;
var typingTimer = null;
var lastActivity = Date.now();
var lastReported = 0;

function byId(id) {
  return document.getElementById(id);
}

function setStatus(text) {
  byId('status').textContent = text;
}

function send(message) {
  if (socket && socket.readyState === WebSocket.OPEN) {
    wire.sent.push(message);
    socket.send(JSON.stringify(message));
  }
}

function connect() {
  wire.sockets += 1;
  socket = new WebSocket(url);

  socket.onopen = function () {
    reconnects = 0;
    setStatus('open');
    send({ type: 'auth', user_id: userId });
    if (current) {
      send({ type: 'subscribe', conversation_id: current });
    }
    clearInterval(pingTimer);
    pingTimer = setInterval(function () {
      send({ type: 'ping', last_activity: lastActivity });
    }, PING_INTERVAL);
  };

  socket.onmessage = function (frame) {
    var message = JSON.parse(frame.data);
    wire.received.push(message);
    if (message.type === 'pong') {
      return;
    }
    var handler = handlers[message.event];
    if (handler) {
      handler(message.data);
    }
  };

  socket.onclose = function (close) {
    wire.closes.push(close.code);
    clearInterval(pingTimer);
    if (close.code === 1000) {
      setStatus('closed');
    } else if (reconnects < MAX_RECONNECTS) {
      reconnects += 1;
      setStatus('reconnect ' + reconnects);
      setTimeout(connect, RECONNECT_DELAY);
    } else {
      setStatus('lost');
    }
  };
}

/* Shows another conversation. The old server had no unsubscribe that worked, so pages do not send one. */
function openConversation(id) {
  current = id;
  byId('messages').replaceChildren();
  byId('typing').textContent = '';
  send({ type: 'subscribe', conversation_id: id });
}

function line(list, key) {
  var id = list + '-' + key;
  var item = byId(id);
  if (!item) {
    item = document.createElement('li');
    item.id = id;
    byId(list).append(item);
  }
  return item;
}

var handlers = {
  new_message: function (data) {
    if (data.conversation_id !== current) {
      line('conversations', data.conversation_id).className = 'unread';
      return;
    }
    var item = line('messages', data.message.id);
    item.textContent = data.message.content;
    item.className = data.message.sender_type;
  },
  message_read: function (data) {
    if (data.conversation_id === current) {
      line('messages', data.message_id).dataset.readBy = data.user_id;
    }
  },
  typing: function (data) {
    if (data.conversation_id === current) {
      byId('typing').textContent = data.is_typing ? data.user_id + ' is typing…' : '';
    }
  },
  conversation_updated: function (data) {
    line('conversations', data.conversation_id).textContent = data.conversation.status;
  },
  new_conversation: function (data) {
    line('conversations', data.conversation.id).textContent = data.conversation.contact_name;
  },
  agent_status: function (data) {
    line('agents', data.agent_id).textContent = data.status;
  }
};

function reportActivity(kind) {
  lastActivity = Date.now();
  if (kind === 'mouse_move' && lastActivity - lastReported < ACTIVITY_INTERVAL) {
    return;
  }
  lastReported = lastActivity;
  send({ type: 'activity', activity_type: kind });
}

document.addEventListener('visibilitychange', function () {
  reportActivity('visibility_change');
});
document.addEventListener('mousemove', function () {
  reportActivity('mouse_move');
});

byId('answer').addEventListener('input', function () {
  send({ type: 'typing', conversation_id: current, is_typing: true });
  clearTimeout(typingTimer);
  typingTimer = setTimeout(function () {
    send({ type: 'typing', conversation_id: current, is_typing: false });
  }, 2000);
});

connect();
