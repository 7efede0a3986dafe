"""The push API: backends publish events as JSON lines (docs/protocol.md §3) or by HTTP (§7).

- `protocol` parses a line, `responses` are what the server sends back.
- `handler` executes the parsed lines on the chat server, and counts them.
- `connection` reads lines, batches publishes, keeps the order of lines and responses, and limits memory.
- `listener` creates these connections.
- `http_api` checks and executes HTTP requests. `chatws.net.http_connection` reads them with h11.
- `factory` is what both listeners share: the secret, and the drain at shutdown.

The Python clients for backends are in `chatws.clients`.
"""
