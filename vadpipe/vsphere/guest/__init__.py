"""Inside a guest: what governs its quiescing there.

expectations   what a job expects, compared before a snapshot      scripts      what runs at freeze and thaw
change         tools.conf changed, and put back                    tools_conf   the file and its settings
files          files of the guest, by VMware Tools
"""
