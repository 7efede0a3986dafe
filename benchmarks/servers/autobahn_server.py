"""Autobahn as its own broadcast example does it: one prepared message, `sendPreparedMessage` to each."""

import json
import sys
from collections import defaultdict

from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from twisted.internet import protocol, reactor
from twisted.protocols.basic import LineReceiver

rooms = defaultdict(set)


class Client(WebSocketServerProtocol):
    def onOpen(self):
        self.rooms = []

    def onMessage(self, payload, isBinary):
        message = json.loads(payload)
        if message.get("type") == "subscribe":
            room = rooms[message["conversation_id"]]
            room.add(self)
            self.rooms.append(room)

    def onClose(self, wasClean, code, reason):
        for room in getattr(self, "rooms", ()):
            room.discard(self)


class Backend(LineReceiver):
    delimiter = b"\n"
    MAX_LENGTH = 1 << 20

    def lineReceived(self, line):
        prepared = factory.prepareMessage(line)
        for client in rooms.get(json.loads(line)["data"]["conversation_id"], ()):
            client.sendPreparedMessage(prepared)


factory = WebSocketServerFactory()
factory.protocol = Client
factory.setProtocolOptions(autoPingInterval=30, autoPingTimeout=20)
reactor.listenTCP(int(sys.argv[1]), factory, interface="127.0.0.1", backlog=4096)
reactor.listenTCP(int(sys.argv[2]), protocol.Factory.forProtocol(Backend), interface="127.0.0.1")
reactor.run()
