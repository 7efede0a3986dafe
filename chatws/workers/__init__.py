"""Several processes on one machine that share the listening ports and one event history.

The operator starts `supervisor` with `--workers N`. It opens the ports (`shared_listener`) and the event history,
serves no client, and keeps N processes (`worker_process`) running. Each runs a `chatws.runtime.service.ChatwsService`
(`worker`). Supervisor and worker are connected by socket pairs (`ipc`): one for `control_messages`, one for the broker
(`broker_server`, `ipc_broker`, `ipc_messages`). `log_relay` brings the workers' log lines to the supervisor, and
`metrics_collector` their metrics.
"""
