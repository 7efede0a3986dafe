"""A worker's process. The supervisor starts it; there is no use in starting one by hand."""

from chatws.runtime.signals import ignore_in_worker


def run() -> None:
    """Ignore the supervisor's signals before anything else is imported."""
    ignore_in_worker()
    from chatws.workers.worker import main

    main()


run()
