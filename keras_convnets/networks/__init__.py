"""The networks: one file a family, the layers and blocks that families share, and the registry."""
