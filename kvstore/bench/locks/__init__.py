"""`kvstore-bench lock`."""
