"""What a chatws process runs on: clocks, threads for host names, signals, logging, and its start under twistd."""
