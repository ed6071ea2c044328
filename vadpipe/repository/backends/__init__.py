"""Where a repository is stored.

contract   Backend, Upload, Stored, and the errors       local      a directory
memory     for tests and for embedding                   s3         a bucket of an S3 server
wrappers   retry, throttle, latency, faults, cache       location   from a path or `s3://bucket/prefix` to a backend
"""
