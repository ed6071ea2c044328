"""Where a repository is stored. `contract` says what a backend does; the others are backends and wrappers of backends.

contract   Backend, Upload, Stored, and the errors        local   a directory
memory     for tests and for embedding                    s3      a bucket of an S3 server
wrappers   retry, throttle, latency, faults, cache        location   from `s3://bucket/prefix` or a path to a backend
"""
