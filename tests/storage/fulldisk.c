/* LD_PRELOAD shim: a disk that is full, read-only or broken while a file says so. Only files of the database are
 * concerned. Beside the path in FULLDISK: `<path>.full` makes writes fail with ENOSPC, `<path>.readonly` with EROFS,
 * `<path>.broken` makes syncs fail with EIO, `<path>.unsynced` those of the database file alone, as a checkpoint makes. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
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

ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
    static ssize_t (*real)(int, const void *, size_t, off_t);
    if (real == NULL) real = (ssize_t(*)(int, const void *, size_t, off_t))dlsym(RTLD_NEXT, "pwrite");
    return refused(fd) ? -1 : real(fd, data, size, at);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    static ssize_t (*real)(int, const void *, size_t, off64_t);
    if (real == NULL) real = (ssize_t(*)(int, const void *, size_t, off64_t))dlsym(RTLD_NEXT, "pwrite64");
    return refused(fd) ? -1 : real(fd, data, size, at);
}

#define SYNC(name)                                                                                                     \
    int name(int fd) {                                                                                                 \
        static int (*real)(int);                                                                                       \
        if (real == NULL) real = (int (*)(int))dlsym(RTLD_NEXT, #name);                                                \
        if ((is_said("broken") && is_database(fd, 1)) || (is_said("unsynced") && is_database(fd, 0))) {                \
            errno = EIO;                                                                                               \
            return -1;                                                                                                 \
        }                                                                                                              \
        return real(fd);                                                                                               \
    }

SYNC(fsync)
SYNC(fdatasync)
