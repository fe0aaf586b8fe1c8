"""Scheduling of requests: deadlines, the concurrency limit and batching."""
