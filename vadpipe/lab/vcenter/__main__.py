"""`python -m vadpipe.lab.vcenter ROOT`: `vadpipe lab vcenter` without the command around it."""

from vadpipe.lab.commands import vcenter

if __name__ == "__main__":
    vcenter()
