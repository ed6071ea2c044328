#include <stdio.h>

#include "log.h"

static void to_stderr(const char *format, va_list arguments)
{
    vfprintf(stderr, format, arguments);
}

static VixDiskLibGenericLogFunc *info_function = to_stderr;
static VixDiskLibGenericLogFunc *warn_function = to_stderr;

void log_start(VixDiskLibGenericLogFunc *info, VixDiskLibGenericLogFunc *warn)
{
    info_function = info == NULL ? to_stderr : info;
    warn_function = warn == NULL ? to_stderr : warn;
}

void log_info(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    info_function(format, arguments);
    va_end(arguments);
}

void log_warn(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    warn_function(format, arguments);
    va_end(arguments);
}
