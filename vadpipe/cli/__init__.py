"""The command `vadpipe`: one module per command or family of commands, and what they share.

main       the entry point: the process, exit codes     commands   the group, arguments, options, completion
process    coroutines that a signal ends in order       output     everything that is printed
config     jobs from a Python file                      progress   bars, lines, event files
"""
