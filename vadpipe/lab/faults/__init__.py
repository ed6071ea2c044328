"""What a repository has to survive, played many times: each program takes a count and a seed.

crash_states      the machine crashes at every moment of a run; history: the runs that are recorded
recorder.c        records file operations; operations: the record, its crash states; aftermath: what must be whole
mutations         stored files are damaged and exchanged; forging: with right checksums
histories         VMs live, commands are killed, points restored; expected: what the points have to hold
s3_history        the same in a bucket, with troubles of the network
schedules         writers and removals in every order; interleaving: runs one order
forked            a function in a process of its own
"""
