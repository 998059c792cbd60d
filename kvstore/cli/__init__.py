"""The `kvstore` command: keys, nodes, diagnosis and the demonstration."""
