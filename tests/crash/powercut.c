/* LD_PRELOAD shim that knows what a power cut would leave: after each successful fsync or fdatasync it copies that
 * file to <file>.durable, atomically. The test then kills the process and puts the copies in the place of the files.
 * It does not model torn or reordered writes, nor directory entries. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

static void keep(int fd) {
    char link[64], path[4096], copy[4112], partial[4128];
    struct stat info;
    if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) return;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0) return;
    path[length] = 0;
    if (strstr(path, ".db") == NULL) return;
    snprintf(copy, sizeof copy, "%s.durable", path);
    snprintf(partial, sizeof partial, "%s.partial", copy);
    int from = open(path, O_RDONLY | O_CLOEXEC);
    int to = open(partial, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    off_t left = info.st_size;
    while (from >= 0 && to >= 0 && left > 0) {
        ssize_t sent = sendfile(to, from, NULL, (size_t)left);
        if (sent <= 0) break;
        left -= sent;
    }
    if (from >= 0) close(from);
    if (to >= 0) close(to);
    rename(partial, copy);
}

#define WRAP(name)                                                                                                     \
    int name(int fd) {                                                                                                 \
        static int (*real)(int);                                                                                       \
        if (real == NULL) real = (int (*)(int))dlsym(RTLD_NEXT, #name);                                                \
        int result = real(fd);                                                                                         \
        if (result == 0) keep(fd);                                                                                     \
        return result;                                                                                                 \
    }

WRAP(fsync)
WRAP(fdatasync)
