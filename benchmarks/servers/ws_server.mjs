// ws (Node): a room server. Each frame is sent to each listener, as in the broadcast of its documentation.
import net from "node:net";
import { WebSocketServer } from "ws";

const [port, pushPort] = process.argv.slice(2).map(Number);
const rooms = new Map();
const server = new WebSocketServer({ port, host: "127.0.0.1", perMessageDeflate: false, backlog: 4096 });
server.on("connection", (socket) => {
  const mine = [];
  socket.on("message", (data) => {
    const message = JSON.parse(data);
    if (message.type !== "subscribe") return;
    let room = rooms.get(message.conversation_id);
    if (!room) rooms.set(message.conversation_id, (room = new Set()));
    room.add(socket);
    mine.push(room);
  });
  socket.on("close", () => mine.forEach((room) => room.delete(socket)));
  socket.on("error", () => {});
});

net
  .createServer((backend) => {
    let rest = "";
    backend.setEncoding("utf8");
    backend.on("data", (data) => {
      const lines = (rest + data).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        const room = rooms.get(JSON.parse(line).data.conversation_id);
        if (room) for (const socket of room) socket.send(line);
      }
    });
  })
  .listen(pushPort, "127.0.0.1");
