"""Webhooks: report agents, contacts and heartbeats to the application by HTTP (docs/protocol.md §8).

`activity` collects what clients of this node do. `sender` runs on every node, and one at a time sends: it takes changes
from the broker's queue (chatws.brokers.webhook_queue), and `batches` decides what a request contains. `client` does the
requests.
"""
