/* The client's log callbacks, called with a real va_list and from any thread, as the real library does. */
#ifndef LOG_H
#define LOG_H

#include "vixdisklib.h"

void log_start(VixDiskLibGenericLogFunc *info, VixDiskLibGenericLogFunc *warn);
void log_info(const char *format, ...) __attribute__((format(printf, 1, 2)));
void log_warn(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
