// Socket.IO (Node), WebSocket transport only: its own rooms.
import { createServer } from "node:http";
import net from "node:net";
import { Server } from "socket.io";

const [port, pushPort] = process.argv.slice(2).map(Number);
const http = createServer();
const io = new Server(http, { transports: ["websocket"], perMessageDeflate: false });
io.on("connection", (socket) => {
  socket.on("subscribe", (message) => socket.join(String(message.conversation_id)));
});
http.listen({ port, host: "127.0.0.1", backlog: 4096 });

net
  .createServer((backend) => {
    let rest = "";
    backend.setEncoding("utf8");
    backend.on("data", (data) => {
      const lines = (rest + data).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        const message = JSON.parse(line);
        io.to(String(message.data.conversation_id)).emit(message.event, message.data);
      }
    });
  })
  .listen(pushPort, "127.0.0.1");
