"""Where a repository is stored.

contract   Backend, Upload, Stored, and the errors       local      a directory
memory     for tests and for embedding                   s3         a bucket of an S3 server, with s3_location
wrappers   retry, throttle, latency, faults                         (its URL) and s3_errors (what errors mean)
cached     copies of the index on a local disk           location   from a path or `s3://bucket/prefix` to a backend

administration   versions and object lock of a bucket; backups need none of it
"""
