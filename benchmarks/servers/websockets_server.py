"""websockets (asyncio): a room server as its documentation writes one, `broadcast` included."""

import asyncio
import json
import sys
from collections import defaultdict

from websockets.asyncio.server import broadcast, serve

rooms = defaultdict(set)


async def handler(connection):
    mine = []
    try:
        async for text in connection:
            message = json.loads(text)
            if message.get("type") == "subscribe":
                room = rooms[message["conversation_id"]]
                room.add(connection)
                mine.append(room)
    finally:
        for room in mine:
            room.discard(connection)


async def backend(reader, writer):
    while line := await reader.readline():
        message = json.loads(line)
        room = rooms.get(message["data"]["conversation_id"])
        if room:
            broadcast(room, line[:-1].decode())


async def main(port, push_port):
    async with (
        serve(handler, "127.0.0.1", port, compression=None, ping_interval=30, backlog=4096),
        await asyncio.start_server(backend, "127.0.0.1", push_port, limit=1 << 20),
    ):
        await asyncio.get_running_loop().create_future()


asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
