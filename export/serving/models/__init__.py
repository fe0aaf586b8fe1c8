"""The models that are served: their configuration, their versions, and how a request finds one."""
