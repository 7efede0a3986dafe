"""The inbox demo: a small shop's backend on SQLite, and the page that its agents use.

It uses chatws as any application does: it sends lines to the push API over TCP, and its page uses websocket-client.js.
The package is imported only with `--demo`.
"""
