"""The event history in Redis, for any number of nodes. docs/adr/0012-redis-order.md and 0013 have the proofs.

| module | responsibility |
| --- | --- |
| `url` | parses the broker's URL |
| `scripts`, `*.lua` | the data in Redis, and each step that changes it |
| `batches` | the encoding of events, of batches in Pub/Sub, and of the scripts' replies |
| `connection`, `sentinel` | one connection (the only importers of txredisapi), and the address of the master |
| `session` | the two connections of a node, until the first error |
| `batch_consumer` | the order: batches that this node has delivered, and the next ones |
| `session_manager` | reconnects, checks that the connections work and that the history is the same |
| `broker` | the interface: events that wait to be written, reading, leases |
"""
