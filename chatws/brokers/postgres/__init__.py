"""The history in PostgreSQL, shared by any number of nodes. Applications publish within their own transactions."""

from chatws.brokers.postgres.broker import PostgresBroker

__all__ = ["PostgresBroker"]
