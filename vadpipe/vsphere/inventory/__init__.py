"""What a server holds: VMs by name, place or tag, their hardware, files on datastores."""
