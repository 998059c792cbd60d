"""`kvstore-bench`: measurements of the store and of the systems it is compared with."""
