"""When a request runs: its deadline, the limit of runs at once, and requests that run together."""
