"""What the stages compute: bytes and arrays in, values out. No trio, no files.

digest_table   a hash table of digests in numpy columns
"""
