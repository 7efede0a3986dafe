"""Several processes on one machine, sharing the ports and one log: a supervisor and the workers that it starts.

`supervisor` is what the operator starts with `--workers N`: it opens the ports (`sockets`) and the log, serves nobody,
and keeps N workers running (`child`), each a `chatws.service.ChatwsService` in a process of its own (`worker`). They
talk over socket pairs: one for what is in `control`, one for the log (chatws.brokers.relay).
"""
