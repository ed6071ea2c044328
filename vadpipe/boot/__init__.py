"""A restore point as a running machine, without a restore.

machine  QEMU's command for the hardware of a point, as text      run  serve the point, make the overlays, run QEMU
"""
