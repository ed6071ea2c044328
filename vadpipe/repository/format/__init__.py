"""What a repository consists of, byte by byte (docs/repository.md).

objects           names, and reading objects
config            config.json, keys of digests, documents
frames            records of chunks
packs             files of frames; frame_cache: the last ones that were read
disk_map          which clusters lie where
restore_point     points as values and objects
sealing           encryption
slots             opening a sealed repository; slot_changes, wrapping, ways
"""
