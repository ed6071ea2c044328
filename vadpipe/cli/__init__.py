"""The command `vadpipe`: one module per command, found by entry points, and what they share.

main      the group, signals, exit codes              config     jobs from a Python file
progress  bars, lines, event files                    allocator  freed memory kept in the process
"""
