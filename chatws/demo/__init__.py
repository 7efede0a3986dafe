"""The inbox demo: a small shop's backend on SQLite, and the page its agents work with.

It uses chatws as any application does: it pushes lines over TCP, and its page speaks through websocket-client.js.
Nothing of it is imported unless `--demo` is given.
"""
