"""The chat: what the server does with browsers' messages and backends' events.

This package opens no sockets and imports no engine. It gets connections from `chatws.server`, events from a broker
(`chatws.brokers.interface`), and the Protocols of `interfaces` from `chatws.auth`. `ChatServer` connects the parts.

**A browser's message.** `ChatServer.on_message` passes the text to the connection's `Session`. The session parses it
(`messages`), checks the rate limits (`rate_limits`) and returns actions (`actions`). It does no I/O. `ChatServer`
executes the actions in order. Two kinds take time: `AuthFlow` runs authentication and permission checks, and
`ResumeWaitQueue` holds a client that has seen events which this node has not read yet. `Recovery` sends the reply,
replays the missed events from the `History`, and adds the connection to the `Hub`.

**A backend's event.** The push API calls `ChatServer.publish` with new events, whose audience `AudienceTable`
determines. The broker stores them and calls `BrokerEventHandler.deliver`, on every node. It appends them to the
`History`, executes cluster commands (`cluster_commands`, `admin`), and groups the rest into deliveries
(`delivery`): one frame for each event, and one write to each connection.

The second path is the hot path. `event_handler`, `delivery`, `hub`, `history`, `audience`, `messages` and
`chat_stats` process whole batches field by field (`map`, `attrgetter`), so that their loops run in C. Each such
function has a plain reference in `tests/chat_reference.py`, with which a test compares it.
"""
