/* LD_PRELOAD shim for a process whose wall clock a test turns while it runs: what CLOCK_REALTIME shows is moved by the
 * nanoseconds that stand first in the file TURN_CLOCK, a shared mapping of sixteen bytes; or it stands still at the
 * second number, unless that is 0. All other clocks are left alone. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000LL

static volatile int64_t none[2];
static volatile int64_t *turned = none;
static int (*real)(clockid_t, struct timespec *);

__attribute__((constructor)) static void map(void) {
    real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    const char *path = getenv("TURN_CLOCK");
    int fd = path == NULL ? -1 : open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return;
    void *found = mmap(NULL, sizeof none, PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (found != MAP_FAILED) turned = found;
}

int clock_gettime(clockid_t id, struct timespec *at) {
    if (real == NULL) map();
    int result = real(id, at);
    if (result != 0 || (id != CLOCK_REALTIME && id != CLOCK_REALTIME_COARSE)) return result;
    int64_t now = turned[1];
    if (now == 0) now = at->tv_sec * SECOND + at->tv_nsec + turned[0];
    at->tv_sec = now / SECOND;
    at->tv_nsec = now % SECOND;
    return 0;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone) {
    (void)zone;
    struct timespec now;
    if (clock_gettime(CLOCK_REALTIME, &now) != 0) return -1;
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at != NULL) *at = now.tv_sec;
    return now.tv_sec;
}
