"""The SSD tier of a memory node: a log of blocks in one file, and what moves blocks to and fro.

format.py   the bytes of the file
file.py     the file: whose it is, its size, whole reads and writes
log.py      the log in it: append, read, forget, and the scan at the start
region.py   the node's own client of its memory
summary.py  the filter by which clients know what they need not ask for
tier.py     demotion, promotion and the figures
"""
