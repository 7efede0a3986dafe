"""picows (Cython, asyncio): a frame to each listener of the room."""

import asyncio
import json
import sys
from collections import defaultdict

from picows import WSListener, WSMsgType, ws_create_server

rooms = defaultdict(set)


class Client(WSListener):
    def on_ws_connected(self, transport):
        self.transport = transport
        self.rooms = []

    def on_ws_frame(self, transport, frame):
        if frame.msg_type == WSMsgType.CLOSE:
            transport.disconnect()
        elif frame.msg_type == WSMsgType.TEXT:
            message = json.loads(frame.get_payload_as_bytes())
            if message.get("type") == "subscribe":
                room = rooms[message["conversation_id"]]
                room.add(transport)
                self.rooms.append(room)

    def on_ws_disconnected(self, transport):
        for room in self.rooms:
            room.discard(transport)


async def backend(reader, writer):
    while line := await reader.readline():
        message = json.loads(line)
        payload = line[:-1]
        for transport in rooms.get(message["data"]["conversation_id"], ()):
            transport.send(WSMsgType.TEXT, payload)


async def main(port, push_port):
    server = await ws_create_server(lambda request: Client(), "127.0.0.1", port, backlog=4096)
    push = await asyncio.start_server(backend, "127.0.0.1", push_port, limit=1 << 20)
    await asyncio.gather(server.serve_forever(), push.serve_forever())


asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
