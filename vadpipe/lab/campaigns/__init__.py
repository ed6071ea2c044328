"""Campaigns: the main job of the lab again and again while everything fails, and what it leaves behind.

`python -m vadpipe.lab.campaigns backups|restores|in-place --runs N --seed S`; `--only N` plays one run again.

backups, restores, in_place   one run of each, and what must hold after it; *_scenario: what a run goes through
running    the runs of a campaign in processes, and their tally      troubles   what a scenario is drawn from
lab        the vCenter of a run: events, kills                       ending     how a run ended
disks      reader and writer of the lab's disks, and their troubles  points     a target whose points can be checked
source     the VM that restores restore                              vddk       runs that read through VDDK
"""
