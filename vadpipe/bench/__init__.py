"""Throughput, by the public API only. Every result names the machine, the seed and the limiting stage, and prints
CPU-seconds beside wall time: on shared machines only the first can be compared.

path      the whole path, from memory to nowhere and from a disk image to a repository
images    disk images with a real file system of the machine's own files
"""
