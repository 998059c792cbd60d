"""The client: `Store`, `connect`, and what stands between them and the native core."""
