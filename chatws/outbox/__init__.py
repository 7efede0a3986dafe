"""The outbox: events that the application inserts in a table of its own database, within its transactions.

- `dialects` has the tables and statements of each database engine, and `migrations` creates the tables.
- `rows` turns a row into a line of the push API.
- `watermark` decides which rows a poll reads, and `reader` polls, publishes and deletes. `full_scan` finds missed rows.
- `session` opens the connection that holds the lock.
- `online` maintains the view `chatws_online`.

docs/outbox.md describes it for the application.
"""
