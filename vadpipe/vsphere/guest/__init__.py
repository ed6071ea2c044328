"""Inside a guest: what governs its quiescing there, looked at by a job, changed by a command of its own.

control      what a job expects, and the look before a snapshot      commands     `vadpipe guest-config`
change       tools.conf changed, and put back                        scripts      what runs at freeze and thaw
tools_config, vmbackup   the file, and the keys of its group         files, transfer   by VMware Tools
"""
