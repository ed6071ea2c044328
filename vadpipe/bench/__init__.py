"""Throughput, by the public API only. Every result names the machine, the seed and the limiting stage, and prints
CPU-seconds beside wall time: on shared machines only the first can be compared.

path       the whole path, from memory to nowhere and from a disk image to a repository
jobs       a user's own pipeline, with settings that vary
kernels    zero test, cuts, digests, codecs and encryption, one by one
source     a transport, by reads in flight and their size
documents  tables of results, and the comparison of two
page       results as a page with plots
images     disk images with a real file system of the machine's own files
"""
