"""The log in PostgreSQL: shared by any number of nodes, and written to from within an application's transactions."""

from chatws.brokers.postgres.broker import PostgresBroker

__all__ = ["PostgresBroker"]
