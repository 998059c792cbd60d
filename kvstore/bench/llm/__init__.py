"""`kvstore-bench llm`: what a prefix cache on this store hits and costs."""
