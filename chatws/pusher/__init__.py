"""Pusher's protocol: unmodified pusher-js, Laravel Echo and Pusher's SDKs connect to chatws (docs/protocol.md §9).

Start here:

- `apps` has the apps of the configuration, each with its key, its secret and its options.
- `interfaces` has the Protocols between the parts: what the HTTP API asks of the WebSocket side, and what the WebSocket
  side reports to webhooks. Each part is tested against a fake of the others.
- `signatures` verifies what applications sign.

The package stands beside the chat on the same layers, history and broker. The chat does not import it.
"""
