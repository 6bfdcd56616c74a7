/* LD_PRELOAD shim that knows what a power cut would leave of the folder POWERCUT_HOME: in POWERCUT_SHADOW, a folder of the
 * same file system, there is for each file (by the number of its inode)
 *   inode-N   its content when it was synced last,
 *   pin-N     a link to it, so that neither the number nor the present content goes with its name,
 * and for each folder names-N, the lines `inode name` that it had when it was synced last. What becomes of all that is
 * for the test to say. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *shadow;

static int is_ours(int fd) {
    char link[64], path[4096];
    const char *home = getenv("POWERCUT_HOME");
    shadow = getenv("POWERCUT_SHADOW");
    if (home == NULL || shadow == NULL) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0) return 0;
    path[length] = 0;
    return strncmp(path, home, strlen(home)) == 0;
}

static void pin(const char *path, unsigned long inode) {
    char name[4096];
    snprintf(name, sizeof name, "%s/pin-%lu", shadow, inode);
    if (linkat(AT_FDCWD, path, AT_FDCWD, name, AT_SYMLINK_FOLLOW) != 0) return; /* there already */
}

static void keep_file(int fd, const struct stat *info) {
    char link[64], copy[4096], partial[4128];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    snprintf(copy, sizeof copy, "%s/inode-%lu", shadow, (unsigned long)info->st_ino);
    snprintf(partial, sizeof partial, "%s.partial", copy);
    pin(link, info->st_ino);
    int from = open(link, O_RDONLY | O_CLOEXEC);
    int to = open(partial, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    off_t left = info->st_size;
    while (from >= 0 && to >= 0 && left > 0) {
        ssize_t sent = sendfile(to, from, NULL, (size_t)left);
        if (sent <= 0) break;
        left -= sent;
    }
    if (from >= 0) close(from);
    if (to >= 0) close(to);
    rename(partial, copy);
}

static void keep_names(int fd, const struct stat *info) {
    char link[64], names[4096], partial[4128], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    snprintf(names, sizeof names, "%s/names-%lu", shadow, (unsigned long)info->st_ino);
    snprintf(partial, sizeof partial, "%s.partial", names);
    DIR *folder = opendir(link);
    FILE *file = fopen(partial, "w");
    struct dirent *entry;
    while (folder != NULL && file != NULL && (entry = readdir(folder)) != NULL) {
        if (entry->d_type != DT_REG) continue;
        snprintf(path, sizeof path, "%s/%s", link, entry->d_name);
        pin(path, entry->d_ino);
        fprintf(file, "%lu %s\n", (unsigned long)entry->d_ino, entry->d_name);
    }
    if (folder != NULL) closedir(folder);
    if (file != NULL) fclose(file);
    rename(partial, names);
}

static void keep(int fd) {
    struct stat info;
    if (fstat(fd, &info) != 0 || !is_ours(fd)) return;
    if (S_ISREG(info.st_mode)) keep_file(fd, &info);
    if (S_ISDIR(info.st_mode)) keep_names(fd, &info);
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
