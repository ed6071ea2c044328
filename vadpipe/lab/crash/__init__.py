"""Crashes of the machine at every moment: what a run does to its files, and what a crash may leave of it.

recorder.c   records the file operations of a process       operations   the record, and crash states made from it
history      the runs that are recorded, and their check    campaign     `python -m vadpipe.lab.crash.campaign`
"""
