/* LD_PRELOAD shim: a disk that is full, small, read-only, broken or slow while a file says so. Only files of the
 * database are concerned. Beside the path in FULLDISK: `<path>.full` makes writes fail with ENOSPC, `<path>.readonly`
 * with EROFS, `<path>.broken` makes syncs fail with EIO, `<path>.unsynced` those of the database file alone, as a
 * checkpoint makes. `<path>.small` holds the bytes that a file may have: what is there can be written again, and what
 * would grow beyond is cut off, as on a disk that fills up. `<path>.slow` holds the microseconds that a sync takes. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

static int is_said(const char *what) {
    char path[4096];
    const char *base = getenv("FULLDISK");
    if (base == NULL) return 0;
    snprintf(path, sizeof path, "%s.%s", base, what);
    int kept = errno, found = access(path, F_OK) == 0;
    errno = kept;
    return found;
}

/* The number in a file; -1 when there is no such file. */
static long number_in(const char *what) {
    char path[4096];
    const char *base = getenv("FULLDISK");
    if (base == NULL) return -1;
    snprintf(path, sizeof path, "%s.%s", base, what);
    int kept = errno;
    long number = -1;
    FILE *file = fopen(path, "r");
    if (file != NULL) {
        if (fscanf(file, "%ld", &number) != 1) number = -1;
        fclose(file);
    }
    errno = kept;
    return number;
}

static int is_database(int fd, int or_log) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    int kept = errno;
    ssize_t length = readlink(link, path, sizeof path - 1);
    errno = kept;
    if (length <= 0) return 0;
    path[length] = 0;
    char *name = strstr(path, "/taskforge.db");
    return name != NULL && strstr(path, "-shm") == NULL && (or_log || strstr(name, "-wal") == NULL);
}

static int refused(int fd) {
    int full = is_said("full"), readonly = is_said("readonly");
    if ((!full && !readonly) || !is_database(fd, 1)) return 0;
    errno = full ? ENOSPC : EROFS;
    return 1;
}

ssize_t write(int fd, const void *data, size_t size) {
    static ssize_t (*real)(int, const void *, size_t);
    if (real == NULL) real = (ssize_t(*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write");
    return refused(fd) ? -1 : real(fd, data, size);
}

/* How much of a write has room; 0: nothing. */
static size_t fitting(int fd, size_t size, off64_t at) {
    long most = number_in("small");
    if (most < 0 || at + (off64_t)size <= most || !is_database(fd, 1)) return size;
    return at >= most ? 0 : (size_t)(most - at);
}

#define PWRITE(name, offset)                                                                                           \
    ssize_t name(int fd, const void *data, size_t size, offset at) {                                                   \
        static ssize_t (*real)(int, const void *, size_t, offset);                                                     \
        if (real == NULL) real = (ssize_t(*)(int, const void *, size_t, offset))dlsym(RTLD_NEXT, #name);               \
        if (refused(fd)) return -1;                                                                                    \
        size_t room = fitting(fd, size, at);                                                                           \
        if (room == 0 && size > 0) {                                                                                   \
            errno = ENOSPC;                                                                                            \
            return -1;                                                                                                 \
        }                                                                                                              \
        return real(fd, data, room, at);                                                                               \
    }

PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

static void take_time(int fd) {
    long us = number_in("slow");
    if (us < 0 || !is_database(fd, 1)) return;
    struct timespec left = {us / 1000000, us % 1000000 * 1000};
    while (nanosleep(&left, &left) != 0 && errno == EINTR) continue;
}

#define SYNC(name)                                                                                                     \
    int name(int fd) {                                                                                                 \
        static int (*real)(int);                                                                                       \
        if (real == NULL) real = (int (*)(int))dlsym(RTLD_NEXT, #name);                                                \
        if ((is_said("broken") && is_database(fd, 1)) || (is_said("unsynced") && is_database(fd, 0))) {                \
            errno = EIO;                                                                                               \
            return -1;                                                                                                 \
        }                                                                                                              \
        take_time(fd);                                                                                                 \
        return real(fd);                                                                                               \
    }

SYNC(fsync)
SYNC(fdatasync)
