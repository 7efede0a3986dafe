"""Python clients of the push API.

`chatws.clients.blocking` is for scripts, Django and every other program that may block. `chatws.clients.asyncio` is for
FastAPI, Django's async views and other asyncio programs. Neither imports Twisted or the server.
`chatws.clients.twisted` is for programs that run on Twisted's reactor.

All retry for a bounded time, with an idempotency key, and then raise. No call hangs, no event is lost silently, and
none is sent twice. They also export the exceptions and results, which `chatws.clients.protocol` defines.
"""
