"""Admission: the limits for one client, what a request will cost, and waiting for free memory before it is read."""
