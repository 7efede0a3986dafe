"""A worker's process. The supervisor starts it; there is no use in starting one by hand."""

from chatws.workers.worker import main

main()
