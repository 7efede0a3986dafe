"""The log in Redis, for any number of nodes: docs/design.md has the design and why it holds.

| module | what it knows |
| --- | --- |
| `location` | the URL |
| `scripts`, `*.lua` | the log's data in Redis, and each step that changes it |
| `wire` | the bytes of events, of batches that go through Pub/Sub, and of the scripts' answers |
| `connection`, `sentinel` | one connection (the only importers of txredisapi), and where to connect to |
| `session` | the two connections of a node, from their opening to the first trouble |
| `follower` | the order: which batches this node has been told of, and which come next |
| `keeper` | a session for ever: reconnecting, looking whether all is still there and the log the same |
| `broker` | the contract: what waits to be written, reading, leases |
"""
