"""What a repository has to survive, played many times: each program takes a count and a seed.

crash_states  the machine crashes at every moment of a run    recorder.c  records file operations
mutations     stored files are damaged and exchanged          operations  the record, and its crash states
histories     VMs live, runs are killed, points restored      history     the runs that are recorded
forked        a function in a process of its own
"""
