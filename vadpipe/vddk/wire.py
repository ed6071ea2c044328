"""The messages between a mover and its VDDK child process, over the child's standard input and output.

To the child: a header (kind, length of the body), then the body.

    START, QUERY   one JSON object                   READS   any number of READ records
    ACCESS         one JSON object: a single call about a VM, in a child that opens no disk

From the child: records (kind, id, value). A library thread may report a completion at any moment, so
nothing longer than PIPE_BUF is ever written at once: such writes are atomic, and no lock is needed.

    DONE     request `id` ended with VixError `value`
    PART     `value` bytes of the binary half of the answer to call `id` follow
    ANSWER   `value` bytes of JSON follow: the answer to call `id` is complete

Reads are the many, so they are small fixed records, sent in batches; everything else is rare. End of input
is the order to close the disk and leave. The child imports this file: only the standard library.
"""

import struct

START, QUERY, READS, ACCESS = 1, 2, 3, 4
DONE, PART, ANSWER = 1, 2, 3

HEADER = struct.Struct("<II")  # kind, length
READ = struct.Struct("<QQII")  # byte position in the shared memory file, first sector, sector count, id
RECORD = struct.Struct("<IIQ")  # kind, id, value

PIPE_BUF = 4096  # Linux; POSIX guarantees 512
PART_SIZE = PIPE_BUF - RECORD.size
FAREWELL = 0  # the id of the unasked ANSWER at an orderly end: the times of all calls, and what Cleanup left
