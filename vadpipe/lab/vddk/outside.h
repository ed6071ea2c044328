/* What outlives a process: locks of VMs and hot-added disks, as files below the lab's root. */
#ifndef OUTSIDE_H
#define OUTSIDE_H

#include <limits.h>
#include <stdint.h>

/* tmpDirectory of the configuration file: the library finds only what was left under the same one. */
extern char tmp_directory[PATH_MAX];

/* Append a line to calls.log, which the lab's vCenter also writes to: the order of what happened outside. */
void outside_note(const char *root, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The lock against Storage vMotion; a vix code, with the reason logged. */
int lock_take(const char *root, const char *vm, const char *identity);
int lock_end(const char *root, const char *vm, const char *identity);

/* Attach a disk of a VM to this machine. Returns a descriptor that is open while the disk is, or -1. */
int hot_add(const char *root, const char *vm, const char *path);
void hot_close(int descriptor);
/* Detach the disks of a VM (NULL: of all) that nobody has open. Those that somebody has open remain. */
void hot_clean(const char *root, const char *vm, uint32_t *cleaned, uint32_t *remaining);

#endif
