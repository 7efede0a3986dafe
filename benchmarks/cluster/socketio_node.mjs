// One node of a Socket.IO cluster, WebSocket transport only, with the Redis adapter or the Redis Streams adapter:
//
//     node socketio_node.mjs PORT PUSH_PORT REDIS_URL redis|streams
//
// The push API is a TCP listener like that of chatws. Each line is a JSON object, which is emitted to the room of its
// conversation and answered {"ok":true}. Neither adapter reports when an event has reached Redis. The response only says
// that this process has read the line and passed it to the adapter.
import { createServer } from "node:http";
import net from "node:net";
import { createAdapter as createPubSubAdapter } from "@socket.io/redis-adapter";
import { createAdapter as createStreamsAdapter } from "@socket.io/redis-streams-adapter";
import { createClient } from "redis";
import { Server } from "socket.io";

const [port, pushPort] = process.argv.slice(2, 4).map(Number);
const [url, kind] = process.argv.slice(4);

const client = createClient({ url });
await client.connect();
let adapter;
if (kind === "streams") {
  // with its default of 10,000 entries a burst is trimmed before the other nodes have read it
  adapter = createStreamsAdapter(client, { maxLen: 100_000 });
} else {
  const subscriber = client.duplicate();
  await subscriber.connect();
  adapter = createPubSubAdapter(client, subscriber);
}

const http = createServer();
const io = new Server(http, { transports: ["websocket"], perMessageDeflate: false, adapter });
io.on("connection", (socket) => {
  socket.on("subscribe", (message) => socket.join(String(message.conversation_id)));
});

net
  .createServer((backend) => {
    let rest = "";
    backend.setEncoding("utf8");
    backend.setNoDelay(true);
    backend.on("data", (data) => {
      const lines = (rest + data).split("\n");
      rest = lines.pop();
      let answers = "";
      for (const line of lines) {
        const message = JSON.parse(line);
        io.to(String(message.data.conversation_id)).emit(message.event, message.data);
        answers += '{"ok":true}\n';
      }
      if (answers) backend.write(answers);
    });
  })
  .listen(pushPort, "127.0.0.1", () => http.listen({ port, host: "127.0.0.1", backlog: 4096 }));
