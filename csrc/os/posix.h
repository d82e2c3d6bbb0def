/* What the files for POSIX systems share. */
#ifndef GPT2C_OS_POSIX_H
#define GPT2C_OS_POSIX_H

#include <time.h>

/* Returns the time `seconds` after `begin`. Longer waits than some days are cut. */
struct timespec os_time_after(struct timespec begin, double seconds);

/* Asks the system to run the calling thread on a performance core while one is free. All threads
 * wait for the slowest at each barrier, so none should run on an efficiency core. */
void os_prefer_performance_cores(void);

#endif
