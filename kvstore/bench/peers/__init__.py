"""The systems that `kvstore-bench peers` compares, each behind one small interface."""
