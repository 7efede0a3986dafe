"""The event history: one contract, and the engines that store events, number them and deliver them to the nodes.

Read in this order:

- `interface`: the contract. A `Broker` accepts `NewEvent`s, gives each an offset within an epoch, and delivers the
  resulting `Event`s to the `EventHandler` of its process, in the same order on every node.
- `memory`: the smallest engine, for one process.
- `factory`: `open_broker` picks the engine for the setting `broker`, a URL.
- `base`: what the engines share, the guard against use before `start` and after `stop` above all. `publish_queue`:
  group commit, by which publishes that arrive during a write share the next one. `listener_queue`: calls of the event
  handler, one at a time. `event_buffer`, `idempotency` and `leases`: the same data in memory.
- `sqlite/`: a file for one machine. `postgres/` and `redis/`: one history for several nodes.

Workers of one machine share a history over `chatws.workers.ipc_broker`, which is a broker, too. The suites in
`tests/contracts/` hold every engine to the contract. docs/adr has the proofs: 0010 for PostgreSQL's order, 0012 and
0013 for Redis.
"""
