"""The messages between a mover and its VDDK child process, over the child's standard input and output.

To the child: a header (kind, length of the body), then the body.

    START, QUERY, FLUSH, METADATA   one JSON object
    REQUESTS                        any number of REQUEST records: reads and writes
    ACCESS                          one JSON object: a single call about a VM, in a child that opens no disk

From the child: records (kind, id, value). Threads of the library report completions at any time, so no write is
longer than PIPE_BUF: such writes are atomic and need no lock.

    DONE     request `id` ended with VixError `value`
    PART     `value` bytes of the binary half of the answer to call `id` follow
    ANSWER   `value` bytes of JSON follow: the answer to call `id` is complete

Requests are small fixed records because there are many; everything else is rare. End of input orders the child to
close the disk and to leave. The child imports this file: only the standard library.
"""

import struct

START, QUERY, REQUESTS, ACCESS, FLUSH, METADATA = 1, 2, 3, 4, 5, 6
DONE, PART, ANSWER = 1, 2, 3

HEADER = struct.Struct("<II")  # kind, length
# byte position in the shared memory file, first sector, sector count, id, flags
REQUEST = struct.Struct("<QQIII")
WRITE = 1  # flag: from memory to the disk
SCRATCH = 2  # flag: the position is one in the second memory file, the connection's own
RECORD = struct.Struct("<IIQ")  # kind, id, value

PIPE_BUF = 4096  # Linux; POSIX guarantees 512
PART_SIZE = PIPE_BUF - RECORD.size
FAREWELL = 0  # id of the last ANSWER: times of all library calls, what failed in closing, disks left attached

SHORTEST_SECRET = 6  # characters; a shorter one is replaced where it stands alone: it is part of many words
