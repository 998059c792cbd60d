"""The memory node: the region and its agent, and the daemon around them.

`memory_node` is the node itself and loads no gRPC, so that `kvstore.connect()` can embed one;
everything else here belongs to the `kvstore-node` daemon.
"""
