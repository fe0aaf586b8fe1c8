"""The networks: one file a family, the layers and blocks that families share, the table of all and the registry."""
