/* LD_PRELOAD shim: SIGKILL at the N-th call, counted over all threads of a process. KILLAT is `CALL:N:WHEN`.
 * CALL is `sync` (fsync and fdatasync of any file), `write` (pwrite to the database, its log, or a copy of it) or `base`
 * (pwrite to the database itself: a checkpoint). WHEN is `before` the call, `after` it, or, of a write, `half`: of its
 * bytes half are there. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static struct {
    char call[16], when[16];
    long at;
    atomic_long count;
} plan;

/* A process may be forked before its environment is set: so the plan is read at its first call of these. */
static void read_plan(void) {
    static pid_t reader;
    if (reader == getpid()) return;
    reader = getpid();
    const char *text = getenv("KILLAT");
    plan.count = 0;
    if (text == NULL || sscanf(text, "%15[^:]:%ld:%15s", plan.call, &plan.at, plan.when) != 3) plan.at = 0;
}

/* Count a call; answers when to die at it, or NULL. */
static const char *due(const char *call) {
    read_plan();
    if (plan.at == 0 || strcmp(plan.call, call) != 0) return NULL;
    return atomic_fetch_add(&plan.count, 1) + 1 == plan.at ? plan.when : NULL;
}

static void die_if(const char *when, const char *now) {
    if (when != NULL && strcmp(when, now) == 0) kill(getpid(), SIGKILL);
}

/* Answer whether a file is of a database, or with `base` whether it is the database itself. */
static int is_database(int fd, int base) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0) return 0;
    path[length] = 0;
    const char *name = strrchr(path, '/');
    if (name == NULL) return 0;
    return base ? strcmp(name, "/taskforge.db") == 0 : strstr(name, ".db") != NULL && strstr(name, "-shm") == NULL;
}

#define SYNC(name)                                                                                                     \
    int name(int fd) {                                                                                                 \
        static int (*real)(int);                                                                                       \
        if (real == NULL) real = (int (*)(int))dlsym(RTLD_NEXT, #name);                                                \
        const char *when = due("sync");                                                                                \
        die_if(when, "before");                                                                                        \
        int result = real(fd);                                                                                         \
        die_if(when, "after");                                                                                         \
        return result;                                                                                                 \
    }

SYNC(fsync)
SYNC(fdatasync)

#define WRITE(name, offset)                                                                                            \
    ssize_t name(int fd, const void *data, size_t size, offset at) {                                                   \
        static ssize_t (*real)(int, const void *, size_t, offset);                                                     \
        if (real == NULL) real = (ssize_t(*)(int, const void *, size_t, offset))dlsym(RTLD_NEXT, #name);               \
        const char *when = is_database(fd, 0) ? due("write") : NULL;                                          \
        if (when == NULL && is_database(fd, 1)) when = due("base");                                     \
        die_if(when, "before");                                                                                        \
        if (when != NULL && strcmp(when, "half") == 0) {                                                               \
            real(fd, data, size / 2, at);                                                                              \
            kill(getpid(), SIGKILL);                                                                                   \
        }                                                                                                              \
        ssize_t result = real(fd, data, size, at);                                                                     \
        die_if(when, "after");                                                                                         \
        return result;                                                                                                 \
    }

WRITE(pwrite, off_t)
WRITE(pwrite64, off64_t)
