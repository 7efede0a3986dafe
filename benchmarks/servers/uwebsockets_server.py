"""uWebSockets through socketify: its own topics. The backend is a WebSocket client too, as it takes no other socket.

With a third argument, "native", libuv's loop blocks until something comes, as uWebSockets does by itself. Without it
socketify's own `run` polls that loop from asyncio's: some 10,000 times in a row, then every millisecond or ten.
"""

import json
import sys

from socketify import App, CompressOptions, OpCode

app = App()


def on_message(ws, message, opcode):
    decoded = json.loads(message)
    if "event" in decoded:
        app.publish(str(decoded["data"]["conversation_id"]), message, OpCode.TEXT)
    elif decoded.get("type") == "subscribe":
        ws.subscribe(str(decoded["conversation_id"]))


app.ws(
    "/*",
    {
        "compression": CompressOptions.DISABLED,
        "max_payload_length": 65536,
        "idle_timeout": 960,  # others take their turns meanwhile
        "message": on_message,
        "max_backpressure": 1 << 20,
    },
)
app.listen({"port": int(sys.argv[1]), "host": "127.0.0.1"}, lambda config: None)
if sys.argv[3:] == ["native"]:
    app.loop.started = True
    app.loop.uv_loop.run()
else:
    app.run()
